"""Benchmarks of the outer step and other costs, compared with other libraries: `python -m benchmarks outer_step`."""
