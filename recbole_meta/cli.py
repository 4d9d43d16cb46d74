"""The command line: ``recbole-meta`` and the runner that takes what RecBole's runner takes."""

import argparse
import json
import logging
import os
import pickle
import shutil
import sys
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import yaml

from recbole_meta.errors import RecboleMetaError, SettingError
from recbole_meta.settings import YamlLoader, load_yaml, names

DEFAULT_MODELS = (
    "Pop,QueryPop,ItemKNNFoldIn,EASEFoldIn,ItemKNN,EASE,BPR,LightGCN,NeuMF,PriorRidge,EpisodicRidge"
)

_OF_TRAINING = ("last.pt", "best.pt", "model.pt")  # what a training leaves beside its runs
_SETTINGS_OF_BOTH = "--key=value changes a setting of the protocol or of the models that read it."


class _Formatter(argparse.ArgumentDefaultsHelpFormatter):
    """Shows a default where there is one."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return super()._get_help_string(action) if action.default else action.help


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line; takes ``--s=1`` for a setting, not for ``--seed``."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, allow_abbrev=False, **kwargs)

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message}\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; an error of the user's is one line and exit code 2."""
    return _guarded(_parser(), sys.argv[1:] if arguments is None else arguments)


def run_main(arguments: Sequence[str] | None = None) -> int:
    """``run_recbole_meta.py``: the command ``run`` alone."""
    return _guarded(_run_parser(), sys.argv[1:] if arguments is None else arguments)


