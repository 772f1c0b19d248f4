"""Figures, overlays, contact sheets."""
