"""The commands that look after a store and its sources."""
