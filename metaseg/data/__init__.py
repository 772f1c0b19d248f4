"""Datasets: what is known of them, how they are read, checked, prepared, drawn from and imitated."""
