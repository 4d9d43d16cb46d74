# %% [markdown]
# # Why these films?
#
# Train a learner on people who are known, adapt it to someone who is not by a few films, and ask
# which of them brought each recommendation. Cells begin with `# %%`, as editors and jupytext read
# them; as a script this takes seconds, with CNP instead a minute or two:
#
#     python examples/newcomer.py
#     python examples/newcomer.py --model CNP
#
# The prepared data and the trained model are left in `dataset/prepared` and `runs` of the folder
# that one is in.

# %%
import argparse
import sys
from collections.abc import Mapping, Sequence
from statistics import fmean

import recbole_meta
from recbole_meta.data.atomic import AtomicFile
from recbole_meta.data.prepare import find_dataset
from recbole_meta.quick_start import run

parser = argparse.ArgumentParser(description="Which films of a newcomer brought which others?")
parser.add_argument("--model", default="PriorRidge", help="one of ours that learns from likes")
in_notebook = "ipykernel" in sys.modules  # its arguments are not for us
MODEL = parser.parse_args([] if in_notebook else None).model

LIKES = [
    "Toy Story (1995)",
    "Twister (1996)",
    "Alien (1979)",
    "Casablanca (1942)",
    "Citizen Kane (1941)",
]
ONE_MORE = "English Patient, The (1996)"

# %% [markdown]
# ## Films by name
#
# A model speaks in the tokens of its data set. What they are called stands in `ml-100k.item`; a few
# films are in there twice, with the same year, and keep the first token.

# %%
file = AtomicFile(find_dataset("ml-100k", "dataset") / "ml-100k.item")
rows = [dict(zip(file.columns, line.split("\t"))) for line in file.lines]
name = {row["item_id"]: f"{row['movie_title']} ({row['release_year']})" for row in rows}
token = {name[item]: item for item in reversed(name)}


def show(title: str, head: Sequence[str], lines: Sequence[Sequence[str]]) -> None:
    """Print a table, its columns as wide as they need to be."""
    widths = [max(map(len, column)) for column in zip(head, *lines)]
    print(f"\n{title}\n")
    for line in [head, ["-" * width for width in widths], *lines]:
        print("  ".join(f"{cell:{width}}" for cell, width in zip(line, widths)).rstrip())


# %% [markdown]
# ## Train, load, adapt
#
# `save=True` keeps the learner in a file, which is all that serving needs. Without any support it
# gives its prior: the zero-shot ranking, the same for everybody.

# %%
saved = run(MODEL, "ml-100k", "user_cold_5", save=True)["saved"]
model = recbole_meta.load(saved)
nobody = model.adapt()
newcomer = model.adapt(likes=[token[film] for film in LIKES])

lines = [
    [str(place), name[before], name[item], f"{score:.4f}"]
    for place, ((before, _), (item, score)) in enumerate(zip(nobody.rank(), newcomer.rank()), 1)
]
show(f"{MODEL}: the first ten", ["", "zero-shot", f"after {len(LIKES)} likes", "score"], lines)

# %% [markdown]
# ## The films that moved them most
#
# `explain` adapts once more without each film of the support. What a score loses without it is what
# the film moved; below zero, the score is lower for it.


# %%
def reasons(moved: Mapping[str, float]) -> list[str]:
    """The films that moved a score most, second most and least."""
    films = sorted(moved, key=lambda item: -moved[item])
    return [f"{moved[item]:+.4f} {name[item]}" for item in (films[0], films[1], films[-1])]


explained = newcomer.explain()
head = ["film", "most", "then", "least"]
lines = [[name[item], *reasons(moved)] for item, _, moved in explained]
show("What moved their scores", head, lines)

# %% [markdown]
# A film may move all scores alike, which moves no ranking: CNP's do, and then the same film is the
# reason for everything. What a film moved, less its mean over all candidates, says what it did for
# this one.

# %%
everything = newcomer.explain(len(model.items))
mean = {token[film]: fmean(moved[token[film]] for _, _, moved in everything) for film in LIKES}
lines = [
    [name[item], *reasons({film: moved[film] - mean[film] for film in moved})]
    for item, _, moved in explained
]
show("The same, less a film's mean over all candidates", head, lines)

# %% [markdown]
# ## One more like
#
# A newcomer is a value: `update` gives another one and leaves the first as it was, so that both can
# be asked. The new like says how much of each score is its own.

# %%
updated = newcomer.update(likes=[token[ONE_MORE]])
place = {item: n for n, (item, _) in enumerate(newcomer.rank(len(model.items)), 1)}
lines = []
for n, (item, score, moved) in enumerate(updated.explain(), 1):
    by = f"{moved[token[ONE_MORE]]:+.4f}"
    lines.append([str(n), str(place[item]), name[item], f"{score:.4f}", by])
show(f"After {ONE_MORE}, too", ["now", "before", "film", "score", "moved by it"], lines)

after = {item for item, _ in updated.rank()}
gone = [name[item] for item, _ in newcomer.rank() if item not in after]
print(f"\nNo longer among the first ten: {'; '.join(gone) or 'none of them'}")
