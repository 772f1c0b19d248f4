"""The web page: upload images, mark a few, adapt, review, correct, download. session.py is free of web libraries."""
