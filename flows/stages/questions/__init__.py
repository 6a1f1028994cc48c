"""The stage that lets a teacher model make questions, and what it would take."""
