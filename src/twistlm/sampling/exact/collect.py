"""Exact samples of the target, by rejection or by construction, and the file that keeps them.

A base draw s ~ p₀ is accepted with probability φ(s) / sup φ, which makes accepted draws exact samples of σ. The draws
that were refused are kept too: weighted by φ they are training data that has been paid for.

Where the target differs by what must follow (infilling), every base draw of T + c tokens holds an exact sample of the
target that its last c tokens are the condition of, and all are accepted.

Upper bounds on log Z and KL(σ‖q) are void with approximate samples, so `ExactSamples` can be made only here: by
`Collection.exact`, which checks acceptance again. What is compared with φ / sup φ comes from a stream of its own for
every chunk of draws, and the file names the streams, so that reading it checks the same (`draws_file`).
"""

import math
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from twistlm.core.errors import ConfigError, NoneAcceptedError, UpperBoundError
from twistlm.core.progress import bar
from twistlm.core.rng import Rng
from twistlm.core.sizes import TOKEN_BYTES, check_sizes
from twistlm.potentials.base import copied, evaluate
from twistlm.potentials.protocol import ConditionalPotential, Potential
from twistlm.sampling import smc
from twistlm.sampling.exact.collection import Collection
from twistlm.sampling.exact.file import Stream, accepts
from twistlm.sampling.proposals import base
from twistlm.sampling.samples import Samples
from twistlm.sampling.twisted import TwistedLM

# Between saves of a collection in progress: a kill costs no more than that, and files with features are large.
SAVE_SECONDS = 15.0


def collect(
    rng: Rng,
    model: TwistedLM,
    potential: Potential,
    *,
    prompt: Tensor,
    num_steps: int,
    target: str,
    num_samples: int | None = None,
    max_draws: int,
    chunk: int = 512,
    so_far: Collection | None = None,
    save_to: Path | None = None,
    keep_features: bool = False,
    num_siblings: int = 0,
) -> Collection:
    """Draw from p₀ until `num_samples` are accepted or `max_draws` are drawn.

    Chunk k of the draws uses the stream `rng.fork("collect", k)`, so continuing from `so_far` gives bit for bit what an
    uninterrupted call gives.

    Args:
        rng: source of randomness.
        model: its base model is drawn from; its twist is ignored.
        potential: φ with a known upper bound, bound to the model.
        prompt: the prompt's tokens.
        num_steps: T.
        target: fingerprint recorded with the samples.
        num_samples: stop once so many are accepted; None draws `max_draws` in any case.
        max_draws: budget, rounded up to whole chunks.
        chunk: sequences drawn at a time.
        so_far: an earlier result to continue.
        save_to: file to write every `SAVE_SECONDS` and at the end.
        keep_features: keep (and save) the base model's features, so that a head trains on the draws without a second
            pass over them.
        num_siblings: K further draws of every token to keep, for training.

    Raises:
        ConfigError: there is no room for so many draws.
        UpperBoundError: φ has no known upper bound.
        NoneAcceptedError: nothing was accepted within the budget.
    """
    bound = potential.log_upper_bound
    if bound is None or not math.isfinite(bound):
        declared = f"{type(potential).__name__} declares {'none' if bound is None else bound}"
        raise UpperBoundError(
            f"rejection sampling needs an upper bound on the potential, and {declared}; set its log_upper_bound "
            "(0 for a probability), or do without exact samples (lower bounds only)"
        )
    each = TOKEN_BYTES * num_steps
    check_sizes(each, max_draws=max_draws, chunk=chunk, **({} if num_samples is None else {"num_samples": num_samples}))
    base_model = TwistedLM(model.lm, None, model.eos)
    parts = [] if so_far is None else [so_far]
    saved_at = time.monotonic()
    with bar("exact samples", num_samples or max_draws) as report:
        while not _enough(parts, num_samples, max_draws):
            stream = rng.fork("collect", sum(len(part.streams) for part in parts))
            source, uniforms = Stream(stream.seed, stream.path, chunk), None
            if isinstance(potential, ConditionalPotential):
                draws = joint_samples(stream, base_model, potential, prompt, num_steps, chunk, keep_features)
            else:
                draws = _base_draws(
                    stream, base_model, potential, prompt, num_steps, chunk, keep_features, num_siblings
                )
                uniforms = source.uniforms()
            accepted = accepts(draws.log_phi, bound, uniforms)
            parts.append(Collection(draws, accepted, bound, target, (source,), uniforms))
            if save_to is not None and time.monotonic() - saved_at > SAVE_SECONDS:
                parts = [_joined(parts)]
                parts[0].save(save_to)
                saved_at = time.monotonic()
            n, hits = _counts(parts)
            report(min(hits, num_samples) if num_samples else n, f"accepted {hits} of {n} ({hits / n:.2%})")
    collection = _joined(parts)
    if save_to is not None:
        collection.save(save_to)
    if not collection.accepted.any():
        n = len(collection.draws)
        raise NoneAcceptedError(
            f"none of {n} draws was accepted: the acceptance rate is below {3 / n:.1e} with 95 % confidence "
            f"(log Z < {math.log(3 / n) + bound:.1f}); raise max_draws, or do without exact samples (lower bounds "
            "only)",
            collection,
        )
    return collection


