"""A base model with its twist, as sequential Monte Carlo sees it.

Particles that share a prefix share its computation. The state keeps the U distinct prefixes among B particles and a
row number per particle, so the prompt is run once however many particles start from it, identical particles after a
resampling are run once, and finished particles are not run at all. Nothing else in the package knows about caches.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from twistlm.core.errors import ConfigError, PromptError
from twistlm.core.kernels.categorical import Scratch
from twistlm.core.rng import Rng
from twistlm.core.sizes import even
from twistlm.models.base import BaseLM, DecoderState, Prompts, is_end
from twistlm.sampling.particles import NextToken
from twistlm.sampling.proposals import Drawn, Proposal, draw
from twistlm.sampling.samples import Samples
from twistlm.sampling.states import State, TwistState, beside
from twistlm.twists.base import Twist

# Elements of a [rows, V] block when a pass over the vocabulary is chunked: 8 M float32 = 32 MB. At V = 50,257 that is
# 159 rows, from where on a product with the output matrix gains nothing from more of them.
VOCABULARY_CHUNK = 8_000_000
# log ψ of what a constraint rules out, to losses, which need finite numbers.
IMPOSSIBLE = -1e4


@dataclass(frozen=True)
class Scores:
    """log ψ_t of each prefix [B, T], log Σ_v p₀ψ_t [B, T] if asked, log ψ of its siblings [B, T, K] if it has any."""

    log_psi: Tensor
    log_normaliser: Tensor | None
    siblings: Tensor | None


class TwistedLM:
    """p₀ with twist ψ (`None` for ψ = 1).

    Args:
        lm: the base model.
        twist: the twist, or None.
        eos: "absorb" ends a sequence at its first EOS; "ignore" treats EOS as any other token, so every sequence has
            exactly T tokens, as it also has where the model knows no EOS.
        proposal_twist: the twist that the proposal is induced by, if it is not the one that weighs.
        constraint: the exact twist of a hard constraint (`twistlm.twists.automaton`), which multiplies the others: ψ is
            their product, in proposals and weights alike.

    Attributes:
        ends: the tokens that end a sequence; none where nothing does.
        absorbing: the first of them, which fills a sequence up after its end; None where nothing ends it.

    Raises:
        ConfigError: `eos` is neither.
    """

    def __init__(
        self,
        lm: BaseLM,
        twist: Twist | None = None,
        eos: str = "absorb",
        proposal_twist: Twist | None = None,
        constraint: Twist | None = None,
    ) -> None:
        if eos not in ("absorb", "ignore"):
            raise ConfigError(f"eos must be 'absorb' or 'ignore', not {eos!r}")
        self.lm, self.twist, self.eos = lm, twist, eos
        self.proposal_twist, self.constraint = proposal_twist, constraint
        self.ends = lm.eos_token_ids if eos == "absorb" else ()
        self.absorbing = self.ends[0] if self.ends else None
        self._scratch = Scratch()

    @property
    def base(self) -> "TwistedLM":
        """p₀ alone."""
        return TwistedLM(self.lm, None, self.eos) if self._twists else self

    def constrained(self, constraint: Twist | None) -> "TwistedLM":
        """p₀ with a constraint's twist alone."""
        return TwistedLM(self.lm, None, self.eos, constraint=constraint)

    @property
    def is_base(self) -> bool:
        """Whether ψ = 1: neither a twist nor a constraint."""
        return not self._twists

    def check(self, prompts: Prompts, num_steps: int) -> None:
        """Refuse prompts that are empty or leave no room for `num_steps` new tokens.

        Raises:
            PromptError: which prompt, how long, and what would fit.
        """
        if num_steps < 1:
            raise ConfigError(f"num_steps must be at least 1, not {num_steps}")
        if not prompts:
            raise PromptError("no prompt was given; pass at least one")
        for prompt in {id(prompt): prompt for prompt in prompts}.values():
            if prompt.numel() == 0:
                raise PromptError("the prompt is empty; give it at least one token")
            if self.lm.max_length is not None and prompt.numel() + num_steps > self.lm.max_length:
                room = self.lm.max_length - prompt.numel()
                raise PromptError(
                    f"a prompt of {prompt.numel()} tokens with {num_steps} new ones exceeds the model's context of "
                    f"{self.lm.max_length}; shorten the prompt"
                    + (f" or ask for at most {room} new tokens" if room > 0 else "")
                )

    def mask(self, tokens: Tensor) -> Tensor:
        """1 where a token of [B, T] was a random choice: up to and including the first absorbing EOS."""
        found = is_end(tokens, self.ends).long()
        return found.cumsum(-1) - found == 0

    @property
    def _twists(self) -> list[Twist]:
        """The twist that weighs, the one that proposes and the constraint's, as far as there are any."""
        return [twist for twist in (self.twist, self.proposal_twist, self.constraint) if twist is not None]

    @property
    def features_are_reusable(self) -> bool:
        """Whether features recorded while sampling are what the twist's head trains on (no network of its own)."""
        return self.twist is None or self.twist.decoder is None

    @property
    def serves_threads(self) -> bool:
        """Whether several threads may draw by it at once: the base model's own network alone reads."""
        reads = [twist.decoder for twist in self._twists if twist.decoder is not None]
        return bool(getattr(self.lm, "serves_threads", False)) and not reads

    @property
    def _rows_at_a_time(self) -> int:
        """Prefixes whose distributions over the vocabulary are in memory together."""
        return max(1, VOCABULARY_CHUNK // self.lm.vocab_size)

    # --- Incremental ---

    @torch.no_grad()
    def start(
        self, prompts: Prompts, num_particles: int, num_steps: int = 0, conditions: Tensor | None = None
    ) -> State:
        """`num_particles` particles on each of R prompts; equal prompts (with equal conditions) are read once.

        `num_steps`: new tokens to make room for. `conditions`: [R, c], where targets differ.
        """
        reading = any(twist.reads_conditions for twist in self._twists)
        differing = conditions.tolist() if reading and conditions is not None else [()] * len(prompts)
        distinct: dict[tuple[tuple[int, ...], tuple[int, ...]], int] = {}
        pairs = [(tuple(prompt.tolist()), tuple(each)) for prompt, each in zip(prompts, differing, strict=True)]
        numbers = [distinct.setdefault(pair, len(distinct)) for pair in pairs]
        unique = [torch.tensor(prompt, dtype=torch.long) for prompt, _ in distinct]
        capacity = (len(prompts) * num_particles, num_steps)
        lm = self.lm.start(unique, capacity)
        rows = torch.tensor(numbers, device=lm.features.device).repeat_interleave(num_particles)
        if conditions is not None:
            conditions = torch.tensor([condition for _, condition in distinct], device=lm.features.device)
        twists, openings = [], [prompt.to(lm.features.device) for prompt in unique]
        for twist in self._twists:
            given, own = twist.given(conditions), None
            if twist.decoder is not None:
                own = twist.decoder.start(self._openings(twist, openings, conditions, max(1, num_steps)), capacity)
            twists.append(TwistState(own, given))
        return State(lm, tuple(twists), rows)

    @torch.no_grad()
    def extend(self, state: State, tokens: Tensor, ancestors: Tensor | None, finished: Tensor) -> State:
        """Append tokens [B] to the prefixes of the particles' `ancestors` [B] (None: each its own).

        Particles that are `finished` [B] keep no prefix: their row is 0 and means nothing.
        """
        rows = state.rows if ancestors is None else state.rows[ancestors]
        active = (~finished).nonzero().squeeze(-1)
        if active.numel() == 0:
            return State(state.lm, state.twists, torch.zeros_like(rows))
        keys, inverse = torch.unique(rows[active] * self.lm.vocab_size + tokens[active], return_inverse=True)
        # The first child of a prefix takes its row, so that a cache copies little; the others fill the gaps.
        parents = keys // self.lm.vocab_size
        stays = (parents.diff(prepend=parents.new_tensor([-1])) != 0) & (parents < keys.numel())
        order = torch.full_like(keys, -1)
        order[parents[stays]] = stays.nonzero().squeeze(-1)
        order[order < 0] = (~stays).nonzero().squeeze(-1)
        keys = keys[order]
        parents, appended = keys // self.lm.vocab_size, keys % self.lm.vocab_size
        new_rows = torch.zeros_like(rows)
        new_rows[active] = order.argsort()[inverse]
        lm = self.lm.advance(state.lm, parents, appended)
        twists = tuple(
            TwistState(
                None
                if twist.decoder is None or read.own is None
                else twist.decoder.advance(read.own, parents, appended),
                None if read.given is None else read.given[parents],
            )
            for twist, read in zip(self._twists, state.twists, strict=True)
        )
        return State(lm, twists, new_rows)

    @torch.no_grad()
    def next(self, state: State) -> NextToken:
        """Base logits and log ψ over the vocabulary for every distinct prefix."""
        read = zip(self._twists, state.twists, strict=True)
        values = {id(twist): twist.head(own.features(state.lm)) for twist, own in read}

        def product(twist: Twist | None) -> Tensor | None:
            parts = [values[id(each)] for each in (twist, self.constraint) if each is not None]
            return torch.add(*parts) if len(parts) == 2 else parts[0] if parts else None

        proposing = None if self.proposal_twist is None else product(self.proposal_twist)
        return NextToken(self.lm.logits(state.lm.features), product(self.twist), state.rows, proposing)

    def draw(
        self,
        rng: Rng,
        state: State,
        proposal: Proposal,
        forced: Tensor,
        num_siblings: int = 0,
        paused: Tensor | None = None,
    ) -> Drawn:
        """`proposals.draw` for all particles of `state`, in parts whose distributions fit in memory together."""
        count, most = state.lm.features.shape[0], self._rows_at_a_time
        if count <= most:
            return draw(rng, self.next(state), proposal, forced, num_siblings, self._scratch, paused)
        size = even(count, most)
        orders, parts = [], []
        for at in range(0, count, size):
            index = ((state.rows >= at) & (state.rows < at + size)).nonzero().squeeze(-1)
            part = State(
                DecoderState(state.lm.features[at : at + size]),
                tuple(read.at(slice(at, at + size)) for read in state.twists),
                state.rows[index] - at,
            )
            orders.append(index)
            resting = None if paused is None else paused[index]
            parts.append(draw(rng, self.next(part), proposal, forced[index], num_siblings, self._scratch, resting))
        return Drawn.concatenate(parts, torch.cat(orders))

    # --- Teacher-forced ---

    def twist_features(self, samples: Samples) -> Tensor:
        """What the twist's head reads before each token [B, T, …]: recorded, recomputed, or its own network's."""
        if self.twist is not None and self.twist.decoder is not None:
            features = self._own_features(self.twist, samples)
        else:
            features = self.recorded_features(samples)
        given = None if self.twist is None else self.twist.given(samples.conditions)
        return features if given is None else beside(features, given)

    def recorded_features(self, samples: Samples) -> Tensor:
        """The base model's features before each token [B, T, …]: recorded, or else recomputed."""
        if samples.features is not None:
            return samples.features
        return self.base_features(samples.prompts, samples.tokens)

    @torch.no_grad()
    def base_features(self, prompts: Prompts, tokens: Tensor) -> Tensor:
        """The base model's features before each token [B, T, …], without gradient."""
        return self.lm.features(prompts, tokens)

    def score(self, samples: Samples, *, normaliser: bool = False) -> "Scores":
        """log ψ_t(s_1:t) and, if asked, log Σ_v p₀ ψ_t, with gradient to the twist.

        The sum over V is the head's own affair: [B, T, V] never exists in float32 more than once.

        Raises:
            ConfigError: there is no twist.
        """
        if self.twist is None:
            raise ConfigError("this model has no twist to score; build it with twist=…")
        features, states = self.twist_features(samples), self._states(samples)

        def log_psi_of(tokens: Tensor, features: Tensor, states: Tensor | None) -> Tensor:
            assert self.twist is not None
            log_psi = self.twist.head.gather(features, tokens)
            if states is None or self.constraint is None:
                return log_psi
            return log_psi + self.constraint.head.gather(states, tokens).clamp_min(IMPOSSIBLE)

        siblings = None
        if samples.siblings is not None:
            beyond = None if states is None else states.unsqueeze(2)
            siblings = log_psi_of(samples.siblings.tokens, features.unsqueeze(2), beyond)
        log_psi = log_psi_of(samples.tokens, features, states)
        log_total = self._log_normaliser(samples, features, states) if normaliser else None
        return Scores(self.carried(log_psi, samples.mask), log_total, siblings)

    def _states(self, samples: Samples) -> Tensor | None:
        """What the constraint reads before each token [B, T, …]; None if there is none."""
        reads = None if self.constraint is None else self.constraint.decoder
        return None if reads is None else reads.features(samples.prompts, samples.tokens)

    def _log_normaliser(self, samples: Samples, features: Tensor, states: Tensor | None) -> Tensor:
        assert self.twist is not None
        base = samples.features
        if base is None:
            reusable = self.features_are_reusable and self.twist.reader is None
            base = features.detach() if reusable else self.base_features(samples.prompts, samples.tokens)
        base, rows = base.flatten(0, 1), self._rows_at_a_time

        def logits(part: slice) -> Tensor:
            with torch.no_grad():
                return self.lm.logits(base[part])

        if states is None or self.constraint is None:
            return self.twist.head.log_normaliser(features.flatten(0, 1), logits, rows).view(samples.tokens.shape)
        head, states = self.constraint.head, states.flatten(0, 1)

        def allowed(part: slice) -> Tensor:
            with torch.no_grad():
                return logits(part) + head(states[part]).clamp_min(IMPOSSIBLE)

        # log Σ p₀ψ of the product: that of the constraint, and of the twist under what the constraint makes of p₀.
        with torch.no_grad():
            log_total = head.log_normaliser(states, logits, rows).clamp_min(IMPOSSIBLE)
        log_total = log_total + self.twist.head.log_normaliser(features.flatten(0, 1), allowed, rows)
        return log_total.view(samples.tokens.shape)

    @staticmethod
    def carried(log_psi: Tensor, mask: Tensor) -> Tensor:
        """After the last random choice the twist stays what it was there."""
        last = mask.long().sum(-1, keepdim=True) - 1
        return torch.where(mask, log_psi, log_psi.gather(-1, last))

    @torch.no_grad()
    def densities(self, samples: Samples, proposal: Proposal, num_siblings: int = 0, rng: Rng | None = None) -> Drawn:
        """log p₀, log ψ_t and log q [B, T] each, of given sequences: `proposal` asked about tokens it did not draw.

        `num_siblings`: K tokens more that it draws by `rng` after each prefix, [B, T, K].
        """
        base, tokens = self.recorded_features(samples), samples.tokens.flatten()
        twists = []
        for twist in self._twists:
            given = twist.given(samples.conditions)
            own = None if twist.decoder is None else DecoderState(self._own_features(twist, samples).flatten(0, 1))
            twists.append(
                TwistState(own, None if given is None else given.repeat_interleave(samples.tokens.shape[1], 0))
            )
        rows = torch.arange(tokens.shape[0], device=tokens.device)
        state = State(DecoderState(base.flatten(0, 1)), tuple(twists), rows)
        drawn = self.draw(rng or Rng(0), state, proposal, tokens, num_siblings)
        log_p, log_psi, log_q = (
            x.view_as(samples.tokens) * samples.mask for x in (drawn.log_p, drawn.log_psi, drawn.log_q)
        )
        shape = samples.tokens.shape
        siblings = None if drawn.siblings is None else drawn.siblings.map(lambda x: x.unflatten(0, shape))
        return Drawn(samples.tokens, log_p, log_psi, log_q, siblings)

    def _own_features(self, twist: Twist, samples: Samples) -> Tensor:
        """What a twist's own network makes of each prefix [B, T, …]."""
        assert twist.decoder is not None
        opened = self._openings(twist, samples.prompts, samples.conditions, samples.tokens.shape[1])
        return twist.decoder.features(opened, samples.tokens)

    def _openings(self, twist: Twist, prompts: Prompts, conditions: Tensor | None, num_steps: int) -> Prompts:
        """What its network reads in the prompts' place, which may be longer than what has been checked."""
        opened = twist.openings(prompts, conditions)
        if twist.opening is not None:
            self.check(opened, num_steps)
        return opened
