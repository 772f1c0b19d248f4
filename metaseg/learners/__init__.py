"""Learners: Lightning modules with two verbs, meta_gradient (how to learn from a task) and adapt (how to meet a dataset)."""