def _run_parser() -> argparse.ArgumentParser:
    parser = _Parser(
        "run_recbole_meta.py",
        description="Judge models on a cold-start protocol (default: ml-100k, user_cold_5). "
        + _SETTINGS_OF_BOTH,
        epilog="example: python run_recbole_meta.py -m BPR,PriorRidge --order random --split=1",
        formatter_class=_Formatter,
    )
    _add_run(parser)
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


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        "recbole-meta",
        description="Cold-start recommenders on RecBole, judged honestly.",
        epilog="example: recbole-meta run -m BPR,PriorRidge -d ml-100k -p user_cold_5",
    )
    commands = parser.add_subparsers(required=True, metavar="command")

    def command(name: str, about: str, example: str, function: Any, settings: str = "") -> Any:
        sub = commands.add_parser(
            name, help=about, description=f"{about} {settings}",
            epilog=f"example: recbole-meta {example}", formatter_class=_Formatter,
        )  # fmt: skip
        sub.set_defaults(function=function, takes_settings=bool(settings))
        return sub

    sub = command("list", "Names that can be used.", "list models", _list)
    sub.add_argument(
        "what",
        choices=["models", "protocols", "datasets", "benchmarks", "rows", "multitask", "fusion"],
    )
    _add_data(sub)

    sub = command(
        "prepare",
        "Make a protocol's files.",
        "prepare -d ml-100k -p user_cold_5 --split=1",
        _prepare,
        "--key=value changes a setting of the protocol.",
    )
    _add_data(sub)
    _add_protocol(sub)

    sub = command(
        "run",
        "Judge models on a protocol.",
        "run -m BPR,PriorRidge -d ml-100k -p user_cold_5",
        _run,
        _SETTINGS_OF_BOTH,
    )
    _add_run(sub)

    sub = command(
        "benchmark",
        "Run what is missing of a published table.",
        "benchmark foundation --processes 2",
        _benchmark,
    )
    sub.add_argument("name", help="a file of properties/benchmark, or a path ending in .yaml")
    sub.add_argument("--processes", type=int, default=1, help="processes of one thread each")
    sub.add_argument("--runs", default="runs", help="where finished work is kept")
    sub.add_argument(
        "--minutes", type=float, default=None, help="a unit that takes longer is a failed row"
    )
    sub.add_argument(
        "--memory", type=float, default=None, help="GB of all processes, else no unit is begun"
    )
    sub.add_argument("--kept", default=None, help="a file of 'keep', whose units are done")
    sub.add_argument("--verbose", "-v", action="count", default=0, help=argparse.SUPPRESS)
    _add_data(sub)

    sub = command("table", "Write a benchmark's table from its runs.", "table foundation", _table)
    sub.add_argument("name", help="a file of properties/benchmark, or a path ending in .yaml")
    sub.add_argument("--runs", default="runs", help="where finished work is kept")
    sub.add_argument("--results", default="results", help="where the table is written")

    sub = command(
        "groups",
        "Write how a benchmark's champions serve groups of users.",
        "groups ml_1m --k 5",
        _groups,
    )
    sub.add_argument("name", help="a file of properties/benchmark, or a path ending in .yaml")
    sub.add_argument("--k", type=int, default=5, help="rows of the support")
    sub.add_argument("--runs", default="runs", help="where finished work is kept")
    sub.add_argument("--results", default="results", help="where the table is written")
    sub.add_argument("--prepared_path", default="dataset/prepared", help="prepared folders")

    sub = command("cards", "Write a reproduction card per published learner.", "cards", _cards)
    sub.add_argument("--results", default="results", help="where tables are, and cards are written")

    sub = command(
        "rows",
        "Run what is missing of a table of multi-task models of rows, split at random or by time, "
        "and write it.",
        "rows ml-100k",
        _rows,
    )
    sub.add_argument("name", help="a file of properties/rows, or a path ending in .yaml")
    sub.add_argument("--processes", type=int, default=1, help="processes of one thread each")
    sub.add_argument("--runs", default="runs", help="where finished work is kept")
    sub.add_argument("--results", default="results", help="where the table is written")
    sub.add_argument("--device", default="cpu", help="cpu | cuda | cuda:<n>")
    sub.add_argument("--verbose", "-v", action="count", default=0, help="say what is done")
    _add_data(sub)

    sub = command(
        "multitask",
        "Run what is missing of a table of multi-task models of behaviours, whose splits are given "
        "or cut by time, and write it.",
        "multitask jd --data_path ../shared/data",
        _multitask,
    )
    sub.add_argument("name", help="a file of properties/multitask, or a path ending in .yaml")
    sub.add_argument("--runs", default="runs", help="where finished work is kept")
    sub.add_argument("--results", default="results", help="where the table is written")
    sub.add_argument("--device", default="cpu", help="cpu | cuda | cuda:<n>")
    sub.add_argument("--verbose", "-v", action="count", default=0, help="say what is done")
    _add_data(sub)

    sub = command(
        "fuse",
        "Run what is missing of a table of fused rankings, and write it.",
        "fuse jd_fused --data_path ../shared/data",
        _fuse,
    )
    sub.add_argument("name", help="a file of properties/fusion, or a path ending in .yaml")
    sub.add_argument("--runs", default="runs", help="where finished work is kept")
    sub.add_argument("--results", default="results", help="where the table is written")
    sub.add_argument("--device", default="cpu", help="cpu | cuda | cuda:<n>")
    sub.add_argument("--verbose", "-v", action="count", default=0, help="say what is done")
    _add_data(sub)

    sub = command(
        "keep",
        "Write a benchmark's finished units to one file, for 'benchmark --kept'.",
        "keep melu",
        _keep,
    )
    sub.add_argument("name", help="a file of properties/benchmark, or a path ending in .yaml")
    sub.add_argument("--runs", default="runs", help="where finished work is kept")
    sub.add_argument("--results", default="results", help="where the file is written")

    sub = command(
        "recompute",
        "Compute a run's metrics anew from its files.",
        "recompute runs/ml-100k-user_cold_5-time-0/Pop-seed2020-k5",
        _recompute,
    )
    sub.add_argument("folder", help="the folder of a run")
    sub.add_argument(
        "--prepared_path", default="dataset/prepared", help="where the prepared folders are"
    )

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

    sub = command(
        "clean",
        "Delete prepared folders and runs.",
        "clean --prepared_path dataset/prepared --runs runs --yes",
        _clean,
    )
    sub.add_argument(
        "--prepared_path", default="dataset/prepared", help="its prepared folders are deleted"
    )
    sub.add_argument("--runs", default="runs", help="runs below it are deleted")
    sub.add_argument(
        "--yes", action="store_true", help="delete; without it, only say what would be deleted"
    )
    return parser


