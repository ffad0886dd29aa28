"""Whether draws are what they are taken for: of this model and potential, and unseen by what they judge."""

import math
from dataclasses import replace

import torch

from twistlm.core.errors import ExactSamplesError
from twistlm.core.rng import Rng
from twistlm.potentials.base import evaluate
from twistlm.sampling.cases import Cases, distinct
from twistlm.sampling.exact.collection import Collection
from twistlm.sampling.sampler import Sampler
from twistlm.sampling.samples import Samples

# Draws whose log p₀ and log φ are worked out again, and how many may come out otherwise: a score that lies on a
# threshold may fall on either side of it.
ROWS = 8
FORGIVEN = 1
# Log p₀ of one token, and log φ, by another way of computing them: float32 differs by 1e-4, bfloat16 by a tenth.
CLOSE, ROUGHLY = 0.02, 0.5
# Draws that are the same by chance: less than e⁻²⁰ such pairs are expected.
SURPRISE = 20.0


def check(rng: Rng, collection: Collection, sampler: Sampler, cases: Cases, where: str) -> Collection:
    """The draws, compared with their target: bound, prompt, length, and p₀ and φ of a few of them, computed again.

    Args:
        rng: which of them.
        collection: the draws.
        sampler: of the target; its base model is asked.
        cases: the target's prompts.
        where: where they came from, for the error.

    Raises:
        ExactSamplesError: they are not of this target.
    """
    problem = _form(collection, sampler, cases)
    if problem is None:
        chosen = rng.uniform((1, len(collection.draws)))[0].argsort()[:ROWS]
        problem = _content(collection.draws.select(chosen), sampler)
    if problem is not None:
        raise ExactSamplesError(f"{where} does not hold draws of this target: {problem}; collect again")
    return collection


def _form(collection: Collection, sampler: Sampler, cases: Cases) -> str | None:
    draws, bound, model = collection.draws, sampler.ranges.high, sampler.model
    if bound is None or not math.isclose(bound, collection.log_upper_bound, rel_tol=1e-9, abs_tol=1e-9):
        return f"log φ was bounded by {collection.log_upper_bound:g} and is by {bound}"
    known = {tuple(case.prompt.tolist()) for case in cases}
    foreign = {tuple(case.prompt.tolist()) for case in distinct(draws.prompts)} - known
    if draws.tokens.shape[1] != sampler.num_steps or foreign:
        return "prompt or length is another one"
    if sampler.is_conditional != (draws.conditions is not None):
        return f"they have {'no ' if sampler.is_conditional else ''}conditions"
    numbers = [draws.tokens] + ([] if draws.siblings is None else [draws.siblings.tokens])
    largest = max(int(each.max()) for each in numbers)
    if largest >= model.lm.vocab_size:
        return f"token {largest} is not among the model's {model.lm.vocab_size}"
    return None if draws.mask.equal(model.mask(draws.tokens)) else "their mask is not where they end"


def _content(chosen: Samples, sampler: Sampler) -> str | None:
    assert sampler.potential is not None
    plain, mask = sampler.base, chosen.mask
    fresh = plain.model.base_features(chosen.prompts, chosen.tokens)
    close = ROUGHLY if fresh.dtype in (torch.bfloat16, torch.float16) else CLOSE
    log_p = plain.densities(replace(chosen, features=fresh)).log_p
    wrong = ((log_p.to(mask.device) - chosen.log_p).abs() > close).any(-1)
    log_phi = evaluate(sampler.potential, chosen.prompts, chosen.tokens, chosen.conditions).to(mask.device)
    wrong |= ~torch.isclose(log_phi, chosen.log_phi, rtol=close, atol=close)
    if chosen.features is not None:
        # The densities of exact samples are worked out from what is kept of them.
        if chosen.features.shape != fresh.shape:
            return f"their features are of shape {list(chosen.features.shape[1:])}, not {list(fresh.shape[1:])}"
        kept, truth = (
            x.flatten(2).double() if x.dim() > 2 else x.unsqueeze(-1).double() for x in (chosen.features, fresh)
        )
        distance = (kept.to(mask.device) - truth.to(mask.device)).norm(dim=-1)
        # NaN is not close to anything.
        wrong |= (~(distance <= close * truth.to(mask.device).norm(dim=-1)) & mask).any(-1)
    count = int(wrong.sum())
    return f"p₀ or φ of {count} in {len(chosen)} is not what they say" if count > FORGIVEN else None


def refuse_seen(offered: Collection, seen: Collection, where: str) -> None:
    """Refuse draws as evidence for what was trained on, or chosen by, the same.

    They are the same if they come from one stream of random numbers, whatever the target, or if sequences are that
    nobody would draw twice.

    Raises:
        ExactSamplesError: they are.
    """
    streams = {(each.seed, each.path) for each in seen.streams}
    common = [each for each in offered.streams if (each.seed, each.path) in streams]
    again = _rare(offered, seen) & _rare(seen, offered)
    if common or again:
        what = f"stream {common[0].seed}/{'/'.join(map(str, common[0].path))}" if common else f"{len(again)} sequences"
        raise ExactSamplesError(
            f"{where} holds draws that the proposal's training has seen ({what} in both): they prove nothing about it. "
            "Leave them out, a run brings draws that it kept for evaluation; or collect others with another --seed"
        )


def _rare(collection: Collection, other: Collection) -> set[tuple[int, ...]]:
    """Sequences so improbable that none of them would be expected in both."""
    draws = collection.draws
    rare = draws.log_p.sum(-1) < -math.log(len(draws) * len(other.draws)) - SURPRISE
    return {tuple(row) for row in draws.tokens[rare].tolist()}
