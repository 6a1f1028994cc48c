"""Commands about prompts: answering one, asking the corpus, writing records as conversations."""
