"""The settings of making questions about documents with a teacher model."""