def _base_draws(
    rng: Rng, model: TwistedLM, potential: Potential, prompt: Tensor, num_steps: int, count: int,
    record_features: bool, num_siblings: int,
) -> Samples:  # fmt: skip
    """`count` base draws with φ, apart from SMC, which refuses a batch of which every sequence has φ = 0."""
    result = smc.run(
        rng, model, None, prompts=[prompt], num_particles=count, num_steps=num_steps, proposal=base,
        ess_threshold=0.0, record_features=record_features, num_siblings=num_siblings,
    )  # fmt: skip
    draws = smc.to_samples(result, [prompt], model)
    return replace(draws, log_phi=evaluate(potential, draws.prompts, draws.tokens).to(draws.log_p.device))


def joint_samples(
    rng: Rng,
    model: TwistedLM,
    potential: ConditionalPotential,
    prompt: Tensor,
    num_steps: int,
    count: int,
    record_features: bool = False,
) -> Samples:
    """`count` base draws with a condition each, such that every one is an exact sample of the target it defines.

    For infilling the condition is what the model wrote next.

    Raises:
        ConfigError: the model ends sequences at EOS, after which nothing can follow.
    """
    if model.absorbing is not None and potential.num_following > 0:
        raise ConfigError("infilling needs sequences of a fixed length: set eos='ignore'")
    result = smc.run(
        rng, TwistedLM(model.lm, None, model.eos), None, prompts=[prompt], num_particles=count,
        num_steps=num_steps + potential.num_following, proposal=base, ess_threshold=0.0,
        record_features=record_features,
    )  # fmt: skip
    whole = smc.to_samples(result, [prompt], model)
    first = slice(None), slice(num_steps)
    tokens, following = whole.tokens[first], whole.tokens[:, num_steps:]
    uniforms = rng.uniform((1, count))[0].to(tokens.device)
    conditions, log_phi = potential.draw_condition(
        uniforms, copied(whole.prompts), tokens.clone(), following.clone(), whole.log_p[:, num_steps:].clone()
    )
    return Samples(
        prompts=whole.prompts,
        tokens=tokens,
        mask=whole.mask[first],
        log_p=whole.log_p[first],
        log_q=whole.log_q[first],
        log_phi=log_phi.to(whole.log_p.device),
        features=None if whole.features is None else whole.features[first],
        conditions=conditions,
    )


def _enough(parts: Sequence[Collection], num_samples: int | None, max_draws: int) -> bool:
    n, hits = _counts(parts)
    return n >= max_draws or (num_samples is not None and hits >= num_samples)


def _counts(parts: Sequence[Collection]) -> tuple[int, int]:
    """Draws, and those accepted."""
    return sum(len(part.draws) for part in parts), sum(int(part.accepted.sum()) for part in parts)


def _joined(parts: Sequence[Collection]) -> Collection:
    if len(parts) == 1:
        return parts[0]
    return replace(
        parts[0],
        draws=Samples.concatenate([part.draws for part in parts]),
        accepted=torch.cat([part.accepted for part in parts]),
        streams=tuple(stream for part in parts for stream in part.streams),
        uniforms=None
        if parts[0].uniforms is None
        else torch.cat([part.uniforms for part in parts if part.uniforms is not None]),
    )
