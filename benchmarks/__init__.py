"""What an outer step costs, beside other libraries, in one run: `python -m benchmarks outer_step`."""
