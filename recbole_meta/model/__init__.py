"""Models: the base class of the meta-learners, the learners, the baselines."""

import importlib
import pkgutil
from functools import cache


@cache
def our_models() -> dict[str, type]:
    """Learners, rules and floors by name: the classes of ``model/meta`` and ``model/baseline``."""
    from recbole_meta.model.meta_recommender import MetaRecommender

    found: dict[str, type] = {}
    for room in ("meta", "baseline"):
        package = importlib.import_module(f"recbole_meta.model.{room}")
        for info in pkgutil.iter_modules(package.__path__):
            module = importlib.import_module(f"{package.__name__}.{info.name}")
            for name, value in vars(module).items():
                defined = isinstance(value, type) and value.__module__ == module.__name__
                if defined and issubclass(value, MetaRecommender):
                    found[name] = value
    return found
