"""Certifying what was made elsewhere: tuned checkpoints, the base model, other runs; and how hard to try."""

import copy
import logging
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

import twistlm
from tests.architectures import tiny_lm
from tests.cases import Case
from tests.certificates.test_bounds import exact_of
from twistlm import Target, train
from twistlm.certificates.bounds import main_bounds, width
from twistlm.certificates.certificate import Certificate
from twistlm.certificates.certify import Effort, certify
from twistlm.certificates.evidence import Evidence
from twistlm.certificates.spending import Spending
from twistlm.core.errors import ConfigError, ExactSamplesError, ModelError
from twistlm.core.rng import Rng
from twistlm.core.storage import as_json, as_type
from twistlm.models.bundled import folder
from twistlm.models.huggingface import HuggingFaceLM
from twistlm.models.tabular import TabularLM
from twistlm.potentials import Function
from twistlm.runs.config import RunConfig
from twistlm.sampling.sampler import Sampler
from twistlm.training.config import TrainingConfig

CONFIG = RunConfig(
    twist="low_rank",
    training=TrainingConfig(
        loss="gkl", target_source="draws", intermediate_source="draws", num_particles=256, num_updates=20,
        learning_rate=1e-2, evaluate_every=10,
    ),
    num_draws=1024,
    num_siblings=0,
)  # fmt: skip


def small_numbers(texts: list[str]) -> list[float]:
    return [-sum(int(word) for word in text.split()[1:]) / 150 for text in texts]


def tiny_target(lm: HuggingFaceLM | None = None) -> Target:
    return Target(lm or tiny_lm(), Function(small_numbers, log_upper_bound=0.0), "5", 3, eos="ignore")


# --- Another model ---


class Two:
    """A tabular target and a tabular model of its own, both to be summed over."""

    def __init__(self, seed: int, scale: float = 1.0) -> None:
        self.lm, self.other = (TabularLM.random(4, 4, k, scale=scale) for k in (seed, seed + 1))
        self.target = Target(
            self.lm, Function(lambda texts: [-float(text.count("0")) for text in texts], log_upper_bound=0.0), "1", 3,
            eos="ignore",
        )  # fmt: skip

    def log_p(self, lm: TabularLM, tokens: Tensor) -> Tensor:
        logits = lm.logits(lm.features([self.target.prompt_tokens] * len(tokens), tokens)).log_softmax(-1)
        return logits.gather(-1, tokens.unsqueeze(-1)).squeeze(-1).sum(-1)

    def exact(self) -> dict[str, float]:
        tokens = torch.cartesian_prod(*[torch.arange(4)] * 3)
        joint = self.log_p(self.lm, tokens) - (tokens == 0).sum(-1)
        log_q, log_Z = self.log_p(self.other, tokens), joint.logsumexp(0)
        log_sigma = joint - log_Z
        return {
            "log_Z": float(log_Z),
            "kl_q_target": float((log_q.exp() * (log_q - log_sigma)).sum()),
            "kl_target_q": float((log_sigma.exp() * (log_sigma - log_q)).sum()),
        }


@pytest.mark.parametrize("seed", [1, 5])
def test_another_model_is_certified_as_enumeration_says(seed: int) -> None:
    two = Two(seed)
    truth = two.exact()
    found = twistlm.certify(two.target, two.other, num_draws=8192, num_samples=4096, num_particles=(4, 64))
    for name in ("kl_q_target", "kl_target_q", "log_Z"):
        estimate = getattr(found.divergences, name)
        slack = 2 * estimate.half_width
        assert estimate.low - slack < truth[name] < estimate.high + slack, name
        assert estimate.half_width < 0.15
    # There is no SMC with it.
    assert {b.method for b in found.bounds} == {"iwae"}
    assert found.smc_symmetrised_kl is None
    assert found.num_tokens == 3 * found.num_sequences == 3 * 4096
    assert found.acceptance is not None
    assert found.acceptance.low < math.exp(truth["log_Z"]) < found.acceptance.high
    assert as_type(Certificate, as_json(found), "it") == replace(
        found, bounds=tuple(replace(b, lowers=None, uppers=None) for b in found.bounds)
    )


def test_a_checkpoint_in_a_folder(tmp_path: Path) -> None:
    """As a user would have it: saved by transformers, named by its folder."""
    target = Target("stories", Function(short_words, log_upper_bound=0.0), "Once upon a time", 6, eos="ignore")
    model = AutoModelForCausalLM.from_pretrained(folder("stories"), dtype=torch.float32)
    with torch.no_grad():
        # Half as sure of everything.
        model.model.norm.weight.mul_(0.5)
    model.save_pretrained(tmp_path / "tuned")
    AutoTokenizer.from_pretrained(folder("stories")).save_pretrained(tmp_path / "tuned")
    flat = twistlm.certify(target, tmp_path / "tuned", num_draws=512, num_samples=128, num_particles=(4,))
    base = twistlm.certify(target, "base", num_draws=512, num_samples=128, num_particles=(4,))
    assert flat.divergences.kl_q_target.low > base.divergences.kl_q_target.high
    assert flat.divergences.kl_q_prior.low > 0
    assert base.divergences.kl_q_prior.value == pytest.approx(0.0, abs=1e-6)


