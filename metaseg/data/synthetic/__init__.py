"""Painted twins of the datasets."""
