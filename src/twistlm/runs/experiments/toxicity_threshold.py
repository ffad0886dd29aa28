"""A rare event: stories above a threshold of toxicity, as in figure 3 of Zhao et al. (2024)."""

from dataclasses import replace

from twistlm.potentials import Classifier, Threshold
from twistlm.runs.config import EvaluationConfig
from twistlm.runs.experiments import Preset, Presets, experiment
from twistlm.runs.experiments.common import LEXICAL_METHODS, PAPER_LIKE, smoke
from twistlm.runs.experiments.toxicity import PROMPT
from twistlm.sampling.target import Target

PAPER_RATE = 1e-4


@experiment("toxicity-threshold")
def toxicity_threshold(num_tokens: int = 10, threshold: float = 0.1) -> Presets:
    """1[p(toxic) > threshold] of 10 tokens after "Once upon a time, there was a": bounds against particles."""

    def bundled() -> Target:
        scorer = Classifier("toxicity", "toxic")
        return Target("stories", Threshold(scorer, threshold, eps=1e-16), PROMPT, num_tokens, eos="ignore")

    def published() -> Target:
        # The model's single logit means "not toxic".
        scorer = Classifier("nicholasKluge/ToxicityModel", "toxic", logit_means="not label")
        potential = Threshold(scorer, -5.0, eps=1e-16, on="logit", direction="<=")
        return Target("roneneldan/TinyStories-33M", potential, PROMPT, num_tokens, eos="ignore")

    small = replace(
        PAPER_LIKE,
        num_draws=131_072,
        num_exact=200,
        evaluation=EvaluationConfig((4, 16, 64, 256, 1024), 2048, 2048),
        training=replace(PAPER_LIKE.training, num_particles=1000, num_updates=64, evaluate_every=16),
    )
    paper = replace(
        PAPER_LIKE,
        twist_options={"num_layers": 3, "width": 768},
        num_draws=4_000_000,
        num_exact=100,
        chunk=4000,
        evaluation=EvaluationConfig(tuple(2**k for k in range(2, 12)), 4096, 40_960),
        training=replace(PAPER_LIKE.training, num_particles=1000, num_updates=5000, learning_rate=PAPER_RATE),
    )
    return {
        "smoke": Preset("seconds, to see that everything runs; too few samples to learn from", bundled,
                        smoke(small, 4096)),
        "small": Preset("minutes on two cores: bounds at up to 1,024 particles", bundled, small, LEXICAL_METHODS),
        "paper": Preset("the paper's models and settings: a GPU and hours", published, paper),
    }  # fmt: skip
