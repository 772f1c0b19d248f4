"""The mathematics: pure functions over parameter dictionaries, importing torch only."""
