"""Batches that miss the target altogether teach nothing: they are passed over, and training goes on or says why not."""

import pytest
import torch
from torch import Tensor

from tests.architectures import tiny_lm
from tests.cases import Case, cases
from twistlm import Target, train
from twistlm.core.errors import TrainingError
from twistlm.core.rng import Rng
from twistlm.models.base import Prompts
from twistlm.potentials import Function
from twistlm.potentials.base import indicator
from twistlm.sampling.sampler import Sampler
from twistlm.training import scoring
from twistlm.training.sources import Setting, get_source
from twistlm.training.trainer import MOST, check_misses

OPTIONS = {
    "method": "dpg", "source": "proposal", "twist": "lexical", "num_particles": 16, "learning_rate": 3e-3,
    "averaging": 0.95, "weight_decay": 0.1,
    "shrinkages": (), "informed": "off", "num_draws": 4096, "evaluation": {"num_particles": (2,), "budget": 16},
}  # fmt: skip


def rare() -> Target:
    """1[the first token is one of eight, of 300]."""

    def score(prompts: Prompts, tokens: Tensor) -> Tensor:
        return indicator(tokens[:, 0] < 8, 0.0)

    return Target(tiny_lm(), Function(score, on="tokens", log_upper_bound=0.0), "5", 4, eos="ignore")


def test_training_goes_on_after_batches_that_miss() -> None:
    run = train(rare(), num_updates=120, **OPTIONS)
    rows = [row for row in run.history if row["kind"] in ("update", "miss")]
    assert [row["update"] for row in rows] == list(range(120))
    kinds = [row["kind"] for row in rows]
    assert kinds[0] == "miss"
    assert 2 <= kinds.count("miss") < 100
    # What it learned it learned from the others: by the end fewer batches miss.
    assert kinds[-20:].count("miss") < kinds[:20].count("miss")
    held_out = [row["held_out"]["value"] for row in run.history if row["kind"] == "evaluation"]
    assert min(held_out) < held_out[0] - 0.2, held_out


def test_particles_of_smc_that_all_die_are_a_miss() -> None:
    """They ended training, where draws of the proposal that miss the same target are passed over."""
    changed = {"method": "ctl", "source": None, "target_source": "smc", "num_particles": 32, "num_draws": 1024}
    run = train(rare(), num_updates=8, **{**OPTIONS, **changed})
    kinds = [row["kind"] for row in run.history if row["kind"] in ("update", "miss")]
    assert len(kinds) == 8
    assert set(kinds) == {"update", "miss"}


def test_of_two_prompts_one_may_die(case: Case) -> None:
    def score(prompts: Prompts, tokens: Tensor) -> Tensor:
        return indicator(torch.tensor([prompt[0] == 1 for prompt in prompts]), 0.0)

    sampler = Sampler(case.twisted, Function(score, on="tokens"), 3)
    both = Setting(sampler, cases([torch.tensor([1]), torch.tensor([0])]))
    batch = get_source("smc")(Rng(0), both, 16)
    assert batch.log_w.view(2, 8).isfinite().all(-1).tolist() == [True, False]
    made = scoring.score(case.twisted, {"target": batch}, normaliser=False)
    shares = made.scored["target"].weights.view(2, 8, 3).sum(1)
    torch.testing.assert_close(shares.double(), torch.tensor([[0.5] * 3, [0.0] * 3], dtype=torch.float64))


def test_what_no_update_reaches_is_refused() -> None:
    with pytest.raises(TrainingError, match=r"in 3 updates in a row no sequence had φ > 0.*eps.*twistlm probability"):
        train(rare(), num_updates=3, **OPTIONS)


def test_hope_ends_after_many_misses_in_a_row() -> None:
    miss, update, other = {"kind": "miss"}, {"kind": "update"}, {"kind": "evaluation"}
    check_misses([miss] * (MOST - 1), 500)
    check_misses([miss] * (MOST - 1) + [update, other] + [miss] * (MOST - 1), 500)
    check_misses([update, miss, miss], 3)
    with pytest.raises(TrainingError, match=f"in {MOST} updates in a row"):
        check_misses([update] + [miss, other] * MOST, 500)
    with pytest.raises(TrainingError, match="in 3 updates in a row"):
        check_misses([miss] * 3, 3)
