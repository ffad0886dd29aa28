"""Reviews with a given number of stars, as in section 7.2.2 of Zhao et al. (2024)."""

from dataclasses import replace

from twistlm.potentials import Classifier
from twistlm.runs.experiments import Preset, Presets, experiment
from twistlm.runs.experiments.common import GKL_ON_THE_POOL, LEXICAL_METHODS, PAPER, PAPER_LIKE, rates, smoke
from twistlm.sampling.target import Target

PROMPT = "I bought this"

LABELS = ("1 star", "2 stars", "3 stars", "4 stars", "5 stars")

# Adam's learning rates, the best of the paper's grid for each method.
PAPER_RATES = {"ctl": 1e-4, "rl": 1e-4, "sixo": 1e-4, "fudge": 1e-3, "dpg": 1e-4, "ppo": 1e-5}
# The same for the bundled models, by papers/zhao2024/rates.py.
RATES = {"ctl": 3e-4, "rl": 1e-3, "sixo": 3e-4, "fudge": 3e-4, "dpg": 3e-4, "ppo": 1e-4, "gkl": 3e-3}


@experiment("sentiment", gallery=[{"beta": 100.0, "num_tokens": 20, "label": label} for label in LABELS])
def sentiment(beta: float = 1.0, num_tokens: int = 10, label: str = "1 star") -> Presets:
    """p(so many stars given text)^beta of 10 tokens after "I bought this"; --label "1 star" to "5 stars"."""

    def bundled() -> Target:
        return Target("stories", Classifier("stars", label, beta=beta), PROMPT, num_tokens, eos="ignore")

    def published() -> Target:
        scorer = Classifier("LiYuan/amazon-review-sentiment-analysis", label, beta=beta)
        return Target("gpt2-medium", scorer, PROMPT, num_tokens, eos="ignore")

    training = replace(PAPER_LIKE.training, learning_rate=RATES["ctl"])
    small = replace(PAPER_LIKE, num_draws=32_768, num_exact=1000, training=training)
    paper = replace(
        PAPER,
        twist_options={"num_layers": 3, "width": 1024},
        num_draws=1_000_000,
        chunk=2000,
        training=replace(PAPER.training, learning_rate=PAPER_RATES["ctl"]),
    )
    return {
        "smoke": Preset("seconds, to see that everything runs; too few samples to learn from", bundled, smoke(small),
                        {"gkl": GKL_ON_THE_POOL}),
        "small": Preset("every method on the bundled models, about two minutes each on two cores", bundled, small,
                        rates(RATES, {"gkl": GKL_ON_THE_POOL}) | LEXICAL_METHODS),
        "paper": Preset("the paper's models and settings: a GPU and hours", published, paper, rates(PAPER_RATES)),
    }  # fmt: skip
