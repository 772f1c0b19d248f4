"""The web page: upload images, mark a few, adapt, look, correct, download. session.py has no web library in it."""
