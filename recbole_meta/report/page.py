"""``table.md``: a table per entry of a benchmark, rows are models, columns k."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from recbole_meta.report.rivals import RIVALS, Rival
from recbole_meta.report.units import LEAD, lead_of


@dataclass(frozen=True)
class Section:
    """What the page shows of an entry."""

    judging: dict[str, Any]
    primary: str
    rows: list[dict[str, Any]]
    absent: list[str]

    @property
    def lead(self) -> str:
        """The metric that champions are named by."""
        return lead_of({"metrics": {row["metric"] for row in self.rows}})

    @property
    def stream(self) -> tuple[str, str]:
        """The data set and the order of its rows: entries that share both may share a search."""
        return str(self.rows[0]["dataset"]), str(self.rows[0]["order"])


def markdown(
    name: str, sections: Sequence[Section], chosen: list[str], file: dict[str, Any]
) -> str:
    """One table per entry: rows are models, columns k, the lead metric of the primary query."""
    leads = dict.fromkeys(LEAD[section.lead] for section in sections)
    lines = [
        f"# {name}",
        "",
        f"Made by `recbole-meta benchmark {name}` and `recbole-meta table {name}`; all figures are",
        f"in `table.json`. {', '.join(leads)}, mean over users, and the gain over the best floor "
        "(above",
        "zero: better) with its 95 % interval (paired bootstrap). **Bold**: the champion of its",
        "group, named on valid.",
        "`>floor`, `>CF`, `>published`: better than the champion of the floors, of the fold-in",
        "rules and RecBole's models, of the published learners, at Holm-adjusted p < .01 (Wilcoxon",
        "over users); `<floor`, `<CF`, `<published`: worse.",
    ]
    for section in sections:
        about = section.rows[0]
        where = f"{about['dataset']}, {about['protocol']}, order {about['order']}"
        lines += ["", f"## {section.judging['name']}: {where}, {section.primary}", ""]
        lines += [_origin(section, sections, file), ""]
        lines += _pivot([r for r in section.rows if r["slice"] == section.primary], section.lead)
        if ours := _ours(section):
            lines += [
                "",
                "The champion of ours, and its gain over the champions of its rivals (p: Holm):",
                "",
                *ours,
            ]
        late = [r for r in section.rows if r["slice"] == "later"]
        if late:
            n = max(r["n_tasks"] for r in late)
            lines += ["", f"Slice `later` ({n} users):", "", *_pivot(late, section.lead)]
        failed = {r["model"]: r["failed"] for r in section.rows if "failed" in r}
        if failed:
            said = "; ".join(f"{model} ({error})" for model, error in failed.items())
            lines += ["", f"Failed: {said}."]
        if section.absent:
            lines += ["", f"Not finished, so not shown: {', '.join(section.absent)}."]
    lines += ["", "## Settings, chosen on valid", "", *chosen, ""]
    return "\n".join(lines)


def _origin(section: Section, sections: Sequence[Section], file: dict[str, Any]) -> str:
    """On what the settings of a section's rows were chosen; what trains had another choice."""
    trained = {row["name"]: row for row in file["trained"]["rows"]}
    here = {row["model"]: row["group"] for row in section.rows if row["model"] in trained}
    ours = any(group != "recbole" for group in here.values())
    said = (
        f"{'Closed forms' if ours else 'Ours'}: at most {file['trials']} trials per k and split, "
    )
    said += "on valid by this query."
    if not here:
        return said
    if not any(trained[model].get("grid") for model in here):
        return f"{said} What trains has the page's settings: none was searched."
    name = section.judging["name"]
    by_name = {other.judging["name"]: other for other in sections}
    source = section.judging.get("trained_from", name)
    stream = by_name[source].stream
    searches = sorted(file["trained"]["searches"], key=lambda s: s["setting"] != source)
    search = next(s for s in searches if by_name[s["setting"]].stream == stream)
    kinds = []
    if "recbole" in here.values():
        kinds.append(f" RecBole's models: one search of {search['trials']} trials at k = "
                     f"{search['shots']}")  # fmt: skip
    if ours:
        number = f"one search of {search['trials']} trials, " if not kinds else ""
        kinds.append(f" {'l' if kinds else 'L'}earners that train: {number}by the mean over k")
    said += ";".join(kinds) + (
        f", on valid of split {search['split']} of `{search['setting']}`, for all k and splits"
    )
    if search["setting"] not in (source, name):
        said += f"; `{search['setting']}` sees users and rows that the splits here hold back"
    elif len(section.judging["splits"]) > 1:
        said += "; users of that valid may be judged in other splits"
    said += "."
    if source != name:
        both = "search and early stopping" if search["setting"] != name else "early stopping"
        said += (
            f" They are the runs of `{source}`: **{both} chose by its query, "
            f"{by_name[source].primary}**, not by this one, to their disadvantage."
        )
    return said


