"""Learners: Lightning modules with two verbs, meta_gradient (learn from a task) and adapt (meet a dataset)."""
