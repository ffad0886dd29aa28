"""Toxic children's stories, as in section 7.2.1 of Zhao et al. (2024)."""

from dataclasses import replace

from twistlm.potentials import Classifier
from twistlm.runs.automatic import LEXICAL_DPG
from twistlm.runs.config import EvaluationConfig, RunConfig
from twistlm.runs.experiments import Preset, Presets, experiment
from twistlm.runs.experiments.common import GKL_ON_THE_POOL, LEXICAL_METHODS, PAPER, PAPER_LIKE, rates, smoke
from twistlm.sampling.target import Target

PROMPT = "Once upon a time, there was a"

# Adam's learning rates, the best of the paper's grid for each method.
PAPER_RATES = {"ctl": 1e-4, "rl": 3e-5, "sixo": 3e-5, "fudge": 1e-4, "dpg": 3e-5, "ppo": 1e-6}
# The same for the bundled models, by papers/zhao2024/rates.py.
RATES = {"ctl": 1e-4, "rl": 1e-3, "sixo": 1e-4, "fudge": 1e-3, "dpg": 1e-3, "ppo": 1e-4, "gkl": 1e-3}


@experiment("toxicity", gallery=[{"beta": 10.0, "num_tokens": 200}])
def toxicity(beta: float = 1.0, num_tokens: int | None = None) -> Presets:
    """p(toxic given text)^beta of 20 tokens (demo: 10) after "Once upon a time, there was a"; bundled or hub models."""

    def bundled(length: int = 20) -> Target:
        scorer = Classifier("toxicity", "toxic", beta=beta)
        return Target("stories", scorer, PROMPT, length if num_tokens is None else num_tokens, eos="ignore")

    def published() -> Target:
        scorer = Classifier("nicholasKluge/ToxicityModel", "toxic", beta=beta, logit_means="not label")
        length = 20 if num_tokens is None else num_tokens
        return Target("roneneldan/TinyStories-33M", scorer, PROMPT, length, eos="ignore")

    # Collected draws judge; every update learns from the twist's own. Two cores draw 400 each, and parts
    # are as large as the default's. More decay bears a larger rank, and both learn more of fewer draws.
    many = {"num_particles": 800, "num_minibatches": 16, "num_updates": 10, "evaluate_every": 5}
    demo = RunConfig(
        num_draws=10_240,
        num_siblings=0,
        chunk=2048,
        folds=(0.02, 0.2, 0.78),
        evaluation=EvaluationConfig((2, 8, 32), 512, 256),
    ).changed(**{**LEXICAL_DPG, **many, "twist_options": {"rank": 8}, "weight_decay": 0.3, "evaluation_samples": 64})
    training = replace(PAPER_LIKE.training, learning_rate=RATES["ctl"])
    small = replace(PAPER_LIKE, num_draws=131_072, num_exact=1000, training=training)
    paper = replace(
        PAPER,
        twist="backbone",
        num_draws=4_000_000,
        chunk=4000,
        training=replace(PAPER.training, learning_rate=PAPER_RATES["ctl"]),
    )
    return {
        "smoke": Preset("seconds, to see that everything runs; too few samples to learn from", bundled, smoke(small),
                        {"gkl": GKL_ON_THE_POOL}),
        # Half the tokens: what can be learnt in a minute.
        "demo": Preset("under a minute on two cores: DPG on the twist's own draws", lambda: bundled(10), demo),
        "small": Preset("every method on the bundled models, about two minutes each on two cores", bundled, small,
                        rates(RATES, {"gkl": GKL_ON_THE_POOL}) | LEXICAL_METHODS),
        "paper": Preset("the paper's models and settings: a GPU and hours", published, paper, rates(PAPER_RATES)),
    }  # fmt: skip
