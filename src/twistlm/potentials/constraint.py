"""What every hard constraint shares: an automaton says which texts satisfy it, and the sampler never leaves it.

A constraint is a potential of 0 and 1 on the text of the new tokens, from the first to EOS or the last one. All
tokenizations of a text count alike. What is special about it is that samplers know of it: where `constrain` is true,
the exact twist of its automaton multiplies every other (`twistlm.twists.automaton`), so that no particle dies of it.
"""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from functools import reduce
from operator import and_
from typing import Self

import torch
from torch import Tensor

from twistlm.automata import cache
from twistlm.automata.automaton import Automaton
from twistlm.automata.grammar import Grammar
from twistlm.automata.tokens import TokenAutomaton
from twistlm.core.errors import ConfigError
from twistlm.models.base import BaseLM, Prompts
from twistlm.models.token_bytes import token_bytes
from twistlm.potentials.base import BasePotential, Power, Product
from twistlm.potentials.protocol import Potential

ANY_LENGTH = (0, float("inf"))


class Constraint(BasePotential):
    """φ = 1 if the text of the new tokens is one of the automaton's, else 0. Subclasses are dataclasses."""

    log_upper_bound = 0.0
    log_lower_bound = -torch.inf
    constrain: bool = True

    @abstractmethod
    def automaton(self) -> Automaton:
        """The texts that satisfy it.

        Raises:
            ConfigError: there is no such automaton, with the argument that is wrong.
        """

    def continued(self) -> Automaton:
        """The texts that satisfy it where the prompt ends with a letter, digit or underscore."""
        return self.automaton()

    @property
    def lengths(self) -> tuple[int, float]:
        """The least and the greatest number of tokens, EOS not counted."""
        return ANY_LENGTH

    @property
    def counted(self) -> str:
        """Which ways to write the same count and which do not, as a sentence; "" if that is no question."""
        return ""

    @property
    def grammars(self) -> tuple[str, ...]:
        """What the text must be of besides, as `twistlm.automata.grammar` reads it."""
        return ()

    def bind(self, lm: BaseLM) -> Self:
        """A copy that reads this model's tokens.

        Raises:
            ConfigError: nothing satisfies it, in the model's tokens.
            ModelError: the model's tokens are not pieces of a text.
        """
        bound = super().bind(lm)
        object.__setattr__(bound, "_tokens", compiled([self], lm))
        return bound

    def log_phi(self, prompts: Prompts, tokens: Tensor) -> Tensor:
        """0 where satisfied, −inf elsewhere [B].

        Raises:
            PotentialError: not bound to a model.
        """
        self.bound_lm()
        automaton: TokenAutomaton = self._tokens  # type: ignore[attr-defined]
        satisfied = automaton.satisfied(tokens, automaton.begin(prompts)).to(tokens.device)
        return torch.zeros(len(tokens), dtype=torch.float64, device=tokens.device).masked_fill(~satisfied, -torch.inf)


def constraints_in(potential: Potential) -> list[Constraint]:
    """The constraints that a potential is made of and that samplers are to keep to."""
    if isinstance(potential, Constraint):
        return [potential] if potential.constrain else []
    if isinstance(potential, Product):
        return [each for part in potential.parts for each in constraints_in(part)]
    return constraints_in(potential.base) if isinstance(potential, Power) else []


def compiled(constraints: Sequence[Constraint], lm: BaseLM) -> TokenAutomaton:
    """All of them at once, over the tokens of a model.

    Raises:
        ConfigError: no text satisfies them all.
    """
    automaton = reduce(and_, [each.automaton() for each in constraints])
    inside = 0
    if any(type(each).continued is not Constraint.continued for each in constraints):
        automaton, inside = automaton.beside(reduce(and_, [each.continued() for each in constraints]))
    fewest, most = max(each.lengths[0] for each in constraints), min(each.lengths[1] for each in constraints)
    if automaton.is_empty or fewest > most:
        raise ConfigError(f"no text satisfies {_named(constraints)}; {_remedy(constraints)}")
    tokens = token_bytes(lm)
    found = cache.compiled(automaton, tokens, lm.eos_token_ids, (fewest, most), inside)
    if found.is_empty:
        raise ConfigError(
            f"no text of this model's tokens satisfies {_named(constraints)}: a letter that it needs is in none of them"
        )
    written = [text for each in constraints for text in each.grammars]
    grammars = tuple(Grammar(text, tokens, lm.eos_token_ids) for text in written)
    return replace(found, grammars=grammars, tokens=tokens)


def contradicted(constraints: Sequence[Constraint], num_draws: int, num_tokens: int) -> str:
    """What to say where no draw satisfied all of them, though a grammar allowed each step."""
    change = ", or change one, if they contradict each other" if len(constraints) > 1 else ""
    return (
        f"none of {num_draws} draws of at most {num_tokens} tokens satisfies {_named(constraints)}; "
        f"ask for more tokens (num_tokens){change}"
    )


def _named(constraints: Sequence[Constraint]) -> str:
    return " and ".join(map(repr, constraints))


def _remedy(constraints: Sequence[Constraint]) -> str:
    return "correct it" if len(constraints) == 1 else "they contradict each other, so change one"