def short_words(texts: list[str]) -> list[float]:
    return [-sum(len(word) for word in text.split()) / 40 for text in texts]


def test_a_proposal_that_drops_a_mode_is_caught() -> None:
    """A model that hardly ever says half of the tokens: KL(q‖σ) hardly sees it, KL(σ‖q) does."""
    two = Two(3, scale=0.3)
    table = two.lm.table.clone()
    table[:, 2:] -= 12.0
    dropping = TabularLM(table, 4)
    found = twistlm.certify(two.target, dropping, num_draws=4096, num_samples=1024, num_particles=(4,)).divergences
    assert found.kl_target_q is not None
    assert found.kl_target_q.low > 5 * found.kl_q_target.high


def test_another_vocabulary_is_refused() -> None:
    two = Two(1)
    with pytest.raises(ModelError, match="has 5 tokens and the base model"):
        twistlm.certify(two.target, TabularLM.random(5, 4, 1), num_draws=64)
    shuffled = copy.copy(two.other)
    shuffled.decode = lambda sequences: ["".join(str(3 - t) for t in s.tolist()) for s in sequences]  # type: ignore[method-assign]
    with pytest.raises(ModelError, match="has another tokenizer"):
        two.target.sampler_of(shuffled)


# --- Runs and the base model ---


def test_a_run_brings_its_own_draws_and_certifies_others(tmp_path: Path) -> None:
    lm = tiny_lm()
    run = train(tiny_target(lm), config=CONFIG)
    own = twistlm.certify(run, run, num_particles=(2, 8), num_samples=256)
    evaluation = run.fold("evaluation")
    assert evaluation is not None
    assert own.divergences.g is not None
    assert own.divergences.g.n == len(evaluation.exact)
    base = twistlm.certify(run, num_particles=(2, 8), num_samples=256)
    assert base.divergences.kl_target_q is not None
    assert own.divergences.kl_target_q is not None
    assert own.divergences.kl_target_q.value < base.divergences.kl_target_q.value
    assert own.smc_symmetrised_kl is not None
    assert own.smc_symmetrised_kl > 0
    other = Target(tiny_lm("llama"), Function(small_numbers, log_upper_bound=0.0), "5", 3, eos="ignore")
    with pytest.raises(ConfigError, match="the proposal is on"):
        twistlm.certify(other, run, num_draws=64)


def test_draws_at_hand_are_checked_as_a_file_is() -> None:
    """Those of another φ gave log Z −2.10 [−2.10, −2.04] for −1.94, without an alarm."""
    goal, spending = tiny_target(), {"num_particles": (4,), "num_samples": 64}
    own = goal.collect(Rng(5), max_draws=256, chunk=256)
    assert twistlm.certify(goal, draws=own, **spending).divergences.log_Z.is_known
    other = Target(tiny_lm(), Function(lambda texts: [-1.0] * len(texts), log_upper_bound=0.0), "5", 3, eos="ignore")
    with pytest.raises(ExactSamplesError, match="draws holds samples of another target"):
        twistlm.certify(other, draws=own, **spending)
    changed = replace(own, draws=replace(own.draws, log_phi=own.draws.log_phi + 0.5))
    with pytest.raises(ExactSamplesError, match="draws does not hold draws of this target"):
        twistlm.certify(goal, draws=changed, **spending)


def test_as_many_new_draws_as_are_asked_for_take_the_place_of_a_runs() -> None:
    run = train(tiny_target(), config=CONFIG)
    small: dict[str, Any] = {"num_particles": (2,), "num_samples": 64, "budget": 32}
    own, few, many = (
        twistlm.certify(run, run, **small, **more).divergences.g
        for more in ({}, {"num_draws": 512}, {"num_draws": 4096})
    )
    assert own is not None
    assert few is not None
    assert many is not None
    assert many.n > 2 * few.n
    assert few.value != own.value
    # As of a target that no run has drawn from, and none at all where none are to be had.
    found, other = (twistlm.certify(goal, num_draws=512, **small) for goal in (run, run.target))
    assert (found.log_Z, found.divergences) == (other.log_Z, other.divergences)
    assert twistlm.certify(run, run, num_draws=0, **small).divergences.kl_target_q is None
    with pytest.raises(ConfigError, match="draws and num_draws exclude each other, as a file is used whole"):
        twistlm.certify(run, num_draws=512, draws="draws.safetensors")


def test_without_an_upper_bound_only_lower_bounds_are_claimed(caplog: pytest.LogCaptureFixture) -> None:
    target = Target(tiny_lm(), Function(small_numbers), "5", 3, eos="ignore")
    with caplog.at_level(logging.WARNING):
        found = twistlm.certify(target, num_draws=64, num_samples=64, num_particles=(4,))
    assert found.log_Z_upper is None
    assert found.divergences.kl_target_q is None
    assert found.log_Z_source == "lower bound only"
    assert found.acceptance is None
    assert "needs an upper bound on the potential" in caplog.text
    with pytest.raises(ConfigError, match=r"gap = 0\.1 needs an upper bound on log Z"):
        twistlm.certify(target, num_draws=0, num_samples=64, num_particles=(4,), effort=Effort(0.1))


