"""The retrieval legs, one module each; `retrieval.settings.legs` is their table."""
