"""Brain MRI, for pre-training."""
