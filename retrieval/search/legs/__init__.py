"""The retrieval legs, one module for each. `retrieval.settings.legs` is their table."""
