"""A local web app to segment images from a few annotated ones: python app.py checkpoint=RUN"""

from metaseg.cli.commands import app

if __name__ == "__main__":
    app()
