"""The run itself: training, pre-training, and what accompanies them."""
