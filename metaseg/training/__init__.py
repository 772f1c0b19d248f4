"""Runs: training, pre-training and their callbacks."""
