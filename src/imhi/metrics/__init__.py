"""Metrics: pairs of texts in, per-row values, an aggregate and a signature out; one file a metric."""
