"""How many users of valid, where settings and champions are chosen, are judged in another split?

    python benchmarks/shared_users.py learners

Prints it for each entry of a benchmark, from its prepared folders.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from recbole_meta.benchmark import Judging
from recbole_meta.reading import read_benchmark
from recbole_meta.unit import Site


def shared_users(site: Site, judging: Judging) -> tuple[int, int]:
    """The users who are valid in a split and test in another one, and all who are valid."""
    prepared = [site.prepared(judging, split) for split in judging.splits]
    valid = [set(each.tasks("valid")) for each in prepared]
    test = [set(each.tasks("test")) for each in prepared]
    shared = {
        user
        for n, chosen in enumerate(valid)
        for m, judged in enumerate(test)
        if m != n
        for user in chosen & judged
    }
    return len(shared), len(set().union(*valid))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", help="a file of properties/benchmark")
    parser.add_argument("--data_path", default="dataset")
    parser.add_argument("--prepared_path", default="dataset/prepared")
    given = parser.parse_args(arguments)
    benchmark = read_benchmark(given.name)
    site = Site(benchmark, given.data_path, given.prepared_path, Path("runs"))
    for judging in benchmark.settings:
        shared, valid = shared_users(site, judging)
        print(f"{judging.name}: {shared} of {valid} users of valid are judged in another split")


if __name__ == "__main__":
    main()
