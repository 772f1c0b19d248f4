"""Run directories, settings, results and provenance, and the definitions of the paper's tables."""
