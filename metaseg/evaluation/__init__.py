"""Evaluation: adaptation to a target, scores per image, trivial baselines, confidence intervals."""
