"""Values of prefixes that were drawn: what the automaton of a constraint cannot tell one prefix from another by.

A prefix's value U is 1 or what the automaton's twist says of it where nothing more is known, that of φ where a text has
ended, and, once the prefix was visited, ::

    U(s) = Σ_v p₀(v | s) U(s v),

which is the normaliser that the proposal q(v | s) ∝ p₀(v | s) U(s v) had there. (Kept as a ratio to what the automaton
says, which for a long text may be less than any number.) Two uses are made of it. As an upper bound on the mean of
φ / sup φ over completions, from 1 downwards, it gives exact samples and bounds Z for certain (`exact.ruled_out`). As an
estimate, from the automaton's value, it is a twist that knows the beginnings of texts well. But where the automaton
thinks too little of what was never drawn, q would all but never draw it, and SMC's runs agree on a Z that lacks it. So
a share of q is kept for it at each prefix: ψ of the tokens that have not been drawn there is raised by one factor.
"""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from twistlm.models.base import BaseLM, DecoderState, Prompts
from twistlm.sampling.samples import Samples
from twistlm.twists.automaton import AutomatonDecoder, AutomatonHead
from twistlm.twists.base import Twist
from twistlm.twists.grammar import masked, unmasked

UNKNOWN = -1
# Prefixes that are remembered, at 300 bytes or so each; those that come later count for nothing.
MOST_PREFIXES = 500_000
# Of q over a whole text, what is kept for beginnings that were not drawn: while exploring, and afterwards.
EXPLORING, EXPLORED = 0.1, 0.02
# What is undrawn is not raised by more than that.
MOST_RAISED = 1e15
# Rounding by which p₀ of one prefix differs from batch to batch, by the precision of the model.
ROUNDING = {torch.float64: 1e-9, torch.float32: 1e-5, torch.bfloat16: 3e-2, torch.float16: 3e-3}


@dataclass(slots=True)
class _Prefix:
    """A prefix that was drawn.

    Attributes:
        share: p₀ of its last token, times what the automaton says of it by what it says without that token.
        value: U by what the automaton says.
        rest: Σ of shares of the tokens that may follow and have not been drawn.
        children: places of the prefixes that are one token longer.
    """

    share: float
    value: float = 1.0
    rest: float = 0.0
    children: dict[int, int] = field(default_factory=dict)


def precision(lm: BaseLM, prompt: Tensor) -> torch.dtype:
    """That in which a model knows p₀."""
    return lm.logits(lm.start([prompt]).features).dtype


