"""Meta-learned cold-start recommenders for RecBole."""

import importlib
from typing import Any

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """``load``, read when it is asked for: torch takes seconds."""
    if name == "load":
        return importlib.import_module("recbole_meta.saved_model").load
    raise AttributeError(f"module 'recbole_meta' has no attribute '{name}'")
