"""Whether draws are what they are taken for: of this model and potential, and unseen by what they judge."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from twistlm.core.errors import ExactSamplesError
from twistlm.core.identity import digest
from twistlm.core.rng import Rng
from twistlm.potentials.base import evaluate
from twistlm.sampling.cases import Cases, distinct
from twistlm.sampling.exact.collection import Collection, load
from twistlm.sampling.exact.origins import Origins
from twistlm.sampling.sampler import Sampler
from twistlm.sampling.samples import Samples

# Draws whose log p₀ and log φ are worked out again, and how many may come out otherwise: a score that lies on a
# threshold may fall on either side of it.
ROWS = 8
FORGIVEN = 1
# Log p₀ of one token, and log φ, by another way of computing them: float32 differs by 1e-4, bfloat16 by a tenth.
CLOSE, ROUGHLY = 0.02, 0.5
# What to do where another run has seen the draws that are to judge it.
ANOTHER = (
    "Certify it by others (twistlm certify --draws, a file collected with another --seed), or train one of the two "
    "with another --seed"
)
# Draws that are the same by chance: less than e⁻²⁰ such pairs are expected.
SURPRISE = 20.0


def believed(given: Path | Collection, target: str, sampler: Sampler, cases: Cases) -> Collection:
    """Draws at hand or in a file, after a look at their content.

    Args:
        given: the draws, or the name of their file.
        target: the fingerprint of their target.
        sampler: of that; its base model is asked.
        cases: its prompts.

    Raises:
        ExactSamplesError: they are of another target or version, or were changed.
        RunError: the file is missing, corrupt or damaged.
    """
    found, where = (given, "draws") if isinstance(given, Collection) else (load(given, target), str(given))
    if found.target != target:
        raise ExactSamplesError(
            f"{where} holds samples of another target ({found.target}, not {target}); collect again"
        )
    return check(Rng(0, ("check",)), found, sampler, cases, where)


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


@dataclass(frozen=True)
class Seen:
    """What a twist was trained on or chosen by, and what the twist was that it began as.

    Attributes:
        draws: as far as they are there.
        origins: of all of them.
    """

    draws: Sequence[Collection] = ()
    origins: Origins = field(default_factory=Origins)


def refuse_offered(offered: Collection, seen: Seen, where: str) -> None:
    """Refuse draws as evidence for what was trained on, or chosen by, the same.

    They are the same if they come from one stream of random numbers, whatever the target, or if sequences are that
    nobody would draw twice.

    Raises:
        ExactSamplesError: they are.
    """
    known = seen.origins.names
    common = [each for each in offered.streams if each.name in known]
    if common or (again := _num_again(offered, seen)):
        what = f"stream {common[0].seed}/{'/'.join(map(str, common[0].path))}" if common else f"{again} sequences"
        raise ExactSamplesError(
            f"{where} holds draws that the proposal's training has seen ({what} in both): they prove nothing about it. "
            "Leave them out, a run brings draws that it kept for evaluation; or collect others with another --seed"
        )


def refuse_kept(judging: Collection, seen: Seen, where: str, proposal: str, remedy: str = ANOTHER) -> None:
    """Refuse what a run keeps for evaluation as evidence for another run, whose training has `seen` some.

    Two runs may share streams of random numbers and yet no draw: what one kept the other kept, too. The error says
    what to do instead: `remedy`.

    Raises:
        ExactSamplesError: some of it is the same.
    """
    count = Origins.of([judging]).num_common(seen.origins)
    if count or (again := _num_again(judging, seen)):
        what = f"{count} draws" if count else f"{again} sequences"
        raise ExactSamplesError(
            f"{where} keeps draws for evaluation that the training of {proposal} has seen ({what} in both): they "
            f"prove nothing about it. {remedy}"
        )


def identity(collection: Collection) -> str:
    """What tells draws from others: the sequences with what is known and kept of each, and where they came from."""
    draws = collection.draws
    siblings = None if draws.siblings is None else draws.siblings.tokens
    of_each = [draws.tokens, draws.log_phi, collection.accepted, draws.conditions, siblings]
    streams = [(each.seed, each.path, each.count) for each in collection.streams]
    return digest([of_each, list(draws.prompts), streams])


def _num_again(offered: Collection, seen: Seen) -> int:
    """How many sequences are among those seen that nobody would draw twice."""
    return len({row for each in seen.draws for row in _rare(offered, each) & _rare(each, offered)})


def _rare(collection: Collection, other: Collection) -> set[tuple[int, ...]]:
    """Sequences so improbable that none of them would be expected in both."""
    draws = collection.draws
    # Under a constraint few may be possible, all of which p₀ hardly ever draws.
    rare = draws.log_q.sum(-1) < -math.log(max(1, len(draws) * len(other.draws))) - SURPRISE
    return {tuple(row) for row in draws.tokens[rare].tolist()}
