"""Networks from images (B, 3, H, W) in [-1, 1] to logits (B, 1, H, W), their normalisation and functional calls."""
