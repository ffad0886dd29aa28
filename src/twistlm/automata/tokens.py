"""An automaton over the tokens of a model: which may come next, and where each leads.

The automaton over bytes is walked by every token from every state that a token can lead to, so that all tokenizations
of a text count. Tokens that lead from every state to the same one are one class: most of a vocabulary is a few hundred
of them, and everything that follows is done once per class.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from twistlm.automata.automaton import DEAD, Automaton
from twistlm.automata.grammar import Grammar

# Bytes of a letter in UTF-8, at most.
LONGEST_LETTER = 4
# Elements of [states, V] that are walked at a time.
WALKED = 4_000_000


@dataclass(frozen=True, eq=False)
class TokenAutomaton:
    """S states, then one for texts that EOS has ended, then one for those that cannot satisfy the constraint any more.

    Attributes:
        following: the state after a token of each class [S + 2, C].
        accepting: whether a text may end in each state [S + 2].
        token_class: the class of each token [V].
        eos: the class of the tokens that end a text, None if there are none.
        lengths: the least and the greatest number of tokens before EOS.
        grammars: what a text must be of besides, beyond what states can say.
        inside: the state in which a text begins that goes on inside a word of its prompt; others begin in the first.
        tokens: the bytes of each token, by which it is seen how a prompt ends; none if that makes no difference.
    """

    following: Tensor
    accepting: Tensor
    token_class: Tensor
    eos: int | None
    lengths: tuple[int, float] = (0, float("inf"))
    grammars: tuple[Grammar, ...] = ()
    inside: int = 0
    tokens: Sequence[bytes] = ()

    @staticmethod
    def of(
        automaton: Automaton,
        tokens: Sequence[bytes],
        ends: Sequence[int],
        lengths: tuple[int, float] = (0, float("inf")),
        inside: int = 0,
    ) -> "TokenAutomaton":
        """That of a vocabulary; tokens without bytes are never allowed, but for `ends`, each of which ends the text."""
        walk = _Walk(automaton, tokens)
        states, tag = walk.reachable([0, inside] if inside > 0 else [0])
        # No other tokens do what these do.
        tag[list(ends)] = 0
        _, first, classes = np.unique(tag, return_index=True, return_inverse=True)
        place = np.full(len(automaton.accepting) + 1, len(states) + 1, dtype=np.int64)
        place[states] = np.arange(len(states))
        rows = [place[walk.after(block, first)] for block in _blocks(states, len(first))]
        ended, dead = len(states), len(states) + 1
        following = torch.from_numpy(np.concatenate(rows))
        following = torch.cat([following, torch.full((2, len(first)), dead)])
        accepting = torch.from_numpy(np.append(automaton.accepting[states], [True, False]))
        end = None
        if ends:
            end = int(classes.reshape(-1)[ends[0]])
            following[:, end] = torch.where(accepting, ended, dead)
        begins = dead if inside == DEAD else int(inside > 0)
        return TokenAutomaton(following, accepting, torch.from_numpy(classes.reshape(-1)), end, lengths, inside=begins)

    @property
    def num_states(self) -> int:
        """S + 2."""
        return len(self.accepting)

    @property
    def ended(self) -> int:
        """The state of a text that EOS has ended."""
        return self.num_states - 2

    @property
    def dead(self) -> int:
        """The state of a text that cannot satisfy the constraint any more."""
        return self.num_states - 1

    @property
    def is_empty(self) -> bool:
        """Whether no text of any length satisfies it."""
        return not bool(self.accepting[: self.ended].any())

    def fewest_tokens(self, begin: int = 0) -> int | None:
        """The fewest tokens of a text from a state on, of the lengths that are allowed; None if there is none."""
        fewest, most = self.lengths
        now = torch.zeros(self.num_states, dtype=torch.bool)
        now[begin] = True
        now[self.ended :] = False
        # Longer than this, states come again, and so do lengths.
        for length in range(fewest + 2 * self.num_states):
            if fewest <= length <= most and bool((now & self.accepting)[: self.ended].any()):
                return length
            after = torch.zeros_like(now)
            after[self.following[now].unique()] = True
            now = after
            now[self.ended :] = False
        return None

    def begin(self, prompts: Sequence[Tensor]) -> Tensor:
        """The state in which the text after each prompt begins [B]."""
        if not self.inside:
            return torch.zeros(len(prompts), dtype=torch.long)
        by_identity = {id(prompt): prompt for prompt in prompts}
        known = {key: self.inside if self._ends_inside(prompt) else 0 for key, prompt in by_identity.items()}
        return torch.tensor([known[id(prompt)] for prompt in prompts], dtype=torch.long)

    def _ends_inside(self, prompt: Tensor) -> bool:
        """Whether a prompt ends with a letter, digit or underscore. A token without bytes is a border."""
        written = b""
        for token in reversed(prompt.tolist()):
            if not self.tokens[token] or len(written) >= LONGEST_LETTER:
                break
            written = self.tokens[token] + written
        # By the engine that reads the text after it: Python's \w has no marks (é as two characters) and no joiners.
        return Automaton.of_pattern(r"(?s:.*)\w").accepts(written.decode(errors="ignore"))

    def walk(self, tokens: Tensor, begin: Tensor | None = None) -> Tensor:
        """The states [B, T + 1] that tokens [B, T] lead to, from the one in which each begins [B] (the first) on."""
        states = [torch.zeros(len(tokens), dtype=torch.long) if begin is None else begin]
        for column in self.token_class[tokens.cpu()].T:
            states.append(self.following[states[-1], column])
        return torch.stack(states, 1)

    def satisfied(self, tokens: Tensor, begin: Tensor | None = None) -> Tensor:
        """Whether each of the texts [B, T] satisfies the constraint [B]; `begin` as for `walk`."""
        states = self.walk(tokens, begin)
        length = (states[:, 1:] != self.ended).sum(1)
        fewest, most = self.lengths
        found = self.accepting[states[:, -1]] & (length >= fewest) & (length <= most)
        for row in found.nonzero().flatten().tolist() if self.grammars else ():
            text = tokens[row, : int(length[row])].tolist()
            found[row] = all(grammar.accepts(text) for grammar in self.grammars)
        return found


class _Walk:
    """Tokens by decreasing length, so that those with a byte at a place are the first so many."""

    def __init__(self, automaton: Automaton, tokens: Sequence[bytes]) -> None:
        self.num_states = len(automaton.accepting)
        self.dead = self.num_states
        following = np.vstack([automaton.following, np.full((1, 256), DEAD, dtype=np.int32)])
        following[following == DEAD] = self.dead
        self.following = following.reshape(-1)
        lengths = np.array([len(token) for token in tokens])
        self.order = np.argsort(-lengths, kind="stable")
        self.lengths = lengths[self.order]
        self.bytes = np.zeros((int(lengths.max(initial=0)), len(tokens)), dtype=np.int32)
        for place, number in enumerate(self.order):
            self.bytes[: len(tokens[number]), place] = np.frombuffer(tokens[number], dtype=np.uint8)

    def after(self, states: NDArray[np.int64], chosen: NDArray[np.int64] | None = None) -> NDArray[np.int64]:
        """The state after each token (or each that is `chosen`) from each of the states, [states, tokens]."""
        place = np.argsort(self.order)
        columns = np.arange(len(self.order)) if chosen is None else np.sort(place[chosen])
        lengths = self.lengths[columns]
        now = np.broadcast_to(states[:, None], (len(states), len(columns))).astype(np.int64)
        for at in range(int(lengths.max(initial=0))):
            many = int((lengths > at).sum())
            now[:, :many] = self.following[now[:, :many] * 256 + self.bytes[at, columns[:many]]]
        now[:, int((lengths > 0).sum()) :] = self.dead
        back = np.argsort(self.order[columns]) if chosen is None else np.searchsorted(columns, place[chosen])
        return now[:, back]

    def reachable(self, begin: Sequence[int]) -> tuple[NDArray[np.int64], NDArray[np.uint64]]:
        """The states that tokens lead to from some, those first, and a tag of each token: equal for equal columns."""
        multiplier = np.random.default_rng(0).integers(1, 2**63, self.num_states + 1, dtype=np.uint64)
        tag = np.ones(len(self.order), dtype=np.uint64)
        known = np.zeros(self.num_states + 1, dtype=np.bool_)
        known[self.dead] = True
        frontier = np.array(begin, dtype=np.int64)
        known[frontier] = True
        found = [frontier]
        while len(frontier):
            new = []
            for block in _blocks(frontier, len(self.order)):
                reached = self.after(block)
                # Columns that differ have one sum with a chance of about 2⁻⁶³.
                tag += (multiplier[reached] * (multiplier[block, None] | np.uint64(1))).sum(0, dtype=np.uint64)
                seen = np.zeros(self.num_states + 1, dtype=np.bool_)
                seen[reached.reshape(-1)] = True
                new.append((seen & ~known).nonzero()[0])
                known |= seen
            frontier = np.concatenate(new)
            found.append(frontier)
        return np.concatenate(found), tag


def _blocks(states: NDArray[np.int64], width: int) -> list[NDArray[np.int64]]:
    return np.array_split(states, max(1, -(-len(states) * width // WALKED)))
