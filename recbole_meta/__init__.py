"""Meta-learned cold-start recommenders for RecBole."""

__version__ = "0.1.0"
