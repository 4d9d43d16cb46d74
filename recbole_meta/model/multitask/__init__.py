"""Multi-task models: one per file."""
