"""Training: rows and sentences written by us in, classifiers out."""
