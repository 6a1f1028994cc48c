"""The commands that say what a run would do and take: plan and memory."""
