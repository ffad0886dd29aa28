"""How a twist is trained."""

import math
from dataclasses import dataclass
from typing import Any

from twistlm.core.errors import ConfigError
from twistlm.core.plain import make_plain
from twistlm.core.registry import lookup
from twistlm.core.sizes import RECORD_BYTES, TOKEN_BYTES, check_sizes
from twistlm.core.storage import STRICT
from twistlm.training.informing import check_every
from twistlm.training.losses import objective
from twistlm.training.sources import marked, parts_of, serves, uses

# The setting that names the source of each role of a loss. All but the target need independent draws.
SOURCES = {
    "target": "target_source",
    "intermediate": "intermediate_source",
    "base": "intermediate_source",
    "labelled": "intermediate_source",
    "drawn": "intermediate_source",
}

SIZES = ("num_particles", "num_minibatches", "pool_batch", "pool_first", "num_cases", "evaluate_every")


def training_sources(expression: str, loss: str | None = None) -> dict[str, str]:
    """The settings by which all samples come from there.

    For a `loss` the target's alone where the source cannot serve its other roles.
    """
    others = set() if loss is None else set(objective(loss).roles) - {"target"}
    changes = {"target_source": expression}
    if all(serves(expression, role) for role in others):
        changes["intermediate_source"] = expression
    return changes


