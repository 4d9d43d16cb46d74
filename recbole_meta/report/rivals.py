"""Whom the champions are tested against, beside the champion of the floors."""

from typing import NamedTuple


class Rival(NamedTuple):
    """The best on valid of some groups, and how the table names what is measured against it."""

    name: str  # of its columns: ``gain_over_cf``, ``cf_low``, ``cf_high``, ``p_cf``
    mark: str  # in a cell: ``>CF``
    title: str
    groups: tuple[str, ...]  # whose champion it is
    tested: tuple[str, ...]  # groups whose champions are tested against it

    @property
    def gain(self) -> tuple[str, str, str]:
        """The columns of the gain over it and of its interval."""
        return f"gain_over_{self.name}", f"{self.name}_low", f"{self.name}_high"

    @property
    def p(self) -> str:
        return f"p_{self.name}"

    @property
    def columns(self) -> tuple[str, ...]:
        """Who it is, the gain over it, the interval, and p."""
        return self.name, *self.gain, self.p


RIVALS = (
    Rival(
        "cf", "CF", "fold-in rules and RecBole's models", ("fold-in", "recbole"),
        ("ours", "published"),
    ),
    Rival("published", "published", "published learners", ("published",), ("ours",)),
)  # fmt: skip
