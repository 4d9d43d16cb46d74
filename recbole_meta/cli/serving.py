"""Commands of a saved model: rank for a newcomer, export, say what it is."""

import argparse
import sys
import warnings
from pathlib import Path

import yaml

from recbole_meta.cli.parsing import Command
from recbole_meta.errors import SettingError
from recbole_meta.settings import YamlLoader


def add_commands(command: Command) -> None:
    """adapt, export, info."""
    sub = command(
        "adapt",
        "Rank for a newcomer by a saved model.",
        "adapt runs/ml-100k-user_cold_5-time-0/PriorRidge-seed2020/model.pt --likes 50,181 --k 10",
        _adapt,
    )
    sub.add_argument("path", help="a file that 'run --save' wrote")
    sub.add_argument(
        "--likes", default="", help="items (users, of a cold item), separated by commas"
    )
    sub.add_argument("--dislikes", default="", help="items, separated by commas")
    sub.add_argument("--ratings", default="", help="item=rating, separated by commas")
    sub.add_argument("--features", default="{}", help="of the newcomer, as YAML: {age: 30}")
    sub.add_argument("--k", type=int, default=10, help="how many, best first")
    sub.add_argument("--exclude", default="", help="what is not ranked, separated by commas")
    sub.add_argument(
        "--only", default=None, help="candidates, separated by commas; all if not given"
    )
    sub.add_argument(
        "--ignore_unknown", action="store_true", help="warn of tokens that are unknown"
    )
    sub.add_argument(
        "--explain", action="store_true", help="say what each item of the support moved of a score"
    )
    sub.add_argument("--json", action="store_true", help="print JSON")

    sub = command(
        "export",
        "Write a saved model as a program of torch.export, which needs torch alone.",
        "export runs/ml-100k-user_cold_5-time-0/PriorRidge-seed2020/model.pt --out ridge.pt2",
        _export,
    )
    sub.add_argument("path", help="a file that 'run --save' wrote")
    sub.add_argument("--out", required=True, help="the program's file, for torch.export.load")

    sub = command("info", "Say what a saved model is.", "info model.pt --json", _info)
    sub.add_argument("path", help="a file that 'run --save' wrote")
    sub.add_argument("--json", action="store_true", help="print JSON")


def _adapt(options: argparse.Namespace) -> None:
    from recbole_meta.saved_model import load
    from recbole_meta.tracking import json_text

    try:
        features = yaml.load(options.features, YamlLoader)
    except (yaml.YAMLError, ValueError) as error:
        raise SettingError(f"Cannot read --features: {error}") from error
    if not isinstance(features, dict):
        raise SettingError(f"--features must be 'name: value' pairs, found {features!r}.")
    unknown = "ignore" if options.ignore_unknown else "error"
    served = load(options.path)
    only = None if options.only is None else _listed(options.only)
    which = {"exclude": _listed(options.exclude), "only": only, "unknown": unknown}
    with warnings.catch_warnings(record=True) as warned:
        newcomer = served.adapt(
            _listed(options.likes),
            _listed(options.dislikes),
            _rated(options.ratings),
            features,
            unknown,
        )
        say = newcomer.explain if options.explain else newcomer.rank
        ranked = say(options.k, **which)
    for warning in warned:
        print(warning.message, file=sys.stderr)
    if options.json:
        keys = (served.kind, "score", "moved")
        print(json_text([dict(zip(keys, entry)) for entry in ranked]), end="")
        return
    width = max(len(item) for item, *_ in ranked)
    for place, (item, score, *moved) in enumerate(ranked, start=1):
        reasons = [f"{by:+.4f} {of}" for each in moved for of, by in each.items()]
        print("  ".join([f"{place:4}", f"{item:{width}}", f"{score:.4f}", *reasons]))


def _listed(text: str) -> list[str]:
    return [token.strip() for token in text.split(",") if token.strip()]


def _rated(text: str) -> dict[str, float]:
    ratings = {}
    for pair in _listed(text):
        item, equals, value = pair.rpartition("=")
        try:
            rating = float(value)
        except ValueError:
            equals = ""
        if not equals or not item:
            raise SettingError(f"--ratings are written item=rating, found '{pair}'.")
        if item in ratings:
            raise SettingError(f"--ratings names '{item}' twice.")
        ratings[item] = rating
    return ratings


def _export(options: argparse.Namespace) -> None:
    from recbole_meta.export import exported
    from recbole_meta.saved_model import load
    from recbole_meta.tracking import check_writable, write_atomically

    out = Path(options.out)
    check_writable(out.parent, make=False)
    if out.is_dir():
        raise SettingError(f"--out names a file, found {out}, which is a folder.")
    write_atomically(out.resolve(), exported(load(options.path)))
    print(out)


def _info(options: argparse.Namespace) -> None:
    from recbole_meta.saved_model import load
    from recbole_meta.tracking import json_text

    about = load(options.path).info()
    if options.json:
        print(json_text(about), end="")
        return
    width = max(map(len, about))
    for name, value in about.items():
        shown = ", ".join(map(str, value)) if isinstance(value, list) else value
        print(f"{name:{width}}  {'none' if shown in ('', None) else shown}")
