"""Archives of datasets: downloaded, verified, unpacked."""
