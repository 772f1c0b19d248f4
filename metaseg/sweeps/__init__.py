"""Sweeps: expand a table or multirun into cells, and run the missing ones."""
