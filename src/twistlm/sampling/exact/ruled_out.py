"""What visited prefixes have ruled out: exact samples under a hard constraint, and a bound on Z that no sample makes.

A prefix's upper bound U is at least the mean of φ / sup φ over its completions by p₀. It is 1 where nothing is known,
φ / sup φ of a text that has ended, 0 where the constraint cannot be met any more, and, once the prefix was visited,

    U(s) = Σ_v p₀(v | s) U(s v),

which is known: the proposal q(v | s) ∝ p₀(v | s) U(s v) has it for a normaliser. So p₀φ / (q sup φ) ≤ U of the empty
prefix, whatever is drawn, and a draw accepted with the ratio of the two as its probability is an exact sample. Every
draw, accepted or not, brings U of the empty prefix nearer to Z / sup φ. (Adaptive rejection sampling under constraints:
CARS, arXiv:2510.01902.)
"""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from twistlm.automata.tokens import TokenAutomaton
from twistlm.models.base import DecoderState, Prompts
from twistlm.sampling.cases import Cases
from twistlm.sampling.exact.collection import Collection
from twistlm.sampling.sampler import Sampler
from twistlm.sampling.samples import Samples
from twistlm.twists.automaton import AutomatonDecoder, AutomatonHead
from twistlm.twists.base import Twist

UNKNOWN = -1
# Prefixes that are remembered, at 300 bytes or so each; those that come later count for nothing.
MOST_PREFIXES = 500_000
# Rounding by which p₀ of one prefix differs from batch to batch, by the precision of the model.
ROUNDING = {torch.float64: 1e-9, torch.float32: 1e-5, torch.bfloat16: 3e-2, torch.float16: 3e-3}


@dataclass(slots=True)
class _Prefix:
    """A prefix that was drawn.

    Attributes:
        p: p₀ of its last token.
        upper: U.
        rest: Σ p₀ over the tokens that may follow and have not been drawn.
        children: places of the prefixes that are one token longer.
    """

    p: float
    upper: float = 1.0
    rest: float = 1.0
    children: dict[int, int] = field(default_factory=dict)