class Explored:
    """Every prefix that was drawn at any of several prompts, with its value.

    Args:
        constraint: an automaton's twist, explored or not.
        dtype: the model's precision, up to whose rounding p₀ is known.
        bounds: values are upper bounds; otherwise estimates that start from the twist's.
    """

    def __init__(self, constraint: Twist, dtype: torch.dtype, *, bounds: bool) -> None:
        inner = unmasked(constraint).head
        head = inner.automaton if isinstance(inner, ExploredHead) else inner
        assert isinstance(head, AutomatonHead)
        self.automaton, log_values = head.automaton, head.log_values
        if bounds:
            log_values = torch.where(log_values.isfinite(), 0.0, -torch.inf)
        self.bounds, self.rounding, self.undrawn = bounds, ROUNDING[dtype], 0.0
        if not bounds:
            self.undrawn = EXPLORING / (len(log_values) - 1)
            # An estimate of what is left may be too small: where nothing is seen of it, each visit raises it threefold.
            self.rounding = min(self.rounding, self.undrawn / 3)
        self.prefixes: list[_Prefix] = []
        self.num_draws = 0
        self.roots: dict[tuple[int, ...], int] = {}
        self._log_values = log_values.double()
        self._parts = AutomatonDecoder(self.automaton), AutomatonHead(self.automaton, log_values)
        self._known: dict[int, tuple[Tensor, Tensor, float]] = {}

    def log_value(self, prompt: Tensor) -> float:
        """log U of the empty prefix after a prompt."""
        root = self.roots.get(tuple(prompt.tolist()))
        plain = self._log_values[0, int(self.automaton.begin([prompt]))]
        return float(plain) + (0.0 if root is None else _log(self.prefixes[root].value))

    def finish(self) -> None:
        """No more is to be learned: less of q is kept for what was not drawn."""
        self.undrawn *= EXPLORED / EXPLORING
        self._known.clear()

    @property
    def twist(self) -> Twist:
        """ψ = U of the prefix, as of now: it changes with what is learned."""
        head = ExploredHead(self, self._parts[1])
        twist = Twist(head, head, _Decoder(self, self._parts[0]))
        return masked(twist, self.automaton.grammars, len(self._log_values) - 1)

    def learn(self, draws: Samples, log_sup_phi: float) -> None:
        """What draws by `twist`, as it is now, have shown.

        Args:
            draws: n sequences with log p₀, log q and log φ.
            log_sup_phi: log sup φ.
        """
        self.num_draws += len(draws)
        # What is left of each prefix that was visited is known up to so much.
        known_to: dict[int, float] = {}
        states = self.automaton.walk(draws.tokens, self.automaton.begin(draws.prompts))
        length = draws.mask.sum(1).cpu()
        plain = self._log_values[torch.arange(states.shape[1]).expand_as(states), states]
        log_p, log_q = draws.log_p.cpu(), draws.log_q.cpu()
        shares = (log_p + plain.diff(dim=1)).exp()
        ends = draws.log_phi.cpu() - log_sup_phi - plain.gather(1, length.unsqueeze(1)).squeeze(1)
        rows = zip(
            draws.prompts, draws.tokens.tolist(), length.tolist(), ends.exp().tolist(), shares.tolist(),
            (shares * (-log_q).exp()).tolist(), self._stuck(draws), strict=True,
        )  # fmt: skip
        for prompt, tokens, count, end, share, ratios, stuck in rows:
            place = self._root(tuple(prompt.tolist()))
            for t, token in enumerate(tokens[:count]):
                prefix, child = self.prefixes[place], self.prefixes[place].children.get(token)
                if t == stuck:
                    known_to[place] = prefix.rest = 0.0
                    break
                if place not in known_to:
                    # q's normaliser there: Σ p₀U by what the automaton says of the prefix, with what is raised in it.
                    drawn = self._drawn(prefix)
                    raised = self._raised(prefix, drawn)
                    normaliser = ratios[t] * (raised if child is None else self.prefixes[child].value)
                    prefix.rest = (normaliser - drawn) / raised
                    known_to[place] = self.rounding * normaliser / raised
                if child is None:
                    if len(self.prefixes) >= MOST_PREFIXES:
                        break
                    child = prefix.children[token] = len(self.prefixes)
                    self.prefixes.append(_Prefix(share[t]))
                    prefix.rest -= share[t]
                place = child
            else:
                # The whole text: nothing follows it, and its φ is known.
                known_to[place] = 0.0
                self.prefixes[place].rest = end
        # Those that are longer came later.
        for place in sorted(known_to, reverse=True):
            prefix = self.prefixes[place]
            prefix.rest = max(prefix.rest, known_to[place])
            found = prefix.rest + self._drawn(prefix)
            prefix.value = min(prefix.value, found) if self.bounds else found
        self._known.clear()

    def _stuck(self, draws: Samples) -> list[int]:
        """Where each text could not go on, so that what follows is no draw from q; T if it never was.

        Under an automaton that looks ahead this does not happen; a grammar does not look ahead.
        """
        length = draws.tokens.shape[1]
        if not self.automaton.grammars:
            return [length] * len(draws)
        twist = self.twist
        assert twist.decoder is not None
        log_psi = twist.head.gather(twist.decoder.features(draws.prompts, draws.tokens), draws.tokens)
        forbidden = torch.cat([log_psi.isneginf().cpu(), torch.ones((len(draws), 1), dtype=torch.bool)], 1)
        return forbidden.int().argmax(1).tolist()

    def after(self, place: int, token: int) -> int:
        """Where a prefix leads with a token more."""
        return UNKNOWN if place == UNKNOWN else self.prefixes[place].children.get(token, UNKNOWN)

    def log_ratio(self, place: int, token: int) -> float:
        """log of what ψ of a prefix with a token more is, to what the automaton says of it."""
        after = self.after(place, token)
        return self.known(place)[2] if after == UNKNOWN else _log(self.prefixes[after].value)

    def known(self, place: int) -> tuple[Tensor, Tensor, float]:
        """The tokens that have been drawn after a prefix, log of each one's value, and of what others are raised by."""
        if place not in self._known:
            prefix = self.prefixes[place] if place != UNKNOWN else _Prefix(1.0)
            values = torch.tensor([_log(self.prefixes[each].value) for each in prefix.children.values()])
            tokens = torch.tensor(list(prefix.children), dtype=torch.long)
            self._known[place] = tokens, values, math.log(self._raised(prefix, self._drawn(prefix)))
        return self._known[place]

    def _drawn(self, prefix: _Prefix) -> float:
        """Σ p₀U of the tokens that have been drawn after a prefix, by what the automaton says of it."""
        return sum(self.prefixes[each].share * self.prefixes[each].value for each in prefix.children.values())

    def _raised(self, prefix: _Prefix, drawn: float) -> float:
        """What U of the tokens that have not been drawn is multiplied by in q, so that they have their share of it."""
        if drawn <= 0 or prefix.rest <= 0:
            return 1.0
        return min(MOST_RAISED, max(1.0, self.undrawn / (1 - self.undrawn) * drawn / prefix.rest))

    def _root(self, prompt: tuple[int, ...]) -> int:
        if prompt not in self.roots:
            self.roots[prompt] = len(self.prefixes)
            self.prefixes.append(_Prefix(1.0))
        return self.roots[prompt]