# --- Effort ---


def test_particles_double_until_the_sandwich_is_tight(case: Case) -> None:
    subject = Sampler(case.twisted, case.potential, 3)
    found = certify(
        Rng(0),
        subject,
        case.at,
        Evidence(exact_of(case, 200)),
        Spending(num_particles=(2,), num_samples=64, budget=128, effort=Effort(0.15)),
    )
    assert found.stopped == "gap"
    counts = sorted({b.num_particles for b in found.bounds})
    assert counts == [2 << k for k in range(len(counts))]
    assert len(counts) >= 3
    truth = float(case.truth.log_Z)
    assert found.log_Z_upper is not None
    assert found.log_Z_lower.low - 0.1 < truth < found.log_Z_upper.high + 0.1
    # Those before were wider, and nothing was spent beyond what it says.
    before = [b for b in found.bounds if b.num_particles < counts[-1]]
    assert all(b.gap is not None and b.gap > 0 for b in before)
    assert found.num_tokens == 3 * found.num_sequences


def test_a_gap_that_cannot_be_met_spends_its_budget_and_says_so(case: Case) -> None:
    subject = Sampler(case.twisted, case.potential, 3)
    exact = exact_of(case, 50)
    found = certify(
        Rng(0),
        subject,
        case.at,
        Evidence(exact),
        Spending(num_particles=(2,), num_samples=64, budget=64, effort=Effort(1e-6, num_sequences=4000)),
    )
    assert found.stopped == "budget"
    assert 1000 < found.num_sequences <= 4000
    soon = certify(
        Rng(0),
        subject,
        case.at,
        Evidence(exact),
        Spending(num_particles=(2,), num_samples=64, budget=64, effort=Effort(1e-6, seconds=1e-3)),
    )
    assert soon.stopped == "budget"
    assert {b.num_particles for b in soon.bounds} == {2}
    with pytest.raises(ConfigError, match="gap must be above 0, not 0"):
        Effort(0.0)
    with pytest.raises(ConfigError, match="gap = 1e-30 may never be met: give max_sequences or max_seconds"):
        Effort(1e-30)
    assert Effort(1e-9, seconds=1.0).gap == 1e-9


@pytest.mark.parametrize("seed", range(12))
def test_a_sandwich_that_is_called_tight_is(case: Case, seed: int) -> None:
    """What stopped the search is drawn anew, and may be wider: two of nine ended at 0.41 and 0.40 of 0.4."""
    subject = Sampler(case.twisted, case.potential, 3)
    spending = Spending(num_particles=(2,), num_samples=64, budget=64, effort=Effort(0.4, num_sequences=1e5))
    found = certify(Rng(seed), subject, case.at, Evidence(exact_of(case, 100)), spending)
    assert found.stopped == "gap"
    assert width(main_bounds(found.bounds)) <= 0.4


def test_draws_that_are_there_are_added_to_up_to_what_was_asked_for(case: Case) -> None:
    """`evaluate --before` took the training draws, 32 of them where 64 particles were asked for, and failed."""
    subject = Sampler(case.base, case.potential, 3)
    few, many = (subject.draw(Rng(5), [case.at], count) for count in (10, 300))
    spending = Spending(num_particles=(4, 64), num_samples=200)
    found = certify(Rng(0), subject, case.at, Evidence(exact_of(case, 50)), spending, drawn=few)
    assert (found.divergences.f.n, found.num_sequences) == (200, 190)
    assert {b.num_particles for b in found.bounds} == {4, 64}
    found = certify(Rng(0), subject, case.at, Evidence(exact_of(case, 50)), spending, drawn=many)
    assert (found.divergences.f.n, found.num_sequences) == (300, 0)


def test_methods_that_leave_no_bound_are_refused(case: Case) -> None:
    with pytest.raises(ConfigError, match="methods must name at least one of iwae, smc"):
        Spending(methods=())
    two = Two(3)
    with pytest.raises(ConfigError, match="SMC needs a twist, and the sampler is a model of its own; give iwae"):
        twistlm.certify(two.target, two.other, num_draws=64, methods=("smc",))


def test_a_score_beyond_any_number_is_infinite() -> None:
    """log φ of 800, and a bound of 2,000: exp of either has no double."""
    lm = TabularLM.random(3, 3, 1)
    scores = Function(lambda texts: [800.0 + text.count("0") for text in texts], log_upper_bound=2000.0)
    for potential in (scores, replace(scores, log_upper_bound=None)):
        target = Target(lm, potential, prompts=["0", "1"], num_tokens=2, eos="ignore")
        for goal in (target, target.at(["0"])):
            found = twistlm.certify(goal, num_draws=0, num_samples=64, num_particles=(4,), budget=16).divergences
            assert found.phi.value == found.phi.high == math.inf
            assert 800.0 < found.log_phi.value < 802.0
