"""Posterior samples for whoever asks with prompts and takes texts: servers and evaluation tools."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from twistlm.core.errors import ConfigError
from twistlm.core.rng import Rng
from twistlm.models.base import is_end
from twistlm.runs.run import Run
from twistlm.sampling.cases import Case
from twistlm.sampling.sampler import Sampler
from twistlm.sampling.target import Target

# What OpenAI's interface and transformers call the number of tokens of a text.
LENGTHS = ("max_tokens", "max_completion_tokens", "max_new_tokens")


@dataclass(frozen=True)
class Answer:
    """A sequence, and what is known of it.

    Attributes:
        text: the new tokens.
        num_tokens: how many, EOS included.
        finished: whether it ended with EOS.
        log_weight: log Ẑ of the run of SMC that it was chosen from: weighted by exp of it, averages over the answers
            to one prompt are unbiased for p₀φ.
        log_phi, log_p: log φ, and log p₀ of the new tokens.
    """

    text: str
    num_tokens: int
    finished: bool
    log_weight: float
    log_phi: float
    log_p: float

    @property
    def known(self) -> dict[str, float]:
        """What stands beside the text, wherever it is sent."""
        return {"log_weight": self.log_weight, "log_phi": self.log_phi, "log_p": self.log_p}


def target_of(run: Run | Target) -> Target:
    """The target of a run; a target is its own."""
    return run if isinstance(run, Target) else run.target


def sampler_of(run: Run | Target, **options: Any) -> Sampler:
    """The sampler of a run, or of a target by its constraints alone, for prompts without conditions.

    `options` are those of `Run.sampler`.

    Raises:
        ConfigError: its target is given a condition, which nobody who asks with a prompt has.
    """
    sampler = run.sampler(**options)
    if sampler.is_conditional:
        raise ConfigError("this target is given a condition, for which there is no field here; use run.sample(…)")
    # Chats among the target's own prompts are known by their tokens from here on.
    _ = target_of(run).cases
    return sampler


def answered(run: Run, sampler: Sampler, rng: Rng, prompts: Sequence[Tensor], num_particles: int) -> list[Answer]:
    """A sequence after each of B prompts [P], chosen by weight from a run of SMC of its own.

    Raises:
        PromptError: a prompt is empty or too long.
        DeadParticlesError: every particle of one has weight zero.
    """
    chosen = sampler.choose(rng, [Case(prompt) for prompt in prompts], num_particles)
    samples = chosen.samples
    rows = zip(
        run.target.texts(samples),
        samples.mask.sum(1).tolist(),
        is_end(samples.tokens, sampler.model.ends).any(-1).tolist(),
        chosen.log_Z_hat.tolist(),
        samples.log_phi.tolist(),
        samples.log_p.sum(-1).tolist(),
        strict=True,
    )
    return [Answer(*row) for row in rows]


def changed(
    asked: dict[str, Any], neutral: dict[str, tuple[Any, ...]], num_tokens: int, harmless: Collection[str] = ()
) -> tuple[str, str] | None:
    """The first field that asks for what samples of the posterior are not, and what to do about it.

    One that is not known here is such a field: nobody can say what it would change.

    Args:
        asked: fields and values; None for those that were not given.
        neutral: fields that would change what is sampled or returned, with the values that change nothing.
        num_tokens: of the target's texts, which what limits them (`LENGTHS`) must be, if it is given.
        harmless: fields that change nothing of it, whatever their value.
    """
    for field, value in asked.items():
        if value is None or field in harmless:
            continue
        if field in LENGTHS:
            if value != num_tokens:
                return field, f"{field} = {value}, and this target's texts have {num_tokens}; leave it out"
        elif field not in neutral:
            return field, f"{field} = {value!r:.60} is not known here and may change what is sampled; leave it out"
        elif value not in neutral[field]:
            return field, f"{field} = {value!r} is of another way of decoding than sampling a posterior; leave it out"
    return None
