"""Runs side by side: what differs, and the page about it."""
