"""The commands of `jora`, and how each prints what it found."""
