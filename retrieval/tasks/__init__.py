"""Tasks: each turns corpora into Alpaca records with retrieved contexts, and says how well it retrieved."""
