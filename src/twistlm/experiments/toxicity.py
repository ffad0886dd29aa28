"""Toxic children's stories, as in section 7.1.1 of Zhao et al. (2024)."""

from dataclasses import replace

from twistlm.api import EvaluationConfig, RunConfig
from twistlm.experiments import Preset, Presets, experiment
from twistlm.experiments.common import GKL_ON_THE_POOL, PAPER_LIKE, rates, smoke
from twistlm.potentials import Classifier
from twistlm.target import Target
from twistlm.training import TrainingConfig

PROMPT = "Once upon a time, there was a"

# Adam's learning rates, the best of the paper's grid for each method.
PAPER_RATES = {"ctl": 1e-4, "rl": 3e-5, "sixo": 3e-5, "fudge": 1e-4, "dpg": 3e-5, "ppo": 1e-6}


@experiment("toxicity", gallery=[{"beta": 10.0, "num_tokens": 200}])
def toxicity(beta: float = 1.0, num_tokens: int = 20) -> Presets:
    """p(toxic given text)^beta of 20 tokens after "Once upon a time, there was a"; bundled models or the paper's."""

    def bundled() -> Target:
        return Target("stories", Classifier("toxicity", "toxic", beta=beta), PROMPT, num_tokens, eos="ignore")

    def published() -> Target:
        scorer = Classifier("nicholasKluge/ToxicityModel", "toxic", beta=beta, logit_means="not label")
        return Target("roneneldan/TinyStories-33M", scorer, PROMPT, num_tokens, eos="ignore")

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
    small = replace(PAPER_LIKE, num_draws=131_072, num_exact=1000)
    paper = replace(
        PAPER_LIKE,
        twist="backbone",
        num_draws=4_000_000,
        num_exact=2000,
        chunk=4000,
        evaluation=EvaluationConfig((500,), 2000, 2000, during_training=True),
        training=replace(PAPER_LIKE.training, num_updates=2048, learning_rate=PAPER_RATES["ctl"]),
    )
    return {
        "smoke": Preset("seconds, to see that everything runs; too few samples to learn from", bundled, smoke(small),
                        {"gkl": GKL_ON_THE_POOL}),
        "demo": Preset("under a minute on two cores: CTL on collected draws", bundled, demo),
        "small": Preset("every method on the bundled models, about two minutes each on two cores", bundled, small,
                        {"gkl": GKL_ON_THE_POOL}),
        "paper": Preset("the paper's models and settings: a GPU and hours", published, paper, rates(PAPER_RATES)),
    }  # fmt: skip