class RuledOut:
    """Every prefix that was drawn at any of several prompts, with its bound.

    Args:
        automaton: the constraint.
        possible: log 1[the constraint can still be met] for t tokens in each state [T + 1, S + 2].
        dtype: the model's precision, up to whose rounding p₀ is known.
    """

    def __init__(self, automaton: TokenAutomaton, possible: Tensor, dtype: torch.dtype) -> None:
        self.prefixes: list[_Prefix] = []
        self.roots: dict[tuple[int, ...], int] = {}
        self.rounding = ROUNDING[dtype]
        self._inner = AutomatonDecoder(automaton), AutomatonHead(automaton, possible)

    @staticmethod
    def of(constraint: Twist, dtype: torch.dtype) -> "RuledOut":
        """What a constraint by itself rules out."""
        head = constraint.head
        assert isinstance(head, AutomatonHead)
        values = head.log_values
        return RuledOut(head.automaton, torch.where(values.isfinite(), 0.0, -torch.inf), dtype)

    def log_upper(self, prompt: Tensor) -> float:
        """log of the bound on Z / sup φ after a prompt."""
        root = self.roots.get(tuple(prompt.tolist()))
        return 0.0 if root is None else _log(self.prefixes[root].upper)

    @property
    def twist(self) -> Twist:
        """ψ = U of the prefix: the proposal of exact samples, as of now."""
        head = _Head(self, self._inner[1])
        return Twist(head, head, _Decoder(self, self._inner[0]))

    def learn(self, draws: Samples, log_sup_phi: float) -> None:
        """What draws by `twist`, as it is now, have shown.

        Args:
            draws: n sequences with log p₀, log q and log φ.
            log_sup_phi: log sup φ.
        """
        known = len(self.prefixes)
        measured: dict[int, float] = {}
        touched: set[int] = set()
        log_p, log_q = draws.log_p.cpu(), draws.log_q.cpu()
        rows = zip(
            draws.prompts, draws.tokens.tolist(), draws.mask.sum(1).tolist(), draws.log_phi.tolist(), strict=True
        )
        for row, (prompt, tokens, length, log_phi) in enumerate(rows):
            place = self._root(tuple(prompt.tolist()))
            for t, token in enumerate(tokens[:length]):
                prefix, p = self.prefixes[place], math.exp(float(log_p[row, t]))
                child = prefix.children.get(token)
                seen = child is not None and child < known
                log_upper = _log(self.prefixes[child].upper) if seen and child is not None else 0.0
                touched.add(place)
                if place not in measured:
                    total = math.exp(float(log_p[row, t] - log_q[row, t]) + log_upper)
                    old = (self.prefixes[each] for each in prefix.children.values() if each < known)
                    news = sum(self.prefixes[each].p for each in prefix.children.values() if each >= known)
                    measured[place] = total
                    prefix.rest = total - sum(each.p * each.upper for each in old) - news
                if child is None:
                    if len(self.prefixes) >= MOST_PREFIXES:
                        break
                    child = prefix.children[token] = len(self.prefixes)
                    self.prefixes.append(_Prefix(p))
                    prefix.rest -= p
                place = child
            else:
                # The whole text: nothing follows it, and its φ is known.
                self.prefixes[place].upper = self.prefixes[place].rest = math.exp(min(0.0, log_phi - log_sup_phi))
        # Those that are longer came later.
        for place in sorted(touched, reverse=True):
            prefix = self.prefixes[place]
            prefix.rest = max(prefix.rest, self.rounding * measured[place])
            below = sum(self.prefixes[each].p * self.prefixes[each].upper for each in prefix.children.values())
            prefix.upper = min(prefix.upper, prefix.rest + below)

    def after(self, place: int, token: int) -> int:
        """Where a prefix leads with a token more."""
        return UNKNOWN if place == UNKNOWN else self.prefixes[place].children.get(token, UNKNOWN)

    def log_uppers(self, place: int) -> tuple[Tensor, Tensor]:
        """The tokens after a prefix of which something is known, and log U of each."""
        children = {} if place == UNKNOWN else self.prefixes[place].children
        uppers = [_log(self.prefixes[each].upper) for each in children.values()]
        return torch.tensor(list(children), dtype=torch.long), torch.tensor(uppers, dtype=torch.float32)

    def _root(self, prompt: tuple[int, ...]) -> int:
        if prompt not in self.roots:
            self.roots[prompt] = len(self.prefixes)
            self.prefixes.append(_Prefix(1.0))
        return self.roots[prompt]


class _Decoder(nn.Module):
    """Features are (tokens so far, state, place of the prefix) [U, 3], integers."""

    def __init__(self, ruled_out: RuledOut, automaton: AutomatonDecoder) -> None:
        super().__init__()
        self.ruled_out, self.automaton = ruled_out, automaton

    def start(self, prompts: Prompts, capacity: tuple[int, int] = (0, 0)) -> DecoderState:
        states = self.automaton.start(prompts).features
        roots = [self.ruled_out.roots.get(tuple(prompt.tolist()), UNKNOWN) for prompt in prompts]
        return DecoderState(torch.cat([states, torch.tensor(roots, device=states.device).unsqueeze(-1)], 1))

    def advance(self, state: DecoderState, parents: Tensor, tokens: Tensor) -> DecoderState:
        states = self.automaton.advance(DecoderState(state.features[:, :2]), parents, tokens).features
        before = state.features[parents, 2].tolist()
        places = [self.ruled_out.after(*each) for each in zip(before, tokens.tolist(), strict=True)]
        return DecoderState(torch.cat([states, torch.tensor(places, device=states.device).unsqueeze(-1)], 1))

    def features(self, prompts: Prompts, tokens: Tensor) -> Tensor:
        state, columns = self.start(prompts), []
        everyone = torch.arange(len(tokens), device=tokens.device)
        for t in range(tokens.shape[1]):
            columns.append(state.features)
            state = self.advance(state, everyone, tokens[:, t])
        return torch.stack(columns, 1)


