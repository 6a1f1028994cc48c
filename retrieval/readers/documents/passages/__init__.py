"""Readers of question sets whose rows bring passages along: DPR, MS MARCO, Natural Questions, BEIR."""
