import math
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from twistlm.core.errors import ConfigError, PotentialError
from twistlm.models.base import Prompts
from twistlm.models.tabular import TabularLM
from twistlm.potentials import Function, Regex, TextPotential, Threshold, evaluate
from twistlm.potentials.prefixes import prefix_scores, softened

PHI = {"hi dog": 0.25, "hi cat": 0.75}


@dataclass(frozen=True)
class Scorer(TextPotential):
    """φ from a table, and a raw logit that rises where φ falls."""

    nan: bool = False

    def log_phi_texts(self, texts: list[str]) -> Tensor:
        return torch.tensor([PHI[text] for text in texts], dtype=torch.float64).log()

    def logit(self, prompts: Prompts, tokens: Tensor) -> Tensor:
        logit = self.map_texts(prompts, tokens, lambda texts: torch.tensor([-10 * PHI[text] for text in texts]))
        return logit * math.nan if self.nan else logit


MISS = -math.inf


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"eta": 0.5}, [MISS, 0.0, MISS]),
        ({"eta": 0.75}, [MISS, 0.0, MISS]),  # the threshold itself passes
        ({"eta": 0.25, "direction": "<="}, [0.0, MISS, 0.0]),
        ({"eta": 0.0}, [0.0, 0.0, 0.0]),
        ({"eta": math.log(0.5), "on": "log_probability"}, [MISS, 0.0, MISS]),
        ({"eta": -5.0, "on": "logit", "direction": "<="}, [MISS, 0.0, MISS]),
        ({"eta": -5.0, "on": "logit"}, [0.0, MISS, 0.0]),
    ],
)
def test_scales_and_directions(lm, batch, arguments, expected) -> None:
    assert evaluate(Threshold(Scorer(), **arguments).bind(lm), *batch).tolist() == expected


def test_eps_softens_in_the_log_domain(lm, batch) -> None:
    paper = Threshold(Scorer(), -5, on="logit", direction="<=", eps=1e-16).bind(lm)
    assert evaluate(paper, *batch).tolist() == [math.log(1e-16), math.log1p(1e-16), math.log(1e-16)]
    assert Threshold(Scorer(), 0.5, eps=0.5).log_upper_bound == math.log(1.5)


def test_a_score_too_small_for_exp_is_still_compared() -> None:
    tiny = Function(lambda prompts, tokens: torch.tensor([-800.0, -700.0]), on="tokens")
    tokens = torch.zeros(2, 1, dtype=torch.long)
    value = evaluate(Threshold(tiny, -750.0, on="log_probability"), [tokens[0]] * 2, tokens)
    assert value.tolist() == [MISS, 0.0]


def test_a_logit_that_is_nan_is_an_error_and_not_a_miss(lm, batch) -> None:
    with pytest.raises(PotentialError, match="Scorer returned a logit that is NaN"):
        evaluate(Threshold(Scorer(nan=True), 0.0, on="logit").bind(lm), *batch)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"eta": 0.5, "on": "odds"}, "on must be"),
        ({"eta": 0.5, "direction": ">"}, "direction must be"),
        ({"eta": -0.5}, "out of range"),
        ({"eta": math.nan, "on": "logit"}, "out of range"),
        ({"eta": 0.5, "eps": -1.0}, "eps"),
    ],
)
def test_settings_are_checked(arguments, message) -> None:
    with pytest.raises(ConfigError, match=message):
        Threshold(Scorer(), **arguments)


def test_a_part_of_a_product_says_no_infinity_of_a_prefix() -> None:
    """A score of 0 has a logarithm of −∞, +∞ with its sign changed, beside the −∞ of a pattern that is not met."""
    share = Function(
        lambda texts: [text.count("0") / 4 for text in texts], log=False, log_upper_bound=0.0, prefixes=True
    )
    low = Threshold(share, 0.3, direction="<=")
    prompts, tokens = [torch.tensor([1])] * 2, torch.tensor([[1], [2]])
    model = TabularLM.random(3, 3, seed=0)
    alone = prefix_scores(low.bind(model), prompts, tokens)
    assert alone.tolist() == softened(torch.full((2,), math.inf, dtype=torch.float64)).tolist()
    both = prefix_scores((Regex("2", mode="search") * low).bind(model), prompts, tokens)
    assert both[0] < both[1]


def test_a_scorer_without_a_logit_is_refused() -> None:
    with pytest.raises(ConfigError, match="Function has no logit"):
        Threshold(Function(len), 0.0, on="logit")
