"""Sweeps: which cells a table or a multirun consists of, which of them are missing, and running those."""
