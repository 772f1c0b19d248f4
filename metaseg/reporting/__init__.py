"""What a person reads of a run: curves, overlays and the summary; all from a run directory's values."""
