r"""
RatingRidges
################################################
Reference:
    Lakshminarayanan, Pritzel, Blundell. "Simple and Scalable Predictive Uncertainty Estimation
    using Deep Ensembles." NeurIPS 2017. arXiv:1612.01474
"""

import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from recbole.data.interaction import Interaction
from torch import Tensor, nn

from recbole_meta.data.features import Field
from recbole_meta.episode import Examples
from recbole_meta.errors import RecboleMetaError, SettingError
from recbole_meta.model import our_models
from recbole_meta.model.meta_recommender import MetaRecommender, State, TrainedSettings
from recbole_meta.settings import Over, Share, Size, load_properties, read_settings

_WHERE = "RatingRidges, 'member'"


@dataclass(frozen=True)
class RatingRidgesSettings(TrainedSettings):
    query_rows: Size | None  # rows drawn of an episode's query; ~: all
    copies: Size  # M
    member: dict[str, Any]  # settings of RatingRidge over its page
    average: Share  # decay of the moving average of all weights, which is judged; 0: the last ones

    def __post_init__(self) -> None:
        object.__setattr__(self, "member", _member(self.member))


def _copy() -> type[Any]:
    return our_models()["RatingRidge"]


def _member(given: Mapping[str, Any]) -> dict[str, Any]:
    """All settings of each copy but for those of the whole."""
    page, whole = load_properties("model", "RatingRidge"), fields(RatingRidgesSettings)
    of_whole = {field.name for field in whole}
    if found := sorted(of_whole.intersection(given)):
        raise SettingError(f"{_WHERE}: '{found[0]}' is a setting of the whole.")
    _read(page | dict(given))
    return {k: v for k, v in (page | dict(given)).items() if k not in of_whole}


def _read(values: Mapping[str, Any]) -> Any:
    return read_settings(typing.get_type_hints(_copy())["settings"], values, _WHERE)


class RatingRidges(MetaRecommender):
    r"""Several RatingRidges that differ in their random start; the mean of what they say, before
    the stairs.

    .. math::
        rating = stairs_{t, \tau}(m), \qquad m = \frac{1}{M} \sum_j m_j(x), \qquad
        t = \frac{1}{M} \sum_j t_j, \qquad \tau = \frac{1}{M} \sum_j \tau_j, \qquad L = \sum_j L_j

    m, t and tau are RatingRidge's. A mean of ratings would lie between the grades, where the
    median of a rating does not. The copies share no parameter, so each gets the gradient that it
    would get alone, where none is clipped; they see the same batches, each with its own hidden ids.
    Epochs and rates are those of the whole, which chooses the epoch by what the mean says. It takes
    as long as M models, and M times a state.

    What differs from the paper: the mean is not of predicted distributions; no adversarial
    examples.
    """

    feedback = ("rating",)
    settings: RatingRidgesSettings

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        over, copies = Over(config, self.settings.member), range(self.settings.copies)
        try:
            self.copies = nn.ModuleList(_copy()(over, dataset) for _ in copies)
        except RecboleMetaError as error:
            raise type(error)(f"{_WHERE}: {error}") from error

    @classmethod
    def reads_with(cls, settings: RatingRidgesSettings, feedback: str, side: str = "user") -> str:
        values = load_properties("model", "RatingRidge") | settings.member
        found: str = _copy().reads_with(_read(values), feedback, side)
        return found

    @property
    def task_fields(self) -> list[Field]:
        return self._first.task_fields  # type: ignore[no-any-return]

    @property
    def _first(self) -> Any:
        return self.copies[0]

    def encode(self, items: Tensor) -> Tensor:
        """[.., M D]: those of one copy beside those of the next."""
        return self._beside(lambda copy: copy.encode(items))

    def encode_tasks(self, tasks: Tensor) -> Tensor:
        return self._beside(lambda copy: copy.encode_tasks(tasks))

    def encode_values(self, values: Sequence[Tensor]) -> Tensor:
        return self._beside(lambda copy: copy.encode_values(values))

    def encode_newcomer(self, features: Mapping[str, Any]) -> Tensor:
        return self._beside(lambda copy: copy.encode_newcomer(features))

    def encode_new_others(self, features: Sequence[Mapping[str, Any]]) -> Tensor:
        return self._beside(lambda copy: copy.encode_new_others(features))

    def _beside(self, of: Callable[[Any], Tensor]) -> Tensor:
        return torch.cat([of(copy) for copy in self.copies], dim=-1)

    def adapt(self, support: Examples) -> State:
        parts = zip(self.copies, self._apart(support.x), self._apart(support.task), strict=True)
        return {
            f"{name}_{number}": value
            for number, (copy, x, task) in enumerate(parts)
            for name, value in copy.adapt(support._replace(x=x, task=task)).items()
        }

    def score(self, state: State, x: Tensor) -> Tensor:
        parts = zip(self.copies, self._states(state), self._apart(x), strict=True)
        each = [copy.before_stairs(own, part) for copy, own, part in parts]
        return self._first.rating(*(torch.stack(some).mean(0) for some in zip(*each, strict=True)))

    def _apart(self, x: Tensor) -> tuple[Tensor, ...]:
        return x.tensor_split(len(self.copies), dim=-1)

    def _states(self, state: State) -> Iterator[State]:
        for number in range(len(self.copies)):
            end = f"_{number}"
            yield {k.removesuffix(end): v for k, v in state.items() if k.endswith(end)}

    def calculate_loss(self, interaction: Interaction) -> Tensor:
        return torch.stack([copy.calculate_loss(interaction) for copy in self.copies]).sum()
