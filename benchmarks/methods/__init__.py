"""Methods for meta-gradients, ours and others', each a function of the same problem."""
