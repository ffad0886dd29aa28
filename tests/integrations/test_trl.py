"""TRL's own GRPO on the bundled model: rewards, rollouts, and a callback that changes nothing."""

import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import GRPOConfig, GRPOTrainer

from twistlm import Target
from twistlm.core.errors import ConfigError
from twistlm.integrations.trl import LEAST, CertifyCallback, Rollouts, reward
from twistlm.models.bundled import folder
from twistlm.potentials import Classifier, Regex

PROMPT = "Once upon a time, there was a"


@pytest.fixture(scope="module")
def target() -> Target:
    return Target("stories", Classifier("sentiment", "negative"), PROMPT, 6)


def trainer(where: Path, reward_funcs: Any, **more: Any) -> GRPOTrainer:
    settings = GRPOConfig(
        output_dir=str(where), max_steps=2, per_device_train_batch_size=8, num_generations=4, learning_rate=1e-3,
        max_completion_length=6, logging_steps=1, save_strategy="no", report_to=[], use_cpu=True, bf16=False, seed=3,
    )  # fmt: skip
    return GRPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(folder("stories"), dtype=torch.float32),
        processing_class=AutoTokenizer.from_pretrained(folder("stories"), padding_side="left"),
        reward_funcs=reward_funcs,
        train_dataset=Dataset.from_dict({"prompt": [PROMPT] * 16}),
        args=settings,
        **more,
    )


def test_a_certified_training_is_the_same_training(target: Target, tmp_path: Path) -> None:
    alone = trainer(tmp_path / "a", reward(target))
    alone.train()
    certified = trainer(tmp_path / "b", reward(target))
    callback = CertifyCallback(certified, target, every=1, num_draws=256, num_samples=64, num_particles=(4,), budget=32)
    certified.add_callback(callback)
    certified.train()
    for one, other in zip(alone.model.parameters(), certified.model.parameters(), strict=True):
        assert torch.equal(one, other)
        assert other.requires_grad
    assert sorted(callback.certificates) == [0, 1, 2]
    rows = [row for row in certified.state.log_history if "twistlm/kl_q_prior" in row]
    assert [row["twistlm/kl_q_prior"] for row in rows] == [
        found.divergences.kl_q_prior.value for found in callback.certificates.values()
    ]
    first, *_, last = callback.certificates.values()
    assert first.divergences.kl_q_prior.value == pytest.approx(0, abs=1e-2)
    assert last.divergences.kl_q_prior.value > 1e-3
    assert math.isfinite(last.log_Z.value)


def test_rewards_are_log_phi(target: Target) -> None:
    log_phi = reward(target)
    ids = [*target.lm.encode(" sad boy").tolist(), target.lm.eos_token_id]
    given = [ids, [ids[0], ids[-1]]]
    values = log_phi(prompts=[PROMPT, PROMPT], completion_ids=given, completions=["", ""], anything=1)
    tokens = torch.full((2, 6), target.lm.eos_token_id)
    tokens[0, : len(ids)], tokens[1, :1] = torch.tensor(ids), ids[0]
    expected = target.bound_potential.log_phi([target.prompt_tokens] * 2, tokens)
    assert values == pytest.approx(expected.tolist())
    with pytest.raises(ConfigError, match="max_completion_length=6"):
        log_phi(prompts=[PROMPT], completion_ids=[[5] * 7])
    # Where it was cut off, it is not the text that φ is of.
    with pytest.raises(ConfigError, match=r"after 5 of this target's 6 tokens without EOS.*max_completion_length=6"):
        log_phi(prompts=[PROMPT, PROMPT], completion_ids=[ids, [5] * 5])
    never = reward(Target("stories", Regex("xyz"), PROMPT, 6))
    assert never(prompts=[PROMPT], completion_ids=[ids]) == [LEAST]


def test_rollouts_are_posterior_samples_with_their_weights(tmp_path: Path) -> None:
    """Every completion satisfies a constraint that the policy itself would meet once in thousands."""
    pattern = " [a-z]+ (girl|boy)"
    target = Target("stories", Regex(pattern, mode="fullmatch", constrain=True), PROMPT, 6)
    seen: list[tuple[str, float]] = []

    def kept(completions: list[str], log_weights: list[float], **_: Any) -> list[float]:
        seen.extend(zip(completions, log_weights, strict=True))
        return [float(len(text)) for text in completions]

    made = trainer(tmp_path / "c", kept, rollout_func=Rollouts(target, num_particles=4))
    made.train()
    assert len(seen) >= 16
    for text, log_weight in seen:
        assert math.isfinite(log_weight)
        assert re.fullmatch(pattern, text), text


def test_every_is_checked(target: Target) -> None:
    with pytest.raises(ConfigError, match="every must be at least 1"):
        CertifyCallback(None, target, every=0)
