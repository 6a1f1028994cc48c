"""The commands that bring base models in: fetching and converting."""
