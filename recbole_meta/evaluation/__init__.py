"""Per-task metrics and paired tests over tasks."""
