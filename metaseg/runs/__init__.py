"""What a run leaves: its directory, settings, provenance; which table it fills a line of."""
