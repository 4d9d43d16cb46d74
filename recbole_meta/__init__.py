"""Meta-learned cold-start and multi-task recommenders for RecBole."""

__version__ = "0.1.0"
