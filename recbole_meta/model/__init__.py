"""Models: the learners and the baselines, and the multi-task models."""

import importlib
import pkgutil
from functools import cache


@cache
def our_models() -> dict[str, type]:
    """Learners, rules and floors by name: the classes of ``model/meta`` and ``model/baseline``."""
    from recbole_meta.model.meta_recommender import MetaRecommender

    return _classes(("meta", "baseline"), MetaRecommender)


@cache
def multitask_models() -> dict[str, type]:
    """Multi-task models, their rules and floors by name: the classes of ``model/multitask``."""
    from recbole_meta.model.objective_recommender import ObjectiveRecommender

    return _classes(("multitask",), ObjectiveRecommender)


@cache
def row_models() -> dict[str, type]:
    """Multi-task models that score rows of a user and an item, by name."""
    from recbole_meta.model.row_recommender import RowRecommender

    return _classes(("multitask",), RowRecommender)


def _classes(rooms: tuple[str, ...], base: type) -> dict[str, type]:
    found: dict[str, type] = {}
    for room in rooms:
        package = importlib.import_module(f"recbole_meta.model.{room}")
        for info in pkgutil.iter_modules(package.__path__):
            module = importlib.import_module(f"{package.__name__}.{info.name}")
            for name, value in vars(module).items():
                defined = isinstance(value, type) and value.__module__ == module.__name__
                if defined and issubclass(value, base):
                    found[name] = value
    return found