def _pivot(rows: Sequence[dict[str, Any]], lead: str) -> list[str]:
    rows = [r for r in rows if r["metric"] == lead and r["split"] == "all"]
    shots = sorted({r["k"] for r in rows})
    n = max(r["n_tasks"] for r in rows)
    reads: dict[str, dict[str, None]] = {}
    for r in rows:
        reads.setdefault(r["model"], {})
        if r["reads"] is not None:  # what failed does not say
            reads[r["model"]].setdefault(r["reads"])
    mixed = len({tuple(each) for each in reads.values() if each}) > 1
    head = ["group", f"model ({n} users)", *(["reads"] if mixed else [])]
    head += [f"k = {k}" for k in shots]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for model, group in dict.fromkeys((r["model"], r["group"]) for r in rows):
        cells = [
            _cell(next((r for r in rows if r["model"] == model and r["k"] == k), None))
            for k in shots
        ]
        said = [" or ".join(reads[model])] if mixed else []
        lines.append(f"| {' | '.join([group, model, *said, *cells])} |")
    return lines


def _ours(section: Section) -> list[str]:
    """A row per rival of the champion of ours: its name, the gain with its interval, Holm's p."""
    found = {
        row["k"]: row
        for row in section.rows
        if row["champion"] and row["group"] == "ours"
        if (row["slice"], row["metric"]) == (section.primary, section.lead)
    }
    lines = []
    for rival in RIVALS:
        cells = [_over(row, rival) for row in found.values()]
        lines += [f"| over {rival.title} | {' | '.join(cells)} |"] if any(cells) else []
    if not lines:
        return []
    head = [f"| | {' | '.join(f'k = {k}' for k in found)} |", "|---" * (len(found) + 1) + "|"]
    named = " | ".join(str(row["model"]) for row in found.values())
    return [*head, f"| champion | {named} |", *lines]


def _over(row: dict[str, Any], rival: Rival) -> str:
    if row[rival.name] is None:
        return ""
    gain, low, high = (row[column] for column in rival.gain)
    return f"{row[rival.name]}: {gain:+.3f} [{low:+.3f}, {high:+.3f}], p {row[rival.p]:.2g}"


def _cell(row: dict[str, Any] | None) -> str:
    if row is None or "failed" in row:
        return "" if row is None else "failed"
    text = f"{row['mean']:.3f}"
    if row["champion"]:
        text = f"**{text}**"
    if row["gain_over_floor"] is not None:
        text += (
            f" ({row['gain_over_floor']:+.3f} [{row['gain_low']:+.3f}, {row['gain_high']:+.3f}])"
        )
    tests = [("p_floor", "gain_over_floor", "floor")]
    tests += [(rival.p, rival.gain[0], rival.mark) for rival in RIVALS]
    for p, gain, against in tests:
        if row[p] is not None and row[p] < 0.01:
            text += f" {'>' if row[gain] > 0 else '<'}{against}"
    return text
