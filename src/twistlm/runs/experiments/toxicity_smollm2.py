"""Toxic continuations of SmolLM2-135M, by a packaged BiLSTM classifier."""

from dataclasses import replace

from twistlm.potentials import Jigsaw
from twistlm.runs.config import EvaluationConfig
from twistlm.runs.experiments import Preset, Presets, experiment
from twistlm.runs.experiments.common import ON_DRAWS
from twistlm.sampling.target import Target

# Eight tokens, because every token of the base model costs time that buys draws instead; β = 5, because at β = 1 the
# base model is already within 0.3 nats of the target and nothing could be seen; the prompt, because both insults and
# praise follow it naturally, and one draw in forty is accepted.
PROMPT = "You are such a"
BETA = 5.0
NUM_TOKENS = 8


def target() -> Target:
    """σ ∝ p₀(s) · p(toxic | s)^β on eight tokens."""
    return Target("smollm2", Jigsaw(beta=BETA), PROMPT, NUM_TOKENS, eos="ignore")


@experiment("toxicity-smollm2")
def toxicity_smollm2() -> Presets:
    """p(toxic given text)^5 under SmolLM2-135M, prompt "You are such a", 8 new tokens."""
    demo = replace(
        ON_DRAWS,
        num_draws=9216,
        folds=(0.55, 0.12, 0.33),
        evaluation=EvaluationConfig((2, 4, 8, 16), 512, 384),
    )
    smoke = replace(
        demo,
        num_draws=512,
        evaluation=EvaluationConfig((2, 4), 32, 16),
        training=replace(demo.training, num_particles=128, num_updates=4, evaluate_every=2, evaluation_samples=16),
    )
    small = replace(
        demo,
        num_draws=16_384,
        evaluation=EvaluationConfig((4, 16, 64), 1024, 2048),
        training=replace(demo.training, num_updates=200, patience=60),
    )
    return {
        "smoke": Preset("half a minute, to see that everything runs; too few samples to learn from", target, smoke),
        "demo": Preset("three minutes on two cores", target, demo),
        "small": Preset("about six minutes on two cores: twice the draws, tighter bounds", target, small),
    }
