"""Labelers: responses in, labels out."""
