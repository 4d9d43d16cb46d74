"""Commands that run what is missing of a table and write it."""

import argparse
from pathlib import Path

from recbole_meta.cli.parsing import Command, add_data, add_engine, add_page, add_results


def add_commands(command: Command) -> None:
    """Of benchmarks: benchmark, table, groups, cards, keep; of others: rows, multitask, fuse."""
    sub = command(
        "benchmark",
        "Run what is missing of a published table.",
        "benchmark foundation --processes 2",
        _benchmark,
    )
    add_page(sub, "benchmark")
    sub.add_argument("--processes", type=int, default=1, help="processes of one thread each")
    sub.add_argument(
        "--minutes", type=float, default=None, help="a unit that takes longer is a failed row"
    )
    sub.add_argument(
        "--memory", type=float, default=None, help="GB of all processes, else no unit is begun"
    )
    sub.add_argument("--kept", default=None, help="a file of 'keep', whose units are done")
    sub.add_argument("--verbose", "-v", action="count", default=0, help=argparse.SUPPRESS)
    add_data(sub)

    sub = command("table", "Write a benchmark's table from its runs.", "table foundation", _table)
    add_page(sub, "benchmark")
    add_results(sub)

    sub = command(
        "groups",
        "Write how a benchmark's champions serve groups of users.",
        "groups ml_1m --k 5",
        _groups,
    )
    add_page(sub, "benchmark")
    sub.add_argument("--k", type=int, default=5, help="rows of the support")
    add_results(sub)
    sub.add_argument("--prepared_path", default="dataset/prepared", help="prepared folders")

    sub = command("cards", "Write a reproduction card per published learner.", "cards", _cards)
    add_results(sub, "where tables are, and cards are written")

    sub = command(
        "keep",
        "Write a benchmark's finished units to one file, for 'benchmark --kept'.",
        "keep melu",
        _keep,
    )
    add_page(sub, "benchmark")
    add_results(sub, "where the file is written")

    sub = command(
        "rows",
        "Run what is missing of a table of multi-task models of rows, split at random or by time, "
        "and write it.",
        "rows ml-100k",
        _rows,
    )
    add_page(sub, "rows")
    sub.add_argument("--processes", type=int, default=1, help="processes of one thread each")
    add_results(sub)
    add_engine(sub)

    sub = command(
        "multitask",
        "Run what is missing of a table of multi-task models of behaviours, whose splits are given "
        "or cut by time, and write it.",
        "multitask jd --data_path ../shared/data",
        _multitask,
    )
    add_page(sub, "multitask")
    add_results(sub)
    add_engine(sub)

    sub = command(
        "fuse",
        "Run what is missing of a table of fused rankings, and write it.",
        "fuse jd_fused --data_path ../shared/data",
        _fuse,
    )
    add_page(sub, "fusion")
    add_results(sub)
    add_engine(sub)


def _benchmark(options: argparse.Namespace) -> None:
    from recbole_meta.kept import put_back
    from recbole_meta.reading import read_benchmark
    from recbole_meta.sweep import run_benchmark

    if options.kept is not None:
        root = Path(options.runs) / read_benchmark(options.name).name
        print(f"{put_back(Path(options.kept), root)} files put back")
    run_benchmark(
        options.name, options.data_path, options.prepared_path, options.runs, options.processes,
        options.minutes, options.memory,
    )  # fmt: skip


def _table(options: argparse.Namespace) -> None:
    from recbole_meta.report import benchmark_table

    for path in benchmark_table(options.name, Path(options.runs), Path(options.results)):
        print(path)


def _groups(options: argparse.Namespace) -> None:
    from recbole_meta.groups import groups_table

    where = (Path(options.runs), Path(options.results), Path(options.prepared_path))
    for path in groups_table(options.name, *where, options.k):
        print(path)


def _cards(options: argparse.Namespace) -> None:
    from recbole_meta.cards import write_cards

    for path in write_cards(Path(options.results)):
        print(path)


def _keep(options: argparse.Namespace) -> None:
    from recbole_meta.evaluation.entries import benchmark_page
    from recbole_meta.kept import keep

    name, _ = benchmark_page(options.name)
    file = Path(options.results) / name / "units.tar.xz"
    print(f"{file}: {keep(Path(options.runs) / name, file)} units")


def _rows(options: argparse.Namespace) -> None:
    from recbole_meta.row_pages import run_rows

    where = (options.data_path, options.prepared_path, options.runs, options.results)
    for path in run_rows(options.name, *where, options.device, options.processes):
        print(path)


def _multitask(options: argparse.Namespace) -> None:
    from recbole_meta.multitask import run_multitask
    from recbole_meta.multitask_table import multitask_table

    where = (options.data_path, options.prepared_path, options.runs)
    run_multitask(options.name, *where, options.device)
    for path in multitask_table(options.name, Path(options.runs), Path(options.results)):
        print(path)


def _fuse(options: argparse.Namespace) -> None:
    from recbole_meta.fused import run_fused
    from recbole_meta.fused_table import fused_table

    where = (options.data_path, options.prepared_path, options.runs)
    run_fused(options.name, *where, options.device)
    for path in fused_table(options.name, Path(options.runs), Path(options.results)):
        print(path)
