"""What SMC found, as ArviZ reads it."""

import math
import sys

import arviz_stats
import numpy as np
import pytest

import twistlm
from twistlm import Run, Target
from twistlm.core.errors import ConfigError
from twistlm.core.rng import Rng
from twistlm.potentials import Classifier


@pytest.fixture(scope="module")
def run() -> Run:
    target = Target("stories", Classifier("sentiment", "positive"), "Once upon a time, there was a", 5)
    return twistlm.train(target, twist="lexical", num_updates=2, num_draws=32, num_particles=8, seed=0)


def test_runs_are_chains_and_particles_draws(run: Run) -> None:
    sampler, cases = run.sampler(ess_threshold=1.0), list(run.target.cases) * 3
    result = sampler.smc(Rng(1), cases, 16)
    texts = run.target.texts(sampler.samples_of(result, cases))
    tree = result.to_datatree(texts, seed=2)
    assert dict(tree["posterior"].sizes) == {"chain": 3, "draw": 16, "token": 5}
    assert tree["steps"]["ancestors"].dims == ("chain", "step", "slot")
    np.testing.assert_array_equal(tree["steps"]["ess"], np.stack([info.ess.numpy() for info in result.infos], 1))
    np.testing.assert_allclose(tree["particles"]["log_weight"], result.particles.log_w)
    assert tree.attrs["log_Z_hat"] == result.log_Z_hat.tolist()
    # Those in `posterior` are worth the same: each comes about as often as its weight says.
    log_w = tree["particles"]["log_weight"].values
    for chain in range(3):
        weights = np.exp(log_w[chain] - np.logaddexp.reduce(log_w[chain]))
        for text in set(texts[16 * chain : 16 * (chain + 1)]):
            same = [texts[16 * chain + n] == text for n in range(16)]
            count = int((tree["posterior"]["text"].values[chain] == text).sum())
            assert abs(count - 16 * weights[same].sum()) < sum(same) + 1e-9
    mean = float(tree["log_likelihood"]["phi"].mean())
    low, high = (float(f(tree["particles"]["log_phi"])) for f in (np.min, np.max))
    assert low <= mean <= high


def test_arviz_takes_it(run: Run) -> None:
    tree = run.to_datatree(32, num_runs=4, seed=0)
    table = arviz_stats.summary(tree, group="log_likelihood", var_names=["phi"], kind="stats")
    assert math.isfinite(float(table.loc["phi", "mean"]))
    assert tree["posterior"]["text"].shape == (4, 32)
    assert tree.equals(run.to_datatree(32, num_runs=4, seed=0))


def test_without_the_library(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "arviz_base", None)
    with pytest.raises(ConfigError, match=r"pip install 'twistlm\[arviz\]'"):
        run.to_datatree(4)
