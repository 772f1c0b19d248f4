"""Segment images from a few annotated ones: python adapt.py checkpoint=RUN support=DIR images=DIR out=DIR"""

from metaseg.cli.commands import adapt

if __name__ == "__main__":
    adapt()
