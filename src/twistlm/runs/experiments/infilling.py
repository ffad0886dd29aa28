"""Infilling: what comes before a given end, as in section 7.2.3 of Zhao et al. (2024)."""

from dataclasses import replace
from typing import Any

from twistlm.core.sizes import TOKEN_BYTES, check_sizes
from twistlm.potentials import Infilling
from twistlm.runs.config import EvaluationConfig
from twistlm.runs.experiments import Preset, Presets, experiment
from twistlm.runs.experiments.common import PAPER_LIKE, rates, smoke
from twistlm.runs.experiments.toxicity import PROMPT
from twistlm.sampling.target import Target

# Adam's learning rates, the best of the paper's grid for each method, for 15 tokens before 10 and for 2 before 1.
PAPER_RATES = {"ctl": 3e-6, "rl": 3e-5, "sixo": 1e-4, "fudge": 1e-6, "dpg": 1e-4, "ppo": 3e-5}
PAPER_RATES_SHORT = {"ctl": 1e-4, "rl": 1e-4, "sixo": 1e-4, "fudge": 1e-4, "dpg": 1e-4, "ppo": 3e-5}
# The same for the bundled model, by papers/zhao2024/rates.py. For fifteen and ten RL and FUDGE learn nothing in the
# time at any rate, and PPO breaks down at those tried, 1e-4 to 1e-3: it has that of two and one.
RATES = {"ctl": 3e-4, "rl": 3e-4, "sixo": 3e-4, "fudge": 3e-4, "dpg": 1e-3, "ppo": 3e-5, "gkl": 1e-3, "prompted": 6e-4}
RATES_SHORT = {
    "ctl": 3e-3,
    "rl": 3e-4,
    "sixo": 3e-3,
    "fudge": 3e-4,
    "dpg": 3e-3,
    "ppo": 3e-5,
    "gkl": 1e-3,
    "prompted": 1e-3,
}


@experiment("infilling")
def infilling(num_tokens: int = 15, num_condition: int = 10) -> Presets:
    """Tokens after "Once upon a time, there was a" and before a given end: one twist for all ends. Or 2 before 1."""

    check_sizes(TOKEN_BYTES, num_tokens=num_tokens, num_condition=num_condition)

    def bundled() -> Target:
        return Target("stories", Infilling(num_condition), PROMPT, num_tokens, eos="ignore")

    def published() -> Target:
        return Target("roneneldan/TinyStories-33M", Infilling(num_condition), PROMPT, num_tokens, eos="ignore")

    short = num_tokens <= 2
    published_rates, small_rates = (PAPER_RATES_SHORT, RATES_SHORT) if short else (PAPER_RATES, RATES)
    # Fifteen tokens and ten to be met cost twelve times as much as two and one, and are much harder: twice the updates,
    # and the model's own output matrix, with which DPG learns as much in 64 updates as in 110 without.
    training = replace(
        PAPER_LIKE.training,
        target_source="exact",
        num_cases=10,
        num_particles=100 if short else 50,
        num_updates=64 if short else 128,
        learning_rate=small_rates["ctl"],
    )
    small = replace(
        PAPER_LIKE,
        twist="conditional",
        twist_options={} if short else {"tied": True},
        num_draws=4096,
        folds=(0.01, 0.19, 0.8),
        training=training,
        evaluation=EvaluationConfig((4, 32), 256, 1024, during_training=True),
    )
    paper = replace(
        small,
        twist_options={"own_network": True},
        evaluation=EvaluationConfig((500,), 2000, 1_000_000, during_training=True),
        training=replace(
            training,
            num_updates=2**14 if short else 5500,
            num_particles=100,
            num_cases=10 if short else 25,
            learning_rate=published_rates["ctl"],
        ),
    )
    # FUDGE draws a fresh end for each of a sequence's prefixes: so few that all methods draw as many sequences. What
    # is published are batches.
    few = _other_methods(training.num_particles, -(-training.num_particles // num_tokens))
    many = _other_methods(paper.training.num_particles, paper.training.num_particles)
    return {
        "smoke": Preset("seconds, to see that everything runs", bundled, smoke(small, 256), few),
        "small": Preset("every method on the bundled model, minutes each on two cores", bundled, small,
                        rates(small_rates, few)),
        "paper": Preset("the paper's model and settings: a GPU and hours", published, paper,
                        rates(published_rates, many)),
    }  # fmt: skip


def _other_methods(num_particles: int, for_fudge: int) -> dict[str, dict[str, Any]]:
    """CTL wants several particles for each condition, the others as many conditions as there are."""
    methods: dict[str, dict[str, Any]] = {
        method: {"num_cases": num_particles} for method in (*PAPER_RATES, "gkl") if method != "ctl"
    }
    # A network that reads the end first (docs/conditions.md), from exact samples as DPG.
    methods["prompted"] = {"method": "dpg", "twist": "prompted", "num_cases": num_particles}
    # Ends of p₀'s own prefixes hardly ever meet a condition, so FUDGE learns from prefixes of exact samples.
    methods["fudge"] = {
        "num_particles": for_fudge,
        "num_cases": for_fudge,
        "intermediate_source": "completions",
    }
    return methods
