"""From a few annotated images to a segmenter: shared by adapt.py, the Python interface and the web page."""
