"""Commands about a protocol: what can be named, its files, models on it."""

import argparse
import sys
from pathlib import Path
from typing import Any

from recbole_meta.cli.parsing import SETTINGS_OF_BOTH, Command, add_data, add_device, add_protocol
from recbole_meta.errors import SettingError
from recbole_meta.settings import load_yaml, names

DEFAULT_MODELS = (
    "Pop,QueryPop,ItemKNNFoldIn,EASEFoldIn,ItemKNN,EASE,BPR,LightGCN,NeuMF,PriorRidge,EpisodicRidge"
)


def add_commands(command: Command) -> None:
    """list, prepare, run, recompute."""
    sub = command("list", "Names that can be used.", "list models", _list)
    sub.add_argument(
        "what",
        choices=["models", "protocols", "datasets", "benchmarks", "rows", "multitask", "fusion"],
    )
    add_data(sub)

    sub = command(
        "prepare",
        "Make a protocol's files.",
        "prepare -d ml-100k -p user_cold_5 --split=1",
        _prepare,
        "--key=value changes a setting of the protocol.",
    )
    add_data(sub)
    add_protocol(sub)

    sub = command(
        "run",
        "Judge models on a protocol.",
        "run -m BPR,PriorRidge -d ml-100k -p user_cold_5",
        _run,
        SETTINGS_OF_BOTH,
    )
    add_run(sub)

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


def add_run(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(function=_run, takes_settings=True)
    parser.add_argument("--model", "-m", default=DEFAULT_MODELS, help="names, separated by commas")
    add_protocol(parser)
    parser.add_argument("--config_files", default="", help="YAML files, separated by blanks")
    parser.add_argument(
        "--seed", type=int, default=2020, help="of the models; --split=N draws other users"
    )
    parser.add_argument("--results", default="runs", help="folder of the runs")
    add_data(parser)
    add_device(parser)
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
        from recbole_meta.data.source import dataset_names

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


def _recompute(options: argparse.Namespace) -> None:
    from recbole_meta.evaluation.recompute import recompute

    for query, metrics in recompute(Path(options.folder), Path(options.prepared_path)).items():
        print(query, " ".join(f"{name} {value:.6f}" for name, value in metrics.items()))
