"""Ways to a meta-gradient, ours and others', each a function of the same problem."""
