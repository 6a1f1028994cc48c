"""Metrics of a store for a monitoring system."""
