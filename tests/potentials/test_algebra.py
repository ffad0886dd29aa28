import math
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from twistlm.core.errors import ConfigError, ModelError, PotentialError, UpperBoundError
from twistlm.models.base import Prompts
from twistlm.potentials import BasePotential, Function, Infilling, Power, Product, Regex, TextPotential, evaluate
from twistlm.potentials.protocol import Potential


@dataclass(frozen=True)
class Fixed(BasePotential):
    """Returns what it is told."""

    value: Tensor
    bound: float | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "log_upper_bound", self.bound)

    def log_phi(self, prompts: Prompts, tokens: Tensor) -> Tensor:
        return self.value


PROMPTS, TOKENS = [torch.tensor([1])] * 3, torch.tensor([[1, 2], [3, 4], [5, 6]])


def fixed(*values: float, bound: float | None = None) -> Fixed:
    return Fixed(torch.tensor(values, dtype=torch.float64), bound)


def test_product_adds_and_power_multiplies() -> None:
    a, b = fixed(-1.0, -math.inf, -3.0, bound=0.0), fixed(0.25, 1.0, -0.5, bound=1.0)
    value = evaluate((a * b) ** 2.0, PROMPTS, TOKENS)
    assert value.tolist() == [-1.5, -math.inf, -7.0]
    assert value.dtype == torch.float64


def test_bounds_follow_the_algebra() -> None:
    a, b, free = fixed(0.0, bound=0.5), fixed(0.0, bound=1.0), fixed(0.0)
    assert (a * b).log_upper_bound == 1.5
    assert (a**3).log_upper_bound == 1.5
    assert (a * free).log_upper_bound is None
    assert (free**2).log_upper_bound is None
    assert isinstance(a * b, Potential)


def test_rounding_above_a_bound_is_carried_through_the_algebra() -> None:
    rounded = fixed(5e-6, 0.0, -1.0, bound=0.0)
    for made, most in ((rounded, 5e-6), (rounded**10, 5e-5), (rounded * rounded * rounded, 1.5e-5)):
        assert float(evaluate(made, PROMPTS, TOKENS).max()) == pytest.approx(most)
    with pytest.raises(UpperBoundError, match="Fixed returned log φ = 2e-05"):
        evaluate(fixed(2e-5, 0.0, 0.0, bound=0.0) ** 10, PROMPTS, TOKENS)


@pytest.mark.parametrize(
    ("made", "what"),
    [(lambda: Infilling(2) ** 2.0, "the base of a power"), (lambda: Infilling(2) * Regex("1"), "a part of a product")],
)
def test_what_differs_by_a_condition_has_no_algebra(made: Callable[[], Potential], what: str) -> None:
    with pytest.raises(ConfigError, match=f"Infilling differs .* by its condition and cannot be {what}; use it by its"):
        made()


def test_product_is_flat_and_not_empty() -> None:
    a, b, c = fixed(0.0), fixed(0.1), fixed(0.2)
    assert ((a * b) * c).parts == (a, b, c)
    with pytest.raises(ConfigError, match="at least one"):
        Product(())


@pytest.mark.parametrize("beta", [0.0, -1.0, math.inf, math.nan])
def test_power_needs_a_positive_finite_exponent(beta: float) -> None:
    with pytest.raises(ConfigError, match="beta must be positive"):
        Power(fixed(0.0), beta)


def test_binding_reaches_every_part_and_leaves_the_original(lm, batch) -> None:
    product = (Regex("dog") * Regex("cat", negate=True)) ** 2
    assert evaluate(product.bind(lm), *batch).tolist() == [0.0, -math.inf, 0.0]
    with pytest.raises(PotentialError, match="bind"):
        evaluate(product, *batch)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_value_that_is_no_log_potential_is_an_error_naming_the_text(lm, batch, bad) -> None:
    potential = Function(lambda texts: [bad if "cat" in text else 0.0 for text in texts]).bind(lm)
    with pytest.raises(PotentialError, match=r"Function returned log φ = (nan|inf) on the text 'hi cat'"):
        evaluate(potential, *batch)


@pytest.mark.parametrize("value", [torch.zeros(2), torch.zeros(3, 1), torch.tensor(0.0)])
def test_a_wrong_shape_is_an_error(value) -> None:
    with pytest.raises(PotentialError, match=r"expected a tensor of shape \[3\]"):
        evaluate(Fixed(value), PROMPTS, TOKENS)


def test_something_other_than_a_tensor_is_an_error() -> None:
    with pytest.raises(PotentialError, match="returned list"):
        evaluate(Fixed([0.0, 0.0, 0.0]), PROMPTS, TOKENS)


