"""Download, verify and unpack the archives of datasets."""
