"""The parser of the command line, and the options that commands share."""

import argparse
from typing import Any, NoReturn, Protocol

SETTINGS_OF_BOTH = "--key=value changes a setting of the protocol or of the models that read it."


class Formatter(argparse.ArgumentDefaultsHelpFormatter):
    """Shows a default where there is one."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return super()._get_help_string(action) if action.default else action.help


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line; takes ``--s=1`` for a setting, not for ``--seed``."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, allow_abbrev=False, **kwargs)

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message}\n")


class Command(Protocol):
    """Adds a command; with ``settings`` it takes free ones, --key=value."""

    def __call__(
        self, name: str, about: str, example: str, function: Any, settings: str = ""
    ) -> argparse.ArgumentParser: ...


def add_data(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data_path", default="dataset", help="folder of the data sets' folders")
    parser.add_argument(
        "--prepared_path", default="dataset/prepared", help="folder of the prepared folders"
    )


def add_protocol(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--dataset", "-d", default="ml-100k", help="name of the data set")
    parser.add_argument(
        "--protocol", "-p", default="user_cold_5", help="a file of properties/protocol"
    )
    parser.add_argument(
        "--order",
        choices=["time", "random"],
        default=None,
        help="order of a user's rows; the protocol's own if not given",
    )


def add_page(parser: argparse.ArgumentParser, kind: str) -> None:
    """The page of a table, and where its finished work is."""
    parser.add_argument("name", help=f"a file of properties/{kind}, or a path ending in .yaml")
    parser.add_argument("--runs", default="runs", help="where finished work is kept")


def add_results(parser: argparse.ArgumentParser, about: str = "where the table is written") -> None:
    parser.add_argument("--results", default="results", help=about)


def add_device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", default="cpu", help="cpu | cuda | cuda:<n>")


def add_engine(parser: argparse.ArgumentParser) -> None:
    """Where a table is computed, what it says of that, and its data."""
    add_device(parser)
    parser.add_argument("--verbose", "-v", action="count", default=0, help="say what is done")
    add_data(parser)
