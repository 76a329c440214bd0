"""IMHI: evaluation of interpretable mental-health language models (research use, non-clinical)."""

__version__ = "0.1.0"