def _add_data(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data_path", default="dataset", help="folder of the data sets' folders")
    parser.add_argument(
        "--prepared_path", default="dataset/prepared", help="folder of the prepared folders"
    )


def _add_protocol(parser: argparse.ArgumentParser) -> None:
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


def _add_run(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(function=_run, takes_settings=True)
    parser.add_argument("--model", "-m", default=DEFAULT_MODELS, help="names, separated by commas")
    _add_protocol(parser)
    parser.add_argument("--config_files", default="", help="YAML files, separated by blanks")
    parser.add_argument(
        "--seed", type=int, default=2020, help="of the models; --split=N draws other users"
    )
    parser.add_argument("--results", default="runs", help="folder of the runs")
    _add_data(parser)
    parser.add_argument("--device", default="cpu", help="cpu | cuda | cuda:<n>")
    parser.add_argument(
        "--threads",
        type=int,
        default=None,
        help="threads of torch, all cores if not given; OMP_NUM_THREADS bounds numpy's",
    )  # fmt: skip
    parser.add_argument("--json", default=None, help="write the results to this file, too")
    parser.add_argument(
        "--save", action="store_true", help="keep fitted models of ours for 'adapt', as model.pt"
    )
    parser.add_argument("--quiet", "-q", action="store_true", help="no progress bar")
    parser.add_argument(
        "--verbose",
        "-v",
        action="count",
        default=0,
        help="say what is read, with which settings, how long it takes; -vv: tracebacks",
    )


def _list(options: argparse.Namespace) -> None:
    if options.what == "models":
        from recbole_meta.compat import recbole_model_names
        from recbole_meta.model import our_models

        for name, cls in sorted(our_models().items(), key=lambda pair: (pair[1].group, pair[0])):
            judged = ", ".join(cls.feedback)
            print(f"{cls.group:10} {name:16} {judged}")
        for name in recbole_model_names():
            shown = f"recbole.{name}" if name in our_models() else name
            tested = (
                ""
                if name in names("recbole") or name == "Pop"
                else "  (without a page of ours: untried)"
            )
            print(f"{'recbole':10} {shown}{tested}")
    elif options.what == "datasets":
        from recbole_meta.data.prepare import dataset_names

        print(*dataset_names(options.data_path), sep="\n")
    else:
        kind = {"protocols": "protocol", "benchmarks": "benchmark"}.get(options.what, options.what)
        for name in names(kind):
            from recbole_meta.settings import properties_folder

            first = (properties_folder() / kind / f"{name}.yaml").read_text("utf-8").splitlines()[0]
            print(f"{name:22} {first.removeprefix('# ')}")


def _changed(options: argparse.Namespace) -> dict[str, Any]:
    order = {"order": options.order} if options.order else {}
    return order | options.settings


def _prepare(options: argparse.Namespace) -> None:
    from recbole_meta.data.prepare import prepare, read_protocol
    from recbole_meta.data.prepared import open_prepared

    protocol = read_protocol(options.protocol, **_changed(options))
    folder = prepare(
        options.dataset, protocol, options.protocol, options.data_path, options.prepared_path
    )
    about = open_prepared(folder).description
    counts = about["counts"]
    tasks = f"{about['task']}s"
    share = counts[f"eligible_{tasks}"] / counts[tasks]
    print(folder)
    print(
        f"{counts['rows']} rows, {counts['users']} users, {counts['items']} items "
        f"({share:.0%} of the {tasks} eligible); "
        f"cold: {len(about['tasks']['valid'])} valid, {len(about['tasks']['test'])} test"
    )


def _run(options: argparse.Namespace) -> None:
    from tqdm import tqdm
    from tqdm.contrib.logging import logging_redirect_tqdm

    from recbole_meta.choice import check_keys, choose_model, knows
    from recbole_meta.quick_start import check_run, protocol_settings, run, split_settings
    from recbole_meta.terminal import terminal_table
    from recbole_meta.tracking import check_writable, json_text, write_atomically

    given: dict[str, Any] = {}
    for file in options.config_files.split():
        given |= load_yaml(Path(file))
    given |= _changed(options)
    models = list(dict.fromkeys(name.strip() for name in options.model.split(",") if name.strip()))
    if not models:
        raise SettingError("--model names no model.")
    choices = {name: choose_model(name) for name in models}
    ours, theirs = split_settings(options.protocol, given)
    check_keys(list(choices.values()), theirs, protocol_settings(options.protocol))
    read = {
        name: {key: value for key, value in theirs.items() if knows(choice, key)}
        for name, choice in choices.items()
    }
    for name in models:  # all of it before the first long work
        save = options.save and choices[name].ours
        check_run(name, options.protocol, ours | read[name], options.device, options.threads, save)
    check_writable(Path(options.results))
    if options.json:
        check_writable(Path(options.json).parent, make=False)
        if Path(options.json).exists() and not Path(options.json).is_file():
            raise SettingError(f"--json names a file, found {options.json}, which is none.")
    results = {}
    hidden = True if options.quiet else None  # None: and where no terminal shows it
    with (
        logging_redirect_tqdm(),
        tqdm(total=len(models), disable=hidden, file=sys.stderr, unit="model") as bar,
    ):
        for name in models:
            bar.set_description(f"{name:16}")
            results[name] = run(
                name, options.dataset, options.protocol,
                settings=ours | read[name],
                seed=options.seed, data_path=options.data_path, prepared_path=options.prepared_path,
                results=options.results, device=options.device, threads=options.threads,
                progress=lambda text: bar.set_postfix_str(text),
                save=options.save and choices[name].ours,
            )  # fmt: skip
            bar.set_postfix_str("")
            bar.update()
    folders = [Path(entry["folder"]) for r in results.values() for entry in r["runs"]]
    table = terminal_table(folders, theirs)
    try:
        if options.json:
            write_atomically(Path(options.json).resolve(), json_text(results).encode())
    except OSError as error:
        raise SettingError(f"Cannot write {options.json}: {error.strerror}.") from error
    finally:
        print(table)
        print(f"Runs: {options.results}")
        for name, result in results.items():
            if result["saved"]:
                print(f"{name}: {result['saved']}")


def _benchmark(options: argparse.Namespace) -> None:
    from recbole_meta.benchmark import read_benchmark
    from recbole_meta.kept import put_back
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


def _keep(options: argparse.Namespace) -> None:
    from recbole_meta.evaluation.entries import benchmark_page
    from recbole_meta.kept import keep

    name, _ = benchmark_page(options.name)
    file = Path(options.results) / name / "units.zip"
    print(f"{file}: {keep(Path(options.runs) / name, file)} units")


def _recompute(options: argparse.Namespace) -> None:
    from recbole_meta.evaluation.recompute import recompute

    for query, metrics in recompute(Path(options.folder), Path(options.prepared_path)).items():
        print(query, " ".join(f"{name} {value:.6f}" for name, value in metrics.items()))


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


def _clean(options: argparse.Namespace) -> None:
    """What is known as ours by its content, then the folders that this leaves empty."""
    from recbole_meta.tracking import LOCK

    root = Path(options.runs)
    prepared = [path.parent for path in Path(options.prepared_path).glob("*/protocol.json")]
    prepared = [path for path in prepared if (path / f"{path.name}.test.inter").is_file()]
    runs = [path.parent for path in root.rglob("result.json")]
    runs = [path for path in runs if (path / "tasks.npz").is_file()]
    units = [path for path in root.rglob("*.json") if path.parent not in runs and _is_unit(path)]
    models = [path for name in _OF_TRAINING for path in root.rglob(name) if _is_trained(path)]
    found = [*sorted(prepared), *sorted(runs), *sorted(units), *sorted(models)]
    if options.yes:
        locks = list(Path(options.prepared_path).glob(".*.lock"))
        locks += {path.parent / LOCK for path in runs if (path.parent / LOCK).exists()}
        _delete(found)
        for beside in [*root.rglob("*.json.lock"), *root.rglob("*.json.failed")]:
            locks += [beside] if not beside.with_suffix("").exists() else []
        locks += [path for unit in units for path in _of_sweep(unit) if path.is_file()]
        _delete(locks)
        gone = [*runs, *units, *models, *locks]
        left = sorted({up for path in gone for up in path.parents}, reverse=True)
        for folder in left:
            if folder.is_relative_to(root) and folder != Path() and not any(folder.iterdir()):
                folder.rmdir()
    for path in found:  # said last: deleting does not end where nobody reads on
        print(f"{'deleted' if options.yes else 'would delete'} {path}")
    if not found:
        print("nothing to delete")


def _of_sweep(unit: Path) -> Iterable[Path]:
    """What a sweep keeps beside a unit, and what it says of all of them."""
    from recbole_meta.progress import LOG
    from recbole_meta.room import ROOM
    from recbole_meta.study import JOURNAL

    yield from unit.parent.glob(f"tpe-*{JOURNAL}*")
    for root in unit.parents[2:4]:  # <entry>/<split>/<unit>, search/<entry>/<row>/<trial>
        if (root / LOG).is_file():
            yield from (root / LOG, *(root / ROOM).glob("*"))


def _delete(paths: Iterable[Path]) -> None:
    for path in paths:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _is_trained(path: Path) -> bool:
    """Whether this is a checkpoint or a saved model of ours, of whatever format."""
    import torch

    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError):
        return False
    ours = isinstance(content, dict) and "format" in content
    return ours and ("identity" in content or content.get("kind") == "model")


def _is_unit(path: Path) -> bool:
    """Whether this is what a benchmark writes when a unit of its work is done."""
    try:
        content = json.loads(path.read_text("utf-8"))
    except ValueError:
        return False
    return (
        isinstance(content, dict) and "seconds" in content and bool({"runs", "valid"} & {*content})
    )


if __name__ == "__main__":
    sys.exit(main())
