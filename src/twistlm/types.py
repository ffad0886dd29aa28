"""The nouns that flow between the rooms, as frozen dataclasses and protocols.

Axes: R independent SMC runs (each with its own prompt), N particles, T new tokens, V vocabulary,
B sequences (R·N flattened, run-major), U distinct prefixes among them, d width of a model's features.
Log quantities are in nats; those per particle are float64.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from twistlm.logmath import log_mean_exp, normalise

Prompts = Sequence[Tensor]
"""One 1-D tensor of token ids per sequence or per run; lengths may differ. Repeated entries may be the same object."""


# --- Language models -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class DecoderState:
    """U prefixes, decoded incrementally by one network.

    Attributes:
        features: what predicts the next token: hidden states [U, d], or node numbers [U] of a table.
        cache: whatever the decoder needs to go on; opaque.
    """

    features: Tensor
    cache: Any = None


class Decoder(Protocol):
    """One network that reads tokens: incrementally when sampling, all at once when training."""

    def start(self, prompts: Prompts, capacity: tuple[int, int] = (0, 0)) -> DecoderState:
        """Read U prompts; features predict each one's first new token.

        `capacity`: sequences and new tokens to make room for. More may come.
        """

    def advance(self, state: DecoderState, parents: Tensor, tokens: Tensor) -> DecoderState:
        """The prefixes `state[parents] + tokens`, parents and tokens [U']. `state` must not be used again."""

    def features(self, prompts: Prompts, tokens: Tensor) -> Tensor:
        """Teacher-forced features [B, T, …] that predict each of tokens [B, T]; carries gradient if parameters do."""


class BaseLM(Decoder, Protocol):
    """The base model p₀: a decoder whose features are turned into next-token logits."""

    vocab_size: int
    eos_token_id: int | None
    max_length: int | None
    feature_size: int

    def logits(self, features: Tensor) -> Tensor:
        """Unnormalised log p₀ over the vocabulary: [..., V] from features [..., d]."""

    def encode(self, text: str) -> Tensor:
        """Token ids [P] of `text`."""

    def decode(self, sequences: Sequence[Tensor]) -> list[str]:
        """The texts of 1-D sequences of token ids, special tokens skipped."""


class Head(Protocol):
    """log ψ over the vocabulary from features; the same everywhere before training."""

    @property
    def shrinkage(self) -> Tensor:
        """A scalar buffer that multiplies log ψ: 1 until a held-out choice makes it smaller."""

    def __call__(self, features: Tensor) -> Tensor:
        """log ψ(prefix, v) for every v: [..., V], of any floating type."""

    def gather(self, features: Tensor, tokens: Tensor) -> Tensor:
        """log ψ(prefix, token) for the chosen tokens [...] alone, float32 or wider."""

    def start_at(self, log_psi: float) -> None:
        """Before training, when log ψ is 0 (ψ a half, if it is a probability) everywhere: make it this everywhere."""

    def log_normaliser(self, features: Tensor, logits: Callable[[slice], Tensor], rows: int) -> Tensor:
        """log Σ_v p₀(v) ψ(prefix, v) [n] of features [n, …], with gradient to the twist, `rows` of them at a time.

        `logits`: unnormalised log p₀ of a slice of the rows. `twistlm.normaliser` has this for any head.
        """


@dataclass(frozen=True)
class Twist:
    """A twist ψ: a head over features, which are the base model's own unless `decoder` brings others.

    `module` holds every trainable parameter. `reader`, where the target differs from sequence to sequence, turns
    conditions [n, c] into features [n, d'] that the head reads beside the prefix's, with gradient.
    """

    head: Head
    module: nn.Module
    decoder: Decoder | None = None
    reader: Callable[[Tensor], Tensor] | None = None


@dataclass(frozen=True)
class NextToken:
    """Distributions over the next token for U distinct prefixes shared by B particles.

    Attributes:
        logits: unnormalised log p₀(v | prefix), [U, V].
        log_psi: log ψ(prefix, v), [U, V] of any floating type, or None where the twist is identically 1.
        rows: the prefix of each particle, [B].
        log_psi_proposal: of the twist that induces the proposal, if it is another one, [U, V].
    """

    logits: Tensor
    log_psi: Tensor | None
    rows: Tensor
    log_psi_proposal: Tensor | None = None

    @property
    def inducing(self) -> Tensor | None:
        """log ψ of the twist that induces the proposal [U, V]; None where there is no twist."""
        return self.log_psi if self.log_psi_proposal is None else self.log_psi_proposal

    def of(self, particles: Tensor) -> "NextToken":
        """Some of the particles [B'], and the prefixes of those alone."""
        used, rows = torch.unique(self.rows[particles], return_inverse=True)
        log_psi, proposing = (None if x is None else x[used] for x in (self.log_psi, self.log_psi_proposal))
        return NextToken(self.logits[used], log_psi, rows, proposing)

    @property
    def log_p(self) -> Tensor:
        """Normalised log p₀ of each particle, float64 [B, V]."""
        return torch.log_softmax(self.logits.double(), -1)[self.rows]


# --- Sequential Monte Carlo ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Particles:
    """What the next SMC step needs.

    Attributes:
        tokens: [R, N, T]; positions not sampled yet hold `fill`.
        length: number of tokens sampled so far.
        log_w: accumulated log weights [R, N], float64.
        log_psi: log ψ_t of each particle's prefix [R, N], float64; 0 at the start.
        finished: EOS was sampled and is absorbing [R, N].
        log_p, log_q: log p₀ and log q of each sampled token [R, N, T], float64; 0 once finished.
        features: the base model's features before each token [R, N, T, …], None unless recorded (see `smc.run`).
        siblings: other tokens that could have followed each prefix, None unless recorded.
    """

    tokens: Tensor
    length: int
    log_w: Tensor
    log_psi: Tensor
    finished: Tensor
    log_p: Tensor
    log_q: Tensor
    features: Tensor | None = None
    siblings: "Siblings | None" = None

    def select(self, ancestors: Tensor) -> "Particles":
        """The particles at `ancestors` [R, N] of each run, with their weights as they were."""
        return replace(
            self,
            tokens=select(self.tokens, ancestors),
            log_w=select(self.log_w, ancestors),
            log_psi=select(self.log_psi, ancestors),
            finished=select(self.finished, ancestors),
            log_p=select(self.log_p, ancestors),
            log_q=select(self.log_q, ancestors),
        )


def select(x: Tensor, ancestors: Tensor) -> Tensor:
    """`x[r, ancestors[r, n]]` for x [R, N, …] and ancestors [R, N]."""
    index = ancestors.reshape(*ancestors.shape, *[1] * (x.dim() - 2)).expand(-1, -1, *x.shape[2:])
    return x.gather(1, index)


@dataclass(frozen=True)
class StepInfo:
    """Diagnostics of one SMC step.

    Attributes:
        ancestors: index of each particle's parent within its run [R, N].
        log_increment: log w_t [R, N]. This is the potential G_t of Del Moral's Feynman–Kac models.
        ess: effective sample size after weighting [R].
        resampled: whether the run was resampled before this step [R].
        tokens: what each particle drew, its descendants or not [R, N].
    """

    ancestors: Tensor
    log_increment: Tensor
    ess: Tensor
    resampled: Tensor
    tokens: Tensor


@dataclass(frozen=True)
class SMCResult:
    """Weighted samples of the target, and how they came about. `log_phi` [R, N] is log φ of each sequence."""

    particles: Particles
    infos: tuple[StepInfo, ...]
    log_phi: Tensor

    @property
    def log_Z_hat(self) -> Tensor:
        """Estimate of log Z per run [R]: log of the mean weight. exp of it is unbiased for Z."""
        return log_mean_exp(self.particles.log_w)

    @property
    def weights(self) -> Tensor:
        """Normalised weights [R, N]."""
        return normalise(self.particles.log_w)


@dataclass(frozen=True)
class Siblings:
    """K further draws of each token from the same proposal: children of the same prefixes that nobody followed up.

    They cost no pass through the model and multiply the particles that an expectation over π_t has to work with.

    Attributes:
        tokens: [..., T, K].
        log_ratio: log p₀ − log q of each [..., T, K], float64.
    """

    tokens: Tensor
    log_ratio: Tensor

    def map(self, function: Callable[[Tensor], Tensor]) -> "Siblings":
        """Both tensors through `function`."""
        return Siblings(function(self.tokens), function(self.log_ratio))

    @staticmethod
    def combined(parts: "Sequence[Siblings]", function: Callable[[list[Tensor]], Tensor]) -> "Siblings | None":
        """The tensors of all parts through `function`; None if there are no parts."""
        if not parts:
            return None
        return Siblings(function([each.tokens for each in parts]), function([each.log_ratio for each in parts]))


# --- Samples and scores ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Samples:
    """B complete sequences and the densities they were drawn with: what training and divergences consume.

    Attributes:
        prompts: B prompts.
        tokens: [B, T].
        mask: 1 where the token was a random choice, 0 after an absorbing EOS [B, T].
        log_p, log_q: per-token log densities at the time of drawing, float64 [B, T], 0 where masked.
        log_phi: log φ of the whole sequence, float64 [B], or of a fresh end of each prefix [B, T].
        features: the base model's features before each token [B, T, …], if they were kept.
        siblings: further draws of each token [B, T, K], if they were kept.
        conditions: what each sequence's target is given [B, c], if targets differ.
    """

    prompts: Prompts
    tokens: Tensor
    mask: Tensor
    log_p: Tensor
    log_q: Tensor
    log_phi: Tensor
    features: Tensor | None = None
    siblings: Siblings | None = None
    conditions: Tensor | None = None

    def __len__(self) -> int:
        return self.tokens.shape[0]

    def select(self, index: Tensor) -> "Samples":
        """The sequences at `index` [B'], in that order."""
        return replace(
            self,
            prompts=[self.prompts[i] for i in index.tolist()],
            tokens=self.tokens[index],
            mask=self.mask[index],
            log_p=self.log_p[index],
            log_q=self.log_q[index],
            log_phi=self.log_phi[index],
            features=None if self.features is None else self.features[index],
            siblings=None if self.siblings is None else self.siblings.map(lambda x: x[index]),
            conditions=None if self.conditions is None else self.conditions[index],
        )

    @staticmethod
    def concatenate(parts: "Sequence[Samples]") -> "Samples":
        """All sequences of `parts`, in order; what not every part has (features, siblings, conditions) is left out."""

        def joined(name: str) -> Tensor:
            return torch.cat([getattr(part, name) for part in parts])

        siblings = [part.siblings for part in parts if part.siblings is not None]
        return Samples(
            prompts=[prompt for part in parts for prompt in part.prompts],
            **{name: joined(name) for name in ("tokens", "mask", "log_p", "log_q", "log_phi")},
            features=joined("features") if all(part.features is not None for part in parts) else None,
            conditions=joined("conditions") if all(part.conditions is not None for part in parts) else None,
            siblings=Siblings.combined(siblings, torch.cat) if len(siblings) == len(parts) else None,
        )


@dataclass(frozen=True)
class Scored:
    """Teacher-forced scores of B sequences, with weights: all that a loss sees. Gradient flows only through log ψ.

    Once a sequence has finished, its log ψ stays what it was at EOS, as in SMC.

    Attributes:
        mask: [B, T], 1 where the token was a random choice.
        weights: self-normalised over the batch, no gradient: [B] of whole sequences or [B, T] of the prefixes at each
            t, by the batch's role (`twistlm.losses`).
        log_p, log_q: log p₀ of each token, and of the proposal that it was drawn from [B, T].
        log_psi: log ψ_t(s_1:t) [B, T], with gradient.
        log_normaliser: log Σ_v p₀(v | s_<t) ψ_t(s_<t, v) [B, T], with gradient; None unless the loss asked for it.
        log_phi: log φ [B], or of a fresh end of each prefix [B, T].
    """

    mask: Tensor
    weights: Tensor
    log_p: Tensor
    log_q: Tensor
    log_psi: Tensor
    log_normaliser: Tensor | None
    log_phi: Tensor

    @property
    def labels(self) -> Tensor:
        """log φ for each prefix [B, T], or [B, 1] if all prefixes of a sequence have its own; in log ψ's precision."""
        log_phi = self.log_phi if self.log_phi.dim() == 2 else self.log_phi.unsqueeze(-1)
        return log_phi.to(self.log_psi.dtype)


# --- Potentials ------------------------------------------------------------------------------------------------


@runtime_checkable
class Potential(Protocol):
    """A terminal potential φ ≥ 0 on whole sequences. (Del Moral's potentials G_t are our `log_increment`.)"""

    log_upper_bound: float | None
    """log of an upper bound on φ (0 for a probability), or None if none is known."""

    def bind(self, lm: BaseLM) -> "Potential":
        """The same potential, ready to read sequences of this model (its tokenizer, its probabilities)."""

    def log_phi(self, prompts: Prompts, tokens: Tensor) -> Tensor:
        """log φ [B] of B prompts followed by tokens [B, T]; −inf is a hard constraint."""


@runtime_checkable
class ConditionalPotential(Potential, Protocol):
    """A potential φ(s, c) whose target differs from sequence to sequence by what it is given, a condition c."""

    num_condition: int
    """Tokens in a condition."""

    num_following: int
    """Tokens after a sequence that its condition is read from."""

    def condition(self, given: str) -> Tensor:
        """What a user writes, as the tokens of a condition."""

    def draw_condition(
        self, uniforms: Tensor, prompts: Prompts, tokens: Tensor, following: Tensor, log_p: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Conditions [B, c] such that (sequence, condition) has the joint law p₀(s) φ(s, c), and log φ [B] of each.

        `following` [B, num_following]: what the base model wrote after the sequences, with its `log_p`; `uniforms` [B]:
        randomness, where that is not all that is needed.
        """

    def log_phi_given(self, prompts: Prompts, tokens: Tensor, conditions: Tensor) -> Tensor:
        """log φ [B] of B prompts followed by tokens [B, T], given conditions [B, c]."""
