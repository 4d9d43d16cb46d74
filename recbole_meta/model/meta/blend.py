r"""
Blend
################################################
Several learners that differ say more than the best of them: Bell, Koren and Volinsky. "The BellKor
solution to the Netflix Prize." 2007.
"""

import typing
from dataclasses import dataclass
from typing import Any

import torch
from recbole.data.interaction import Interaction
from torch import Tensor, nn

from recbole_meta.episode import Examples
from recbole_meta.errors import SettingError, nearest
from recbole_meta.model import our_models
from recbole_meta.model.meta_recommender import MetaRecommender, State, TrainedSettings
from recbole_meta.settings import Over, Weight, load_properties, read_settings


@dataclass(frozen=True)
class BlendSettings(TrainedSettings):
    members: dict[str, dict[str, Any]]  # learners; of each all settings, those of its page too
    weights: dict[str, Weight]  # of the members' scores; 1 where one is not named

    def __post_init__(self) -> None:
        known = [name for name, kind in our_models().items() if _may_join(kind)]
        for name in (*self.members, *self.weights):
            if name not in known:
                raise SettingError(f"Blend: no member can be '{name}'. {nearest(name, known)}")
        for name in self.weights:
            if name not in self.members:
                raise SettingError(
                    f"Blend: 'weights' names '{name}'. {nearest(name, self.members)}"
                )
        if not any(self.weights.get(name, 1.0) for name in self.members):
            raise SettingError("Blend: it has no member with a weight above 0.")
        whole = {name: load_properties("model", name) | own for name, own in self.members.items()}
        object.__setattr__(self, "members", whole)
        trained = [_read_member(name, given).epochs for name, given in self.members.items()]
        if self.epochs and not any(trained):
            raise SettingError("Blend: no member trains, so 'epochs' must be 0.")

    @property
    def draws_at_random(self) -> bool:
        members = (_read_member(name, given) for name, given in self.members.items())
        return any(member.draws_at_random for member in members)


def _may_join(kind: type) -> bool:
    return not issubclass(kind, Blend) and "implicit" in kind.feedback


def _read_member(name: str, given: dict[str, Any]) -> Any:
    """The settings of a member, of those that a member may have."""
    kind, where = our_models()[name], f"Blend, member '{name}'"
    settings = read_settings(typing.get_type_hints(kind)["settings"], given, where)
    reads = kind.reads_with(settings, "implicit", "user")
    if reads != "ids" or getattr(settings, "support_negatives", 0):
        raise SettingError(
            f"{where} reads {reads}: members read ids alone, without 'support_negatives'."
        )
    return settings


class Blend(MetaRecommender):
    r"""A sum of what several learners say, each on the scale of the catalogue.

    .. math::
        score_i = \sum_j w_j \frac{f_j(s)_i - mean_{i'} f_j(s)_{i'}}{std_{i'} f_j(s)_{i'}}

    f_j(s) [I]: all scores of member j for a support s; 0 where it says the same of all items. Those
    that train do so beside each other, on the same episodes, by the sum of their losses: each gets
    the gradient that it would get alone, where none is clipped. Epochs, steps and rates are those
    of the blend, which chooses the epoch. A task's state is its ranking.

    Members read ids alone, and the support as it is; at most one has fields of embeddings, so that
    a saved blend holds them once.
    """

    sides = ("user",)
    settings: BlendSettings

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        members, weights = self.settings.members, self.settings.weights
        self.weights = [weights.get(name, 1.0) for name in members]
        known = our_models()
        self.members = nn.ModuleDict(
            {name: known[name](Over(config, own), dataset) for name, own in members.items()}
        )
        facts = [n for n, m in self.members.items() if getattr(m, "facts", None) is not None]
        if len(facts) > 1:
            raise SettingError(f"Blend: {facts[0]} and {facts[1]} have fields; one member may.")

    def prepare(self, train_data) -> None:
        for member in self.members.values():
            member.prepare(train_data)

    def adapt(self, support: Examples) -> State:
        return {"scores": sum(
            weight * scaled(self._say(member, support))
            for weight, member in zip(self.weights, self.members.values(), strict=True)
        )}  # fmt: skip

    def _say(self, member: Any, support: Examples) -> Tensor:
        """f_j, [I]."""
        items = member.encode(self.all_others)  # [I, ..]
        task = member.encode_tasks(support.task)
        return member.score(member.adapt(support._replace(x=items[support.x], task=task)), items)

    def score(self, state: State, x: Tensor) -> Tensor:
        return self.of_all(state["scores"], x)

    def calculate_loss(self, interaction: Interaction) -> Tensor:
        return torch.stack([each.calculate_loss(interaction) for each in self._trained()]).sum()

    def _trained(self) -> list[Any]:
        return [each for each in self.members.values() if each.settings.epochs]


def scaled(scores: Tensor) -> Tensor:
    """With mean 0 and deviation 1 over items by id, of which 0 is none; 0 where all are alike."""
    items = scores[1:]
    far = (items - items.mean()).square().mean().sqrt()
    least = 1e-6 * items.abs().max()  # what rounding leaves of equal scores
    return (far > least) * (scores - items.mean()) / torch.where(far > least, far, 1.0)