class _Head(nn.Module):
    """log U of what each token leads to."""

    shrinkage: Tensor

    def __init__(self, ruled_out: RuledOut, automaton: AutomatonHead) -> None:
        super().__init__()
        self.register_buffer("shrinkage", torch.ones(()), persistent=False)
        self.ruled_out, self.automaton = ruled_out, automaton

    def forward(self, features: Tensor) -> Tensor:
        log_psi: Tensor = self.automaton(features[..., :2])
        rows = log_psi.view(-1, log_psi.shape[-1])
        for row, place in enumerate(features[..., 2].reshape(-1).tolist()):
            tokens, log_uppers = self.ruled_out.log_uppers(place)
            if len(tokens):
                rows[row, tokens.to(rows.device)] += log_uppers.to(rows.device)
        return log_psi

    def gather(self, features: Tensor, tokens: Tensor) -> Tensor:
        """log U after the chosen tokens [...]."""
        features = features.expand(*tokens.shape, 3)
        pairs = zip(features[..., 2].reshape(-1).tolist(), tokens.reshape(-1).tolist(), strict=True)
        places = [self.ruled_out.after(*pair) for pair in pairs]
        uppers = [0.0 if place == UNKNOWN else _log(self.ruled_out.prefixes[place].upper) for place in places]
        log_uppers = torch.tensor(uppers, device=tokens.device).view(tokens.shape)
        log_psi: Tensor = self.automaton.gather(features[..., :2], tokens)
        return log_psi + log_uppers

    def start_at(self, log_psi: float) -> None:
        """Nothing: it is never trained."""

    log_normaliser = AutomatonHead.log_normaliser


def _log(value: float) -> float:
    return math.log(value) if value > 0 else -math.inf


# --- While collecting ---------------------------------------------------------------------------------------------

# Chunks of draws after which what they have ruled out is looked at, for as many workers as there may be.
MOST_BETWEEN = 16


def next_look(number: int) -> int:
    """The chunk before which draws are learned from next, after `number` of them: 1, 2, 4, 8, 16, 32, 48, …"""
    if number < MOST_BETWEEN:
        return 1 << number.bit_length()
    return (number // MOST_BETWEEN + 1) * MOST_BETWEEN


class Learner:
    """What a collection in progress has ruled out: the same after an interruption, and by any number of workers.

    Attributes:
        chunks: the draws so far, chunk by chunk.
    """

    def __init__(self, sampler: Sampler, cases: Cases, log_sup_phi: float, so_far: Collection | None) -> None:
        model = sampler.model
        assert model.constraint is not None
        logits = model.lm.logits(model.lm.start([cases[0].prompt]).features)
        self.ruled_out, self.log_sup_phi = RuledOut.of(model.constraint, logits.dtype), log_sup_phi
        self.cases, self.learned = cases, 0
        self.chunks: list[Samples] = []
        if so_far is not None:
            ends = torch.tensor([stream.count for stream in so_far.streams]).cumsum(0).tolist()
            bare = so_far.draws.bare()
            starts = [0, *ends[:-1]]
            self.chunks += [bare.select(torch.arange(*each)) for each in zip(starts, ends, strict=True)]

    def at(self, number: int) -> RuledOut:
        """What chunk `number` knows: what the chunks before the last look have shown."""
        while (look := next_look(self.learned)) <= number:
            self._learn(look)
        return self.ruled_out

    def uppers(self) -> dict[tuple[int, ...], float]:
        """log of the bound on Z / sup φ at each prompt, by all draws; nothing can be drawn afterwards."""
        self.at(len(self.chunks))
        if self.learned < len(self.chunks):
            self._learn(len(self.chunks))
        return {tuple(case.prompt.tolist()): self.ruled_out.log_upper(case.prompt) for case in self.cases}

    def _learn(self, look: int) -> None:
        self.ruled_out.learn(Samples.concatenate(self.chunks[self.learned : look]), self.log_sup_phi)
        self.learned = look