def test_a_raising_potential_is_named_with_the_text_and_the_cause(lm, batch) -> None:
    def score(texts: list[str]) -> list[float]:
        return [1 / (text != "hi cat") for text in texts]

    with pytest.raises(PotentialError, match=r"raised ZeroDivisionError: .* on the text 'hi cat'") as caught:
        evaluate(Function(score).bind(lm), *batch)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_without_a_tokenizer_the_tokens_are_named() -> None:
    def score(prompts: Prompts, tokens: Tensor) -> Tensor:
        if (tokens == 4).any():
            raise KeyError("four")
        return torch.zeros(len(tokens))

    with pytest.raises(PotentialError, match=r"KeyError.* on the tokens \[1, 3, 4\]"):
        evaluate(Function(score, on="tokens"), PROMPTS, TOKENS)


def test_an_error_of_the_whole_batch_blames_no_sequence() -> None:
    def score(prompts: Prompts, tokens: Tensor) -> Tensor:
        if len(tokens) == 3:
            raise ValueError("too many")
        return torch.zeros(len(tokens))

    with pytest.raises(PotentialError, match=r"raised ValueError: too many$"):
        evaluate(Function(score, on="tokens"), PROMPTS, TOKENS)


def test_a_long_text_is_cut_short(lm) -> None:
    tokens = torch.ones(1, 500, dtype=torch.long)
    with pytest.raises(PotentialError) as caught:
        evaluate(Function(lambda texts: [math.nan]).bind(lm), [tokens[0, :0]], tokens)
    assert "…" in str(caught.value)
    assert len(str(caught.value)) < 200
    assert "\n" not in str(caught.value)


def test_deliberate_errors_pass_unchanged() -> None:
    def score(prompts: Prompts, tokens: Tensor) -> Tensor:
        raise ModelError("install it")

    with pytest.raises(ModelError, match=r"^install it$"):
        evaluate(Function(score, on="tokens"), PROMPTS, TOKENS)


def test_a_violated_bound_is_an_error_and_rounding_is_not() -> None:
    with pytest.raises(UpperBoundError, match=r"log φ = 0.001 above its log_upper_bound 0 on the tokens \[1, 3, 4\]"):
        evaluate(fixed(0.0, 1e-3, 0.0, bound=0.0), PROMPTS, TOKENS)
    assert evaluate(fixed(0.0, 1e-7, 0.0, bound=0.0), PROMPTS, TOKENS).shape == (3,)


def test_an_error_inside_a_product_names_the_part() -> None:
    with pytest.raises(PotentialError, match=r"^Function returned"):
        evaluate(
            fixed(0.0, 0.0, 0.0) * Function(lambda p, t: torch.full((3,), math.nan), on="tokens"),
            PROMPTS,
            TOKENS,
        )


def test_no_gradient_leaves_a_potential() -> None:
    parameter = torch.zeros(3, requires_grad=True)
    assert not evaluate(Fixed(parameter * 2), PROMPTS, TOKENS).requires_grad


def test_an_empty_batch_is_fine(lm) -> None:
    assert evaluate(Regex("a").bind(lm), [], torch.zeros(0, 4, dtype=torch.long)).shape == (0,)


class Counted(TextPotential):
    """A user's own class, neither a dataclass nor frozen; counts what it is asked."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def log_phi_texts(self, texts: list[str]) -> Tensor:
        self.seen.extend(texts)
        return -torch.tensor([float(len(text)) for text in texts])


def test_each_distinct_text_is_scored_once_and_in_its_place(lm) -> None:
    potential = Counted().bind(lm)
    prompt = lm.encode("a")
    tokens = torch.tensor([[1, 2, 0, 0], [1, 2, 3, 4], [1, 2, 0, 0], [1, 2, 3, 4], [5, 0, 0, 0]])
    assert evaluate(potential, [prompt] * 5, tokens).tolist() == [-3, -5, -3, -5, -2]
    assert potential.seen == ["aab", "aabcd", "ae"]  # EOS is skipped


def test_the_prompt_is_part_of_the_text_unless_told_otherwise(lm, batch) -> None:
    assert evaluate(Regex("^hi ").bind(lm), *batch).tolist() == [0, 0, 0]
    assert evaluate(Regex("^dog", of="continuation").bind(lm), *batch).tolist() == [0, -math.inf, 0]


def test_importing_the_potentials_stays_cheap() -> None:
    code = "import sys, twistlm.potentials; sys.exit(bool({'transformers', 'h5py'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
