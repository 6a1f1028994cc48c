"""The task of questions over documents."""
