"""The command line: ``recbole-meta`` and the runner that takes what RecBole's runner takes."""

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from typing import Any

import yaml

from recbole_meta.cli import cleaning, judging, serving, tables
from recbole_meta.cli.parsing import SETTINGS_OF_BOTH, Formatter, Parser
from recbole_meta.errors import RecboleMetaError, SettingError
from recbole_meta.settings import YamlLoader


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; an error of the user's is one line and exit code 2."""
    return _guarded(_parser(), sys.argv[1:] if arguments is None else arguments)


def run_main(arguments: Sequence[str] | None = None) -> int:
    """``run_recbole_meta.py``: the command ``run`` alone."""
    return _guarded(_run_parser(), sys.argv[1:] if arguments is None else arguments)


def _run_parser() -> argparse.ArgumentParser:
    parser = Parser(
        "run_recbole_meta.py",
        description="Judge models on a cold-start protocol (default: ml-100k, user_cold_5). "
        + SETTINGS_OF_BOTH,
        epilog="example: python run_recbole_meta.py -m BPR,PriorRidge --order random --split=1",
        formatter_class=Formatter,
    )
    judging.add_run(parser)
    return parser


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        "recbole-meta",
        description="Cold-start recommenders on RecBole, judged honestly.",
        epilog="example: recbole-meta run -m BPR,PriorRidge -d ml-100k -p user_cold_5",
    )
    commands = parser.add_subparsers(required=True, metavar="command")

    def command(name: str, about: str, example: str, function: Any, settings: str = "") -> Any:
        sub = commands.add_parser(
            name, help=about, description=f"{about} {settings}",
            epilog=f"example: recbole-meta {example}", formatter_class=Formatter,
        )  # fmt: skip
        sub.set_defaults(function=function, takes_settings=bool(settings))
        return sub

    for group in (judging, tables, serving, cleaning):
        group.add_commands(command)
    return parser


def _guarded(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> int:
    options, free = parser.parse_known_args(arguments)
    verbosity = getattr(options, "verbose", 0)
    try:
        options.settings = _free(free) if options.takes_settings else _none(free, parser)
        level = logging.WARNING if not verbosity else logging.INFO
        logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
        logging.getLogger("recbole_meta").setLevel(level)
        options.function(options)
        sys.stdout.flush()
    except BrokenPipeError:  # who read our output is gone; Python would say so again at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except (RecboleMetaError, OSError) as error:
        if verbosity > 1:
            raise
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; finished runs are kept", file=sys.stderr)
        return 130
    return 0


def _free(free: Sequence[str]) -> dict[str, Any]:
    """``--key=value`` arguments, values read as YAML."""
    settings: dict[str, Any] = {}
    for argument in free:
        key, equals, value = argument.removeprefix("--").partition("=")
        if not argument.startswith("--") or not equals:
            raise SettingError(f"Cannot read '{argument}': free settings are written --key=value.")
        try:
            settings[key] = yaml.load(value, YamlLoader)
        except yaml.YAMLError as error:
            from recbole_meta.choice import check_ignored

            check_ignored(key)  # RecBole's intervals, [5,inf), are no YAML
            raise SettingError(f"Cannot read the value of '--{key}': {error}") from error
    return settings


def _none(free: Sequence[str], parser: argparse.ArgumentParser) -> dict[str, Any]:
    if free:
        parser.error(f"unrecognized arguments: {' '.join(free)}")
    return {}
