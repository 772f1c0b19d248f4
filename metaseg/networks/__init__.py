"""Networks that map images (B, 3, H, W) in [-1, 1] to logits (B, 1, H, W), and how they are normalised and called."""
