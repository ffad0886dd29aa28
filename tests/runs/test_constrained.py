"""Runs whose target has a hard constraint: learned, certified, kept and read again."""

from pathlib import Path

import pytest
import torch

import twistlm
from twistlm import Run, Target
from twistlm.core.registry import available
from twistlm.core.rng import Rng
from twistlm.potentials import Classifier, Regex, Words

PROMPT = "Once upon a time, there was a"
NAMED = Regex(" [a-z]+ (girl|boy)", mode="fullmatch", constrain=True)
SMALL = {"num_particles": 8, "num_updates": 3, "num_draws": 64, "learning_rate": 1e-2}


def target(num_tokens: int = 4) -> Target:
    return Target("stories", NAMED * Classifier("sentiment", "positive"), PROMPT, num_tokens)


@pytest.mark.parametrize(
    "loss",
    [pytest.param(name, marks=() if name in ("ctl", "dpg") else pytest.mark.nightly) for name in available("loss")],
)
def test_every_loss_learns_beside_it(loss: str) -> None:
    """Finite at every update, and what is learned changes; nothing that is drawn is ruled out."""
    run = twistlm.train(target(), method=loss, source="proposal", seed=1, **SMALL)
    losses = [record["loss"] for record in run.history if record.get("kind", "update") == "update" and "loss" in record]
    assert len(losses) == 3
    assert all(abs(value) < 1e6 for value in losses)
    drawn = run.sampler().draw(Rng(0), run.target.cases, 32)
    assert bool(drawn.log_phi.isfinite().all())


def test_a_run_is_read_as_it_was(tmp_path: Path) -> None:
    run = twistlm.train(target(), method="ctl", out=tmp_path / "run", seed=0, **SMALL)
    again = Run.load(tmp_path / "run")
    one, other = run.sample(6, seed=3), again.sample(6, seed=3)
    assert one.texts == other.texts
    assert torch.equal(one.weights, other.weights)
    before, after = run.evaluate(before=True), again.evaluate()
    assert before.divergences.log_Z.low < before.divergences.log_Z.high
    assert after.divergences.log_Z.low < after.divergences.log_Z.high
    # The bound that holds for certain is part of what is known.
    assert again.collection is not None
    assert after.divergences.log_Z.high <= again.collection.log_most_of(run.target.cases[0]) + 1e-9
    base = again.base_samples(8)
    assert len(base.texts) == 8


def test_other_prompts_have_the_same_constraint() -> None:
    of = target()
    other = of.at("The old man was a")
    assert other.constraint is of.constraint
    result = other.sampler().smc(Rng(0), other.cases, 4)
    assert bool(result.log_phi.isfinite().all())


def test_a_certificate_without_training() -> None:
    of = Target("stories", Regex(" (little|big) (girl|boy)", mode="fullmatch", constrain=True), PROMPT, 2, eos="ignore")
    certificate = twistlm.certify(of, num_draws=1024, num_particles=(4,), num_samples=64, budget=32)
    tokens = torch.stack([of.lm.encode(text) for text in (" little girl", " little boy", " big girl", " big boy")])
    logits = of.lm.logits(of.lm.features([of.prompt_tokens] * 4, tokens)).double()
    log_p = torch.log_softmax(logits, -1).gather(-1, tokens.unsqueeze(-1)).sum((1, 2))
    exact = float(torch.logsumexp(log_p, 0))
    found = certificate.divergences
    assert found.log_Z.low <= exact <= found.log_Z.high + 1e-6
    assert found.kl_target_q is not None
    assert found.kl_target_q.low <= 0.1


def test_words_without_exact_samples_are_certified_from_below() -> None:
    of = Target("stories", Words(("dog", "park")), PROMPT, 12)
    certificate = twistlm.certify(of, num_draws=64, num_particles=(4,), num_samples=32, budget=16)
    assert certificate.divergences.kl_target_q is None
    assert certificate.divergences.log_Z.high <= 0.0