class _Decoder(nn.Module):
    """Features are (tokens so far, state, place of the prefix) [U, 3], integers."""

    def __init__(self, explored: Explored, automaton: AutomatonDecoder) -> None:
        super().__init__()
        self.explored, self.automaton = explored, automaton

    def start(self, prompts: Prompts, capacity: tuple[int, int] = (0, 0)) -> DecoderState:
        states = self.automaton.start(prompts).features
        roots = [self.explored.roots.get(tuple(prompt.tolist()), UNKNOWN) for prompt in prompts]
        return DecoderState(torch.cat([states, torch.tensor(roots, device=states.device).unsqueeze(-1)], 1))

    def advance(self, state: DecoderState, parents: Tensor, tokens: Tensor) -> DecoderState:
        states = self.automaton.advance(DecoderState(state.features[:, :2]), parents, tokens).features
        before = state.features[parents, 2].tolist()
        places = [self.explored.after(*each) for each in zip(before, tokens.tolist(), strict=True)]
        return DecoderState(torch.cat([states, torch.tensor(places, device=states.device).unsqueeze(-1)], 1))

    def features(self, prompts: Prompts, tokens: Tensor) -> Tensor:
        state, columns = self.start(prompts), []
        everyone = torch.arange(len(tokens), device=tokens.device)
        for t in range(tokens.shape[1]):
            columns.append(state.features)
            state = self.advance(state, everyone, tokens[:, t])
        return torch.stack(columns, 1)


class ExploredHead(nn.Module):
    """log U of what each token leads to."""

    shrinkage: Tensor

    def __init__(self, explored: Explored, automaton: AutomatonHead) -> None:
        super().__init__()
        self.register_buffer("shrinkage", torch.ones(()), persistent=False)
        self.explored, self.automaton = explored, automaton

    def forward(self, features: Tensor) -> Tensor:
        """log ψ [..., V]."""
        log_psi: Tensor = self.automaton(features[..., :2])
        rows = log_psi.view(-1, log_psi.shape[-1])
        for row, place in enumerate(features[..., 2].reshape(-1).tolist()):
            tokens, log_values, raised = self.explored.known(place)
            if len(tokens):
                tokens = tokens.to(rows.device)
                drawn = rows[row, tokens] + log_values.to(rows.device, rows.dtype)
                rows[row] += raised
                rows[row, tokens] = drawn
        return log_psi

    def gather(self, features: Tensor, tokens: Tensor) -> Tensor:
        """log U after the chosen tokens [...]."""
        features = features.expand(*tokens.shape, 3)
        pairs = zip(features[..., 2].reshape(-1).tolist(), tokens.reshape(-1).tolist(), strict=True)
        values = [self.explored.log_ratio(*pair) for pair in pairs]
        plain: Tensor = self.automaton.gather(features[..., :2], tokens)
        return plain + torch.tensor(values, device=tokens.device).view(tokens.shape)

    def start_at(self, log_psi: float) -> None:
        """Nothing: it is never trained."""

    log_normaliser = AutomatonHead.log_normaliser


def _log(value: float) -> float:
    return math.log(value) if value > 0 else -math.inf
