"""Datasets: catalogue, reading, checks, preparation, episodes and synthetic twins."""
