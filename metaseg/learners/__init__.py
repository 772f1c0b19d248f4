"""Learners: modules with two methods, meta_gradient (learn from a task) and adapt (to a target's support set)."""
