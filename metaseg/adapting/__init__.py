"""A few annotated images in, a segmenter out: what adapt.py, the Python interface and the web page share."""
