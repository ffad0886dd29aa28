"""What all laws need: how one is stated, and sequences to try a part on."""

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

from twistlm.core.rng import Rng
from twistlm.models.base import BaseLM, Prompts, is_end
from twistlm.sampling.proposals import Proposal, twist_induced
from twistlm.sampling.samples import Samples
from twistlm.sampling.twisted import TwistedLM

T = TypeVar("T")


class Trial:
    """One part on trial, by the name that messages call it by."""

    def __init__(self, part: str) -> None:
        self.part = part

    def require(self, holds: bool, law: str, seen: str, remedy: str) -> None:
        """Raise an AssertionError unless the law holds.

        Args:
            holds: whether it does.
            law: in words.
            seen: what was seen, and for what input.
            remedy: how such a thing is mended.
        """
        if not holds:
            raise AssertionError(f"{self.part} breaks the law “{law}”: {seen}. {remedy}.")

    def result(self, function: Callable[[], T], law: str, given: str, remedy: str) -> T:
        """What the function returns; that it raises breaks the law."""
        try:
            return function()
        except Exception as error:
            seen = f"{given} raised {type(error).__name__}: {' '.join(str(error).split())}"
            raise AssertionError(f"{self.part} breaks the law “{law}”: {seen}. {remedy}.") from error


def stories() -> BaseLM:
    """The bundled small model."""
    from twistlm.models.huggingface import load

    # In full precision: laws are to be told from rounding.
    return load("stories", dtype="float32")


def close(value: Tensor, expected: Tensor, tolerance: float) -> Tensor:
    """Which entries agree: absolutely or relatively by `tolerance`; −∞ agrees with itself alone."""
    return (value == expected) | ((value - expected).abs() <= tolerance * expected.abs().clamp_min(1.0))


def first(wrong: Tensor) -> str:
    """Where the first wrong entry is, as an index; "" if none is."""
    return ", ".join(str(int(k)) for k in wrong.nonzero()[:1].flatten())


@torch.no_grad()
def decoded(
    model: TwistedLM,
    prompts: Prompts,
    num_steps: int,
    conditions: Tensor | None = None,
    proposal: Proposal = twist_induced,
    seed: int = 0,
) -> tuple[Samples, Tensor]:
    """Sequences [B, T] drawn token by token through the caches, and log ψ_t as it was then [B, T].

    Before every token each sequence is replaced by a random one, as resampling does.
    """
    rng, count = Rng(seed), len(prompts)
    state = model.start(prompts, 1, num_steps, conditions)
    finished = torch.zeros(count, dtype=torch.bool, device=state.rows.device)
    origin, columns = torch.arange(count, device=state.rows.device), torch.zeros(4, count, 0, dtype=torch.float64)
    columns = columns.to(state.rows.device)
    for t in range(num_steps):
        if t > 0:
            ancestors = (rng.uniform((1, count))[0] * count).long().to(origin.device)
            origin, columns, finished = origin[ancestors], columns[:, ancestors], finished[ancestors]
            state = model.extend(state, columns[0, :, -1].long(), ancestors, finished)
        forced = torch.where(finished, -1 if model.absorbing is None else model.absorbing, -1)
        drawn = model.draw(rng.fork(t), state, proposal, forced)
        fresh = torch.stack([drawn.tokens.double(), drawn.log_p, drawn.log_psi, drawn.log_q])
        # What has ended keeps its ψ.
        kept = torch.cat([fresh[:1], columns[1:, :, -1]]) if t else fresh
        columns = torch.cat([columns, torch.where(finished, kept, fresh).unsqueeze(-1)], -1)
        if model.absorbing is not None:
            finished = finished | is_end(drawn.tokens, model.ends)
    tokens = columns[0].long()
    mask = model.mask(tokens)
    log_p, log_psi, log_q = columns[1:]
    chosen = [prompts[k] for k in origin.tolist()]
    given = None if conditions is None else conditions[origin.to(conditions.device)]
    nothing = torch.zeros(count, dtype=torch.float64, device=tokens.device)
    return Samples(chosen, tokens, mask, log_p * mask, log_q * mask, nothing, conditions=given), log_psi
