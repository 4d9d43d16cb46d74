"""What is left of a gain on users who had no part in any choice made by hand?

Where settings were tried by hand on the valid users of some splits, or tables of these splits were
read before the page was as it is now, other splits have some of the same users. Here the champions
that the table tests against each other, ours and that of the fold-in rules and RecBole's models,
are compared once more on users who were neither valid nor test users of these splits; p: Wilcoxon
over users, Holm over all (entry, k) here.

    python benchmarks/fresh_users.py douban_book --splits 0 --data_path ../shared/data

Writes ``results/<name>/fresh_users.json`` and prints it as a table.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from recbole_meta.benchmark import Judging
from recbole_meta.errors import SettingError
from recbole_meta.evaluation.entries import Entry, Values, benchmark_page, champion, gain, paired
from recbole_meta.evaluation.significance import holm, wilcoxon_p
from recbole_meta.reading import read_benchmark
from recbole_meta.report.units import entries_of, lead_of, primary_of
from recbole_meta.unit import Site


def known_users(site: Site, judging: Judging, splits: Sequence[int]) -> set[str]:
    """The valid and test users of these splits of an entry."""
    known: set[str] = set()
    for split in splits:
        prepared = site.prepared(judging, split)
        known |= {*prepared.tasks("valid"), *prepared.tasks("test")}
    return known


def compared(entries: Sequence[Entry], query: str, known: set[str]) -> dict[str, Any] | None:
    """Ours over the champion of rules and RecBole's models on the other users; None: one of the
    two is missing.
    """
    metric = lead_of(entries[0].runs[0].result)
    ours = champion(entries, ["ours"], query, metric)
    rule = champion(entries, ["fold-in", "recbole"], query, metric)
    if ours is None or rule is None:
        return None
    values, theirs = (_without(e.values(query, metric), known) for e in (ours, rule))
    interval = gain(metric, values, theirs)
    return {
        "ours": ours.name, "rule": rule.name, "n_users": len(values), "metric": metric,
        "gain": round(interval.mean, 4), "low": round(interval.low, 4),
        "high": round(interval.high, 4), "p": wilcoxon_p(*paired(values, theirs)),
    }  # fmt: skip


def _without(values: Values, known: set[str]) -> Values:
    return {user: value for user, value in values.items() if user not in known}


def fresh_users(name: str, splits: Sequence[int], site: Site) -> list[dict[str, Any]]:
    """A row for each entry and k; the p-values are adjusted over all of them."""
    page, rows = benchmark_page(name)[1], []
    for entry, judging in zip(page["settings"], site.benchmark.settings, strict=True):
        if not set(splits) < set(judging.splits):
            raise SettingError(
                f"'{judging.name}' has the splits {list(judging.splits)}: 'splits' must be some of "
                f"them and not all, found {list(splits)}."
            )
        known, by_k = known_users(site, judging, splits), entries_of(site.folder, entry, page)
        for k, entries in sorted(by_k.items()):
            if k and (row := compared(entries, primary_of(by_k), known)):
                rows.append({"entry": judging.name, "k": k, **row})
    adjusted = holm({place: row["p"] for place, row in enumerate(rows)})
    return [row | {"p": float(f"{adjusted[place]:.3g}")} for place, row in enumerate(rows)]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", help="a file of properties/benchmark")
    parser.add_argument("--splits", required=True, help="those that settings were chosen on: 0,1")
    parser.add_argument("--data_path", default="dataset")
    parser.add_argument("--prepared_path", default="dataset/prepared")
    parser.add_argument("--runs", default="runs")
    parser.add_argument("--results", default="results")
    given = parser.parse_args(arguments)
    benchmark = read_benchmark(given.name)
    site = Site(benchmark, given.data_path, given.prepared_path, Path(given.runs))
    rows = fresh_users(given.name, [int(split) for split in given.splits.split(",")], site)
    file = Path(given.results) / benchmark.name / "fresh_users.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(rows, indent=1) + "\n", "utf-8")
    print("| entry | k | ours | over | users | gain | p |\n|---|---|---|---|---|---|---|")
    for row in rows:
        interval = f"{row['gain']:+.4f} [{row['low']:+.4f}, {row['high']:+.4f}]"
        print(f"| {row['entry']} | {row['k']} | {row['ours']} | {row['rule']} | {row['n_users']} "
              f"| {interval} | {row['p']:.2g} |")  # fmt: skip


if __name__ == "__main__":
    main()
