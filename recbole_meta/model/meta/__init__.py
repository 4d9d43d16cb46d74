"""Meta-learners, one per file."""
