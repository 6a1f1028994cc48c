"""The commands of the core: ``python -m jora_core.commands.NAME --spec SPEC.json``."""
