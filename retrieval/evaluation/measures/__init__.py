"""Published measures as pure functions: each scores answers or links exactly as its official script does."""
