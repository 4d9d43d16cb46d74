"""Known levels of floors and rules on jd-bvae: NDCG@10 of purchase, click and favourite on test."""

import pytest

from recbole_meta.data.behaviours import open_behaviours, prepare_behaviours
from recbole_meta.objective_fitting import fit_objectives

pytestmark = pytest.mark.data

LEVELS = {
    "ObjectivePop": (0.0088, 0.0096, 0.0188),
    "CopyOther": (0.0408, 0.0238, 0.0661),
    "ObjectiveEASE": (0.0816, 0.0669, 0.0767),  # on the union, lambda 100
}


@pytest.fixture(scope="module")
def jd(data_path, tmp_path_factory):
    folder = tmp_path_factory.mktemp("prepared")
    return open_behaviours(prepare_behaviours("jd-bvae", data_path, folder))


@pytest.mark.parametrize(
    "name",
    ["ObjectivePop", "CopyOther", pytest.param("ObjectiveEASE", marks=pytest.mark.slow)],
)
def test_levels_that_were_computed_elsewhere(jd, name):
    found = fit_objectives(name, jd, 0, {}).test(jd).means()
    for objective, level in zip(("purchase", "click", "favourite"), LEVELS[name]):
        assert found[f"{objective}/ndcg@10"] == pytest.approx(level, abs=0.001)
