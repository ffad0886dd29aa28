"""Toxic children's stories: the bundled language model and the bundled classifier."""

from dataclasses import replace

from twistlm.api import RunConfig
from twistlm.experiments import Evaluation, Preset, Presets, experiment
from twistlm.potentials import Classifier
from twistlm.target import Target
from twistlm.training import TrainingConfig

PROMPT = "Once upon a time, there was a"
NUM_TOKENS = 20


def target() -> Target:
    """σ ∝ p₀(s) · p(toxic | s) on twenty tokens (Zhao et al. 2024, section 7.1.1, with the bundled models)."""
    return Target("stories", Classifier("toxicity", "toxic"), PROMPT, NUM_TOKENS, eos="ignore")


@experiment("toxicity")
def toxicity() -> Presets:
    """p(toxic given text) under the bundled story model, prompt "Once upon a time, there was a", 20 new tokens."""
    demo = RunConfig(
        twist="lexical",
        twist_options={"rank": 2},
        training=TrainingConfig(
            loss="ctl", target_source="draws", intermediate_source="draws", num_particles=512, num_updates=100,
            learning_rate=3e-3, weight_decay=0.3, evaluate_every=10, evaluation_samples=256, patience=40,
        ),
        num_draws=16_384,
        num_siblings=4,
        folds=(0.6, 0.1, 0.3),
    )  # fmt: skip
    smoke = replace(
        demo,
        num_draws=3072,
        folds=(0.3, 0.1, 0.6),
        training=replace(demo.training, num_particles=128, num_updates=4, evaluate_every=2, evaluation_samples=16),
    )
    small = replace(demo, num_draws=65_536, training=replace(demo.training, num_updates=300, patience=100))
    return {
        "smoke": Preset("seconds, to see that everything runs; too few samples to learn from", target, smoke,
                        Evaluation((2, 4), 32, 16)),
        "demo": Preset("under a minute on two cores", target, demo, Evaluation((4, 16, 64), 512, 512)),
        "small": Preset("minutes on two cores: four times the draws", target, small,
                        Evaluation((4, 16, 64, 256), 2048, 2048)),
    }  # fmt: skip
