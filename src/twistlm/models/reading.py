"""How a network reads prompts: what all begin with once, then the rest of each, once however many sequences follow.

A reading is a function of its set of prompts alone: neither their order, nor what has been read before, changes a bit
of it. So what is remembered (`Memory`) is what would be read again, and a resumed run equals one that never stopped.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from threading import RLock
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from torch.utils.checkpoint import checkpoint

from twistlm.core.kernels.entries import entries
from twistlm.core.kernels.threads import alone
from twistlm.core.memory import in_pieces
from twistlm.core.sizes import even
from twistlm.models.base import Prompts
from twistlm.models.cache import Pair, following

# Numbers in a pass's hidden states below which all but its products is faster on one thread.
ALONE = 2**18
# Tokens that are read in one pass, and columns that they attend to there: 32,768 of GPT-2's are 200 MB in a layer.
READING_TOKENS = 8192
READING_COLUMNS = 32_768
# Padding that costs less than another batch would: columns, where they are attended to at every step; tokens of a pass.
SPARE = 1024
SPARE_TOKENS = 64
# Bytes of keys and values of prompts that are remembered; the last reading is kept whatever its size.
REMEMBERED = 2**28

Tokens = tuple[int, ...]


@dataclass(frozen=True)
class Rests:
    """What comes after the stem in prompts of similar length, as one batch, padded on the right.

    Attributes:
        lengths: of the rests, each at least 1, the longest first.
        layers: keys and values of each layer [G, heads, P, d]; columns beyond a rest's length mean nothing.
    """

    lengths: tuple[int, ...]
    layers: list[Pair]


@dataclass(frozen=True)
class Reading:
    """R distinct prompts as one network has read them.

    Attributes:
        numbers: each prompt's, from 0 to R − 1, the longest first.
        hidden: of the last token of each [R, d].
        length: tokens that all begin with: the whole prompt if there is one.
        stem: keys and values of these in each layer [1, heads, C, d]; empty if there are none.
        rests: what follows, batch by batch in the order of `numbers`; empty if there is one prompt.
    """

    numbers: dict[Tokens, int]
    hidden: Tensor
    length: int
    stem: list[Pair]
    rests: list[Rests]

    def owners(self, prompts: Prompts) -> Tensor:
        """The number of each prompt [B]."""
        return torch.tensor([self.numbers[tuple(prompt.tolist())] for prompt in prompts])

    def stem_alone(self) -> list[Pair]:
        """Keys and values [heads, C, d] of what all begin with, as a cache that attends keeps them."""
        return [(keys[0].float(), values[0].float()) for keys, values in self.stem]

    @property
    def nbytes(self) -> int:
        """Bytes of keys and values."""
        pairs = [pair for rests in self.rests for pair in rests.layers] + self.stem
        return sum(each.numel() * each.element_size() for pair in pairs for each in pair)


class Memory:
    """The latest readings of one network, up to `REMEMBERED` bytes."""

    def __init__(self) -> None:
        self._network: nn.Module | None = None
        self._kept: OrderedDict[tuple[Tokens, ...], Reading] = OrderedDict()
        self._one_at_a_time = RLock()

    def __reduce__(self) -> tuple[type["Memory"], tuple[()]]:
        """A copy, here or in another process, has read nothing yet: it belongs to another network."""
        return Memory, ()

    def forget(self) -> None:
        """Hold on to no network, and to nothing that it has read."""
        with self._one_at_a_time:
            self._network = None
            self._kept.clear()

    def read(self, network: nn.Module, prompts: Sequence[Tokens], device: torch.device) -> Reading:
        """The distinct prompts as `network` reads them without gradient, or has read them."""
        with self._one_at_a_time:
            if self._network is not network:
                self._network = network
                self._kept.clear()
            key = tuple(sorted(prompts))
            if key not in self._kept:
                count = shared_length(key)
                stem = self.read(network, [key[0][:count]], device) if len(key) > 1 and count else None
                with torch.no_grad():
                    self._kept[key] = read(network, key, device, READING_TOKENS, stem)
            self._kept.move_to_end(key)
            while len(self._kept) > 1 and sum(reading.nbytes for reading in self._kept.values()) > REMEMBERED:
                self._kept.popitem(last=False)
            return self._kept[key]


def distinct(prompts: Prompts) -> list[Tokens]:
    """Each of the prompts once, in order."""
    # Equal prompts are mostly the same object, and lists of a thousand tokens take their time.
    return sorted({tuple(prompt.tolist()) for prompt in {id(prompt): prompt for prompt in prompts}.values()})


def shared_length(prompts: Sequence[Tokens]) -> int:
    """Tokens that all of several prompts begin with, but for at least one that is left of each."""
    first, last = min(prompts), max(prompts)
    most = min(len(prompt) for prompt in prompts) - 1
    return next((at for at in range(most) if first[at] != last[at]), most)


def read(
    network: nn.Module, prompts: Sequence[Tokens], device: torch.device, most: int, stem: Reading | None = None
) -> Reading:
    """Read distinct prompts, with gradient if there is one to be had, `most` tokens in a pass.

    `stem`: what all begin with, as it was read by itself.
    """
    if len(prompts) == 1:
        cache, tokens = following(0, []), torch.tensor([prompts[0]], device=device)
        with alone(small(network, tokens)):
            last = hidden_states(network, tokens, None, 0, cache)[:, -1]
        return Reading({prompts[0]: 0}, last, len(prompts[0]), _kept(cache), [])
    length = shared_length(prompts)
    if stem is None and length:
        stem = read(network, [prompts[0][:length]], device, most)
    before = [] if stem is None else stem.stem
    ordered = sorted(prompts, key=lambda prompt: (-len(prompt), prompt))
    rests = [torch.tensor(prompt[length:]) for prompt in ordered]
    lengths = [len(rest) for rest in rests]
    hidden, found = [], []
    for start, end in batches(lengths, SPARE):
        parts = []
        # A pass costs its tokens, padding and all, so that there are more passes than batches.
        passes = [(start + a, start + b) for a, b in batches(lengths[start:end], SPARE_TOKENS, most, length)]
        for a, b in passes:
            tokens = torch.nn.utils.rnn.pad_sequence(rests[a:b], batch_first=True).to(device)
            step = partial(_read_rests, network, before, tokens, lengths[a:b])
            again = torch.is_grad_enabled() and lengths[0] * len(lengths) > most
            last, *flat = checkpoint(step, use_reentrant=False) if again else step()
            hidden.append(last)
            parts.append([pad(each, (0, 0, 0, lengths[start] - lengths[a])) for each in flat])
        # In one piece, as batched products want them, and without the projections of queries beside them.
        flat = [torch.cat(each) for each in zip(*parts, strict=True)]
        found.append(Rests(tuple(lengths[start:end]), list(zip(flat[::2], flat[1::2], strict=True))))
    return Reading({prompt: at for at, prompt in enumerate(ordered)}, torch.cat(hidden), length, before, found)


def batches(lengths: Sequence[int], spare: int, most: int | None = None, before: int = 0) -> list[tuple[int, int]]:
    """Ranges of rests, the longest first, that are put side by side.

    A batch ends where padding would be more than `spare` and a quarter of its tokens, which memory has to hold. If it
    is of `most` tokens, for one pass after `before` others: a tenth, which takes time, and where the pass is full.
    """
    starts, real, wasted = [0], 0, 0
    for at, length in enumerate(lengths):
        longest, rows = lengths[starts[-1]], at + 1 - starts[-1]
        share = 4 if most is None else 10
        full = most is not None and (rows * longest > most or rows * (before + longest) > READING_COLUMNS)
        if rows > 1 and (full or wasted + longest - length > max(spare, (real + length) // share)):
            starts.append(at)
            real, wasted, longest = 0, 0, length
        real += length
        wasted += longest - length
    return list(zip(starts, [*starts[1:], len(lengths)], strict=True))


def left_padded(prompts: Prompts, device: torch.device) -> tuple[Tensor, Tensor]:
    """Prompts as one right-aligned batch [U, P], and the number of padding columns [U] of each."""
    longest = max(prompt.numel() for prompt in prompts)
    tokens = torch.zeros(len(prompts), longest, dtype=torch.long)
    for row, prompt in zip(tokens, prompts, strict=True):
        row[longest - prompt.numel() :] = prompt
    padding = torch.tensor([longest - prompt.numel() for prompt in prompts])
    return tokens.to(device), padding.to(device)


def hidden_states(
    network: Any, tokens: Tensor, padding: Tensor | None, used: int = 0, layers: Any = None, masked: bool = True
) -> Tensor:
    """Hidden states [B, Q, d] of tokens [B, Q] that follow `used` columns, of which `padding` [B] mean nothing.

    `masked`: these come first, and are the network's to pass over; otherwise only positions leave them out.
    """
    columns = torch.arange(used + tokens.shape[1], device=tokens.device)
    mask = None
    positions = columns[used:].unsqueeze(0).expand(tokens.shape[0], -1)
    if padding is not None:
        if masked:
            mask = (columns >= padding.unsqueeze(-1)).long()
        positions = (positions - padding.unsqueeze(-1)).clamp_min(0)
    output = network(
        input_ids=tokens,
        attention_mask=mask,
        position_ids=positions,
        past_key_values=layers,
        use_cache=layers is not None,
    )
    hidden: Tensor = output.last_hidden_state
    return hidden


def small(network: Any, tokens: Tensor) -> bool:
    """Whether a pass without gradient over `tokens` is faster on one thread, but for its products."""
    return not torch.is_grad_enabled() and tokens.numel() * network.config.hidden_size < ALONE


def in_parts(run: Callable[..., Tensor], given: Sequence[Tensor | None], rows: int, training: bool) -> Tensor:
    """`run` on at most so many rows of `given` [B, …] at a time."""
    count = len(next(each for each in given if each is not None))
    if training:
        # Equal parts: the largest decides the memory, and the last one is spared being run again.
        rows = even(count, rows)
    starts, parts = range(0, count, rows), []
    for at in starts:
        part = [None if each is None else each[at : at + rows] for each in given]
        # Activations of a few sequences at a time: each part runs again in the backward pass, but for the last one,
        # which that pass begins with.
        if training:
            parts.append(checkpoint(run, *part, use_reentrant=False) if at != starts[-1] else run(*part))
        else:
            parts.append(in_pieces(partial(_on_rows, run, part), min(rows, count - at), "reading sequences"))
    return torch.cat(parts)


def _on_rows(run: Callable[..., Tensor], given: Sequence[Tensor | None], rows: slice) -> Tensor:
    return run(*(None if each is None else each[rows] for each in given))


def worth_reading_once(prompts: Sequence[Tokens], sequences: int) -> bool:
    """Whether reading distinct prompts by themselves saves half of the tokens of padded prompts or more."""
    longest, length = max(len(prompt) for prompt in prompts), shared_length(prompts)
    once = length + sum(len(prompt) - length for prompt in prompts)
    return longest > 1 and 2 * once <= sequences * longest


def features_after(network: nn.Module, reading: Reading, owner: Tensor, tokens: Tensor, rows: int) -> Tensor:
    """Hidden states [B, T, d] before each of tokens [B, T] that follow the prompts of numbers `owner` [B]."""
    owner = owner.to(tokens.device)
    first = entries(reading.hidden, owner).unsqueeze(1)
    if tokens.shape[1] == 1:
        return first
    # Side by side by prompt, and prompts by length: little padding, and what prompts share is joined for all at once.
    order = owner.argsort(stable=True)
    inputs, numbers = tokens[order, :-1], owner[order]
    found = in_parts(partial(hidden_after, network, reading), (inputs, numbers), rows, torch.is_grad_enabled())
    return torch.cat([first, entries(found, order.argsort())], 1)


def hidden_after(network: nn.Module, reading: Reading, tokens: Tensor, numbers: Tensor | None = None) -> Tensor:
    """Hidden states [B, Q, d] of tokens [B, Q] after prompts `numbers` [B], in order; without, there is one prompt."""
    if numbers is None:
        cache = following(reading.length, [partial(_expanded, pair, len(tokens)) for pair in reading.stem])
        return hidden_states(network, tokens, None, reading.length, cache)
    each, counts = numbers.unique_consecutive(return_counts=True)
    groups = list(zip(each.tolist(), counts.tolist(), strict=True))
    lengths = [length for rests in reading.rests for length in rests.lengths]
    longest = lengths[groups[0][0]]
    missing = torch.tensor([longest - length for length in lengths], device=tokens.device)[numbers]
    before = [partial(_joined, reading, at, groups) for at in range(len(reading.rests[0].layers))]
    used = reading.length + longest
    return hidden_states(network, tokens, missing if bool(missing.any()) else None, used, following(used, before))


def _joined(reading: Reading, layer: int, groups: Sequence[tuple[int, int]]) -> Pair:
    """Keys and values [B, heads, L, d] in one layer of prompts, padded on the left: pairs of a number and how many."""
    sides: tuple[list[Tensor], list[Tensor]] = ([], [])
    counts, longest, first = dict(groups), 0, 0
    for rests in reading.rests:
        numbers = range(first, first + len(rests.lengths))
        first = numbers.stop
        chosen = [number for number in numbers if number in counts]
        if not chosen:
            continue
        # The first of all is the longest.
        longest = longest or rests.lengths[chosen[0] - numbers.start]
        for side, whole in enumerate(rests.layers[layer]):
            apart = whole.unbind()
            for number in chosen:
                length = rests.lengths[number - numbers.start]
                parts = [reading.stem[layer][side][0]] if reading.stem else []
                columns = torch.cat([*parts, apart[number - numbers.start][:, :length]], -2)
                padded = pad(columns, (0, 0, longest - length, 0))
                sides[side].append(padded.expand(counts[number], -1, -1, -1))
    return torch.cat(sides[0]), torch.cat(sides[1])


def _read_rests(network: nn.Module, stem: Sequence[Pair], tokens: Tensor, lengths: Sequence[int]) -> tuple[Tensor, ...]:
    """Hidden states [G, d] of the last of each of rests [G, P], then keys and values of each layer."""
    rows, used = len(tokens), stem[0][0].shape[-2] if stem else 0
    cache = following(used, [partial(_expanded, pair, rows) for pair in stem])
    # Padding comes after every token that counts, so that none attends to it.
    with alone(small(network, tokens)):
        hidden = hidden_states(network, tokens, None, used, cache)
    last = torch.tensor(lengths, device=tokens.device).sub(1).view(-1, 1, 1).expand(-1, 1, hidden.shape[-1])
    return hidden.gather(1, last).squeeze(1), *[each for pair in _kept(cache) for each in pair]


def _expanded(pair: Pair, rows: int) -> Pair:
    keys, values = (each.expand(rows, -1, -1, -1) for each in pair)
    return keys, values


def _kept(cache: Any) -> list[Pair]:
    return [(layer.keys, layer.values) for layer in cache.layers]
