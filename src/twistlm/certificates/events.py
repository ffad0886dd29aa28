"""What an event looks like: samples of p₀ given the event, and the words of each that the score reacts to."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import torch
from torch import Tensor

from twistlm.core.logmath import normalise
from twistlm.core.rng import Rng
from twistlm.core.storage import STRICT
from twistlm.models.base import BaseLM
from twistlm.models.token_texts import token_texts_of
from twistlm.potentials.base import evaluate
from twistlm.potentials.protocol import Potential
from twistlm.potentials.texts import TextPotential
from twistlm.sampling.resampling import invert, stratified_points

# Spans of a text that are shown, and the share of the score that each takes with it at least.
MOST_SPANS, LEAST_LOSS = 5, 0.1


@dataclass(frozen=True)
class Span:
    """A word of a text that the score reacts to.

    Attributes:
        start, end: its characters.
        loss: the share of the score that goes when the word is left out, 1 − φ(without) / φ(with), at most 1.
    """

    start: int
    end: int
    loss: float


@dataclass(frozen=True)
class Event:
    """A text in which the event happened.

    Attributes:
        text: the answer, without the prompt.
        weight: the share of the event that it stands for, among the events shown of its prompt.
        log_phi: log of its score.
        log_p: its log probability under the base model, in nats.
        spans: what the score reacts to, by position; none where it does not read text.
    """

    __pydantic_config__ = STRICT

    text: str
    weight: float
    log_phi: float
    log_p: float
    spans: tuple[Span, ...] = ()


def chosen(rng: Rng, tokens: Tensor, log_w: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """At most `most` distinct sequences of weighted ones, as samples of what the weights stand for.

    All of them with their weights where there are no more; otherwise a stratified resample, so that each stands for an
    equal part of the event, and is kept once with the number of its parts.

    Args:
        rng: of the resample.
        tokens: events [n, T], n ≥ 1.
        log_w: log of their weights [n], not all −inf.
        most: how many.

    Returns:
        Positions among the n, by decreasing weight, and the weights, which sum to 1.
    """
    distinct, group = tokens.unique(dim=0, return_inverse=True)
    weights = normalise(log_w).new_zeros(len(distinct)).index_add(0, group, normalise(log_w))
    if len(distinct) > most:
        parts = invert(weights.unsqueeze(0), stratified_points(rng, 1, most))[0]
        weights = torch.bincount(parts, minlength=len(distinct)).double() / most
    order = weights.argsort(descending=True, stable=True)[: int((weights > 0).sum())]
    # The first of those that are alike.
    first = torch.full((len(distinct),), len(group)).scatter_reduce(0, group, torch.arange(len(group)), "amin")
    return first[order], weights[order]


def spans_of(potential: Potential, lm: BaseLM, prompt: Tensor, tokens: Tensor) -> list[tuple[Span, ...]]:
    """The words of each text [n, T] without which the score is less, by leaving out one at a time.

    Tokens of the word are taken out, and the end is filled with EOS, which is not decoded. Potentials that read tokens
    are left alone (a place of the sequence means something to them), and so are models without EOS: no spans then.
    """
    if lm.eos_token_id is None or not reads_texts(potential):
        return [()] * len(tokens)
    words = [list(_words(pieces)) for pieces in token_texts_of(lm, tokens)]
    rows, without = list(tokens), list[Tensor]()
    for row, parts in zip(rows, words, strict=True):
        for part in parts:
            kept = torch.ones(len(row), dtype=torch.bool)
            kept[part.first : part.last] = False
            filling = row.new_full((part.last - part.first,), lm.eos_token_id)
            without.append(torch.cat([row[kept], filling]))
    asked = torch.stack([*rows, *without])
    log_phi = evaluate(potential, [prompt] * len(asked), asked)
    found, at = [], len(rows)
    for whole, parts in zip(log_phi[: len(rows)], words, strict=True):
        losses = (-(log_phi[at : at + len(parts)] - whole).expm1()).tolist()
        at += len(parts)
        spans = [Span(part.start, part.end, loss) for part, loss in zip(parts, losses, strict=True)]
        most = sorted((each for each in spans if each.loss >= LEAST_LOSS), key=lambda span: -span.loss)[:MOST_SPANS]
        found.append(tuple(sorted(most, key=lambda span: span.start)))
    return found


def reads_texts(potential: Potential) -> bool:
    """Whether it reads the text of a sequence and nothing else of it: itself, or all that it is made of."""
    if isinstance(potential, TextPotential):
        return True
    parts = list(_parts(potential))
    return bool(parts) and all(map(reads_texts, parts))


def _parts(potential: Potential) -> Iterator[Potential]:
    """The potentials among the arguments of one."""
    if not is_dataclass(potential):
        return
    for each in fields(potential):
        value: Any = getattr(potential, each.name)
        yield from (part for part in (value if isinstance(value, tuple) else (value,)) if isinstance(part, Potential))


@dataclass(frozen=True)
class _Word:
    """Tokens first to last (exclusive) of a sequence, and characters start to end of its text."""

    first: int
    last: int
    start: int
    end: int


def _words(pieces: Sequence[str]) -> Iterator[_Word]:
    """What is between spaces; the single tokens of a text without any."""
    starts = [k for k, piece in enumerate(pieces) if k == 0 or piece[:1].isspace() or pieces[k - 1][-1:].isspace()]
    if len(starts) == 1:
        starts = list(range(len(pieces)))
    at = 0
    for first, last in zip(starts, [*starts[1:], len(pieces)], strict=True):
        text = "".join(pieces[first:last])
        start, end = at + len(text) - len(text.lstrip()), at + len(text.rstrip())
        at += len(text)
        if start < end:
            yield _Word(first, last, start, end)