@dataclass(frozen=True)
class TrainingConfig:
    """How a twist is trained.

    Attributes:
        loss: a registered loss, or a weighted sum of them: "0.7*ctl + 0.3*rl".
        target_source: where samples weighted towards σ come from; "proposal+exact" takes half from each.
        intermediate_source: where those of a loss's other roles come from; the same name means the same batch.
        num_particles: sequences per batch.
        num_minibatches: parts of a batch, at random, with one step of the optimiser each (fewer where a batch has not
            as many sequences). Many sequences at once are drawn in less time than a few again and again.
        max_share: of a batch's weight towards σ that one sequence may have, or one in √num_particles if that is more;
            larger weights are lowered (truncated importance sampling), so that single sequences do not decide. 1 leaves
            them as they are.
        baseline: whether DPG counts the proposal's own draws ("proposal") by what their weights differ from the mean,
            which leaves its gradient as it is in expectation, with less noise.
        pool_batch: sequences per batch from the source "pool", which draws as many sequences as the others do, but
            in a few large rounds; see `twistlm.sampling.mixture`.
        pool_first: updates after which the pool grows for the first time; then after four times as many, and so on.
        num_cases: targets per batch where there are several: prompts of a set, all of them or drawn by weight, or
            conditions (infilling). Each gets as many of the particles, and counts by its weight.
        num_updates: at most so many batches.
        optimiser: a registered optimiser: "adamw", or "adafactor", which needs a half of the memory or less.
        learning_rate: of the optimiser.
        decay_after: so many updates are of that learning rate; then it falls in a line, to zero at the end of
            `num_updates`, so that the noise of single batches does not keep the twist from its best. None: all are.
        weight_decay: of the optimiser, towards log ψ = 0.
        betas: of AdamW; no other has any.
        max_grad_norm: gradients are clipped to this norm.
        averaging: what is judged and kept is the running mean of the parameters over about the last
            1 / (1 − averaging) steps; 0 for the parameters themselves. See `twistlm.training.averaging`.
        evaluate_every: updates between looks at the held-out criterion.
        evaluation_samples: fresh proposal draws at each look, for KL(q‖σ) against updates; 0 to skip. Not where there
            are several targets: certificates during training do that.
        patience: stop after so many updates without improvement, but not while the learning rate falls, which is yet
            to bring one; None never stops early.
        shrinkages: candidates for α at the end; 1 always is one, and the α of a run that the twist began as.
        informed: what SMC weighs by beside the finished twist: "auto" fits what the potential says of unfinished texts,
            asked ten times in a text at most, a number asks after every so many tokens, "never" fits the twist's own
            numbers alone, and "off" leaves the twist as the loss made it. See `twistlm.twists.informed`.
    """

    __pydantic_config__ = STRICT

    loss: str = "ctl"
    target_source: str = "proposal"
    intermediate_source: str = "proposal"
    num_particles: int = 100
    num_minibatches: int = 1
    max_share: float = 1.0
    baseline: bool = False
    pool_batch: int = 512
    pool_first: int = 16
    num_cases: int = 25
    num_updates: int = 500
    optimiser: str = "adamw"
    learning_rate: float = 1e-3
    decay_after: int | None = None
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.99)
    max_grad_norm: float = 10.0
    averaging: float = 0.0
    evaluate_every: int = 20
    evaluation_samples: int = 0
    patience: int | None = 60
    shrinkages: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75)
    informed: int | str = "auto"

    def __post_init__(self) -> None:
        """Check every field.

        Raises:
            ConfigError: a name is unknown or a number out of range.
        """
        make_plain(self)
        wanted = objective(self.loss)
        for role, setting in SOURCES.items():
            name = self.source_of(role)
            if not serves(name, role) and role in wanted.roles:
                raise ConfigError(f"source {name!r} cannot serve as {setting}; use 'base', 'proposal' or 'draws'")
        if wanted.on_policy and self.intermediate_source != "proposal":
            raise ConfigError(
                f"loss {self.loss!r} learns from the current proposal's own draws: use source 'proposal' "
                f"(intermediate_source), not {self.intermediate_source!r}"
            )
        for source in {self.source_of(role) for role in SOURCES}:
            apart = [entry.name for entry in parts_of(source) if entry.options.get("alone", False)]
            if apart and len(parts_of(source)) > 1:
                raise ConfigError(f"source {apart[0]!r} cannot be joined with others, as in {source!r}; name it alone")
        for name in SIZES:
            check_sizes(TOKEN_BYTES, **{name: getattr(self, name)})
        check_sizes(RECORD_BYTES, num_updates=self.num_updates)
        check_sizes(TOKEN_BYTES, least=0, evaluation_samples=self.evaluation_samples)
        if self.decay_after is not None:
            check_sizes(0, least=0, decay_after=self.decay_after)
        for name in ("learning_rate", "max_grad_norm"):
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigError(f"{name} must be above 0 and finite, not {getattr(self, name)}")
        if not 0 < self.max_share <= 1:
            raise ConfigError(f"max_share must be above 0 and at most 1, not {self.max_share}")
        if not 0 <= self.averaging < 1:
            raise ConfigError(f"averaging must be at least 0 and below 1, not {self.averaging}")
        if not 0 <= self.weight_decay < math.inf:
            raise ConfigError(f"weight_decay must be 0 or more and finite, not {self.weight_decay}")
        lookup("optimiser", self.optimiser)
        if isinstance(self.informed, str) and self.informed.isdecimal():
            object.__setattr__(self, "informed", int(self.informed))
        check_every(self.informed)
        # Weight decay multiplies every parameter by 1 − learning_rate · weight_decay.
        if self.learning_rate * self.weight_decay >= 1:
            raise ConfigError(
                f"weight_decay = {self.weight_decay:g} times learning_rate = {self.learning_rate:g} must be below 1: "
                "each update would do more than set the twist to zero; lower one of them"
            )

    def check_conditional(self) -> None:
        """Refuse, for a target that differs by its condition, what knows one target only.

        Raises:
            ConfigError: a source has a pool, or is to give other than target samples of collected draws.
        """
        if self.has_pool:
            raise ConfigError(
                "source 'pool' knows one target only; for infilling use 'exact', 'draws', 'proposal' or 'base'"
            )
        for role in objective(self.loss).roles:
            # Each is a sample given its own condition: of the base model's or q's under that condition there are none.
            if role not in ("target", "drawn") and uses(self.source_of(role), "draws"):
                raise ConfigError(
                    f"{SOURCES[role]} is 'draws', and where targets differ by a condition collected draws are target "
                    "samples alone: set it to 'base' or 'proposal' (--source base, --source proposal)"
                )

    @property
    def parts(self) -> dict[str, Any]:
        """The registered losses, sources and optimiser that it names, each with its kind."""
        losses = {f"loss {entry.name}": entry.value for _, entry in objective(self.loss).parts}
        sources = [entry for role in SOURCES for entry in parts_of(self.source_of(role))]
        moves = {f"optimiser {self.optimiser}": lookup("optimiser", self.optimiser).value}
        return losses | {f"source {entry.name}": entry.value for entry in sources} | moves

    @property
    def has_pool(self) -> bool:
        """Whether a source gives what a pool of all draws so far has."""
        return any(marked(self.source_of(role), "pooled") for role in SOURCES)

    @property
    def constant_updates(self) -> int:
        """Updates of the full learning rate."""
        return self.num_updates if self.decay_after is None else min(self.decay_after, self.num_updates)

    def rate_at(self, number: int) -> float:
        """The learning rate of update `number`, the first of which is 0."""
        constant = self.constant_updates
        if number < constant:
            return self.learning_rate
        return self.learning_rate * (self.num_updates - number) / (self.num_updates - constant)

    def draws_from(self, *names: str) -> bool:
        """Whether one of these sources gives a part of any role's samples."""
        return any(uses(self.source_of(role), name) for role in SOURCES for name in names)

    def source_of(self, role: str) -> str:
        """The source, or several joined by "+", of a loss's role."""
        source: str = getattr(self, SOURCES[role])
        return source
