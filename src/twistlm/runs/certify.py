"""Certify any sampler of a target: a run of ours, the base model, or a language model that was tuned elsewhere."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from twistlm.certificates import certify as certificate
from twistlm.certificates.bounds import METHODS
from twistlm.certificates.certificate import Certificate
from twistlm.certificates.certify import Effort
from twistlm.certificates.log_Z import Witness, of_draws
from twistlm.certificates.other_model import OtherModel
from twistlm.certificates.paired import certify_conditional
from twistlm.certificates.subject import Subject
from twistlm.core.errors import ConfigError, NoneAcceptedError, UpperBoundError
from twistlm.core.estimates import Estimate, mean
from twistlm.core.rng import Rng
from twistlm.core.sizes import RUN_BYTES, TOKEN_BYTES, check_sizes
from twistlm.models.base import BaseLM
from twistlm.models.huggingface import load
from twistlm.potentials.protocol import ConditionalPotential
from twistlm.runs.folder import RunFolder
from twistlm.runs.run import Run
from twistlm.sampling.exact.collection import Collection, ExactSamples
from twistlm.sampling.exact.provenance import refuse_seen
from twistlm.sampling.target import Target

logger = logging.getLogger("twistlm")


def certify(
    target: Target | Run,
    proposal: str | Path | Run | BaseLM = "base",
    *,
    draws: str | Path | None = None,
    num_draws: int = 4096,
    num_particles: Sequence[int] = (4, 16, 64),
    num_samples: int = 512,
    budget: int = 512,
    effort: Effort | None = None,
    methods: Sequence[str] = METHODS,
    seed: int = 1,
    trust_functions: Sequence[str] = (),
) -> Certificate:
    """How far a sampler is from a target, with both bounds and intervals.

    Args:
        target: what should be sampled; a run stands for its target, and brings the draws that it kept for evaluation.
        proposal: "base"; a run, or its folder; a causal language model with the base model's tokenizer, by folder, hub
            name or loaded.
        draws: file of `twistlm collect` for the target. They must not have trained the proposal.
        num_draws: base draws to collect for exact samples where neither a run nor a file brings them; 0 for none, which
            leaves lower bounds and one-sided statements.
        num_particles: N of the sandwiches.
        num_samples: the proposal's samples for KL(q‖σ).
        budget: sequences spent on each bound at each N.
        effort: double N until the sandwich is tight enough, instead; see `Effort`.
        methods: of the sandwiches, "iwae" and "smc".
        seed: of everything random.
        trust_functions: functions, as "module:name", that the potential of a proposal's folder may import and run.

    Raises:
        ConfigError: a setting is out of range, or the proposal is of another base model.
        ModelError: the proposal cannot be loaded, or has another tokenizer.
        ExactSamplesError: the file belongs to another target.
    """
    goal, rng = target.target if isinstance(target, Run) else target, Rng(seed, ("certify",))
    check_sizes(TOKEN_BYTES * goal.num_tokens, num_samples=num_samples)
    check_sizes(TOKEN_BYTES * goal.num_tokens, least=0, num_draws=num_draws)
    check_sizes(RUN_BYTES, budget=budget)
    proposes = _opened(proposal, goal, trust_functions)
    known = next((run for run in (target, proposes) if isinstance(run, Run) and _knows(run, goal)), None)
    seen = proposes.collection if isinstance(proposes, Run) else None
    evidence = (
        _of_run(known)
        if known is not None and draws is None
        else _of_draws(goal, rng.fork("draws"), draws, num_draws, seen)
    )
    ours = _subject(goal, proposes) if proposes is None or isinstance(proposes, Run) else None
    if isinstance(goal.potential, ConditionalPotential):
        if ours is None or evidence.exact is None or effort is not None:
            raise ConfigError(
                "a target that differs by its condition is certified for runs, on draws, and without a gap"
            )
        return certify_conditional(
            rng, ours, evidence.exact, num_particles=num_particles, num_samples=num_samples, budget=budget,
            methods=methods,
        )  # fmt: skip
    return certificate.certify(
        rng, ours or OtherModel(goal, cast(BaseLM, proposes)), evidence.exact, num_particles=num_particles,
        num_samples=num_samples, budget=budget, methods=methods, effort=effort, witnesses=evidence.witnesses,
        acceptance=evidence.acceptance,
    )  # fmt: skip


def _opened(proposal: str | Path | Run | BaseLM, goal: Target, trust_functions: Sequence[str]) -> Run | BaseLM | None:
    """The proposal, loaded; None for the base model."""
    if not isinstance(proposal, str | Path):
        return proposal
    if str(proposal) == "base":
        return None
    if RunFolder.has_begun(Path(proposal)):
        return Run.load(proposal, trust_functions=trust_functions)
    return load(str(proposal), dtype=goal.dtype, device=goal.device)


def _subject(goal: Target, proposes: Run | None) -> Subject:
    """The base model, or a run's twist, asked to sample the goal.

    Raises:
        ConfigError: it is a run on another base model.
    """
    if proposes is not None and proposes.target.model_name != goal.model_name:
        raise ConfigError(
            f"the proposal is a run on {proposes.target.model_name!r} and the target is of {goal.model_name!r}; choose "
            "one on the same base model"
        )
    twist = None if proposes is None else proposes.model.twist
    return Subject(goal.twisted(twist), goal.bound_potential, goal.prompt_tokens, goal.num_tokens)


@dataclass(frozen=True)
class Evidence:
    """What is known of a target: exact samples, what other draws than those say of log Z, and how many are accepted."""

    exact: ExactSamples | None = None
    witnesses: tuple[Witness, ...] = ()
    acceptance: Estimate | None = None


def _knows(run: Run, goal: Target) -> bool:
    return run.collection is not None and run.target.fingerprint == goal.fingerprint


def _of_run(run: Run) -> Evidence:
    """What a run kept for its evaluation."""
    evaluation = run.fold("evaluation")
    assert evaluation is not None
    return _evidence(evaluation, run.witnesses)


def _of_draws(goal: Target, rng: Rng, path: str | Path | None, num_draws: int, seen: Collection | None) -> Evidence:
    """Half of the draws serve log Z, the other half are the exact samples; a file's must not be those `seen` before."""
    if path is not None:
        collection = goal.draws(Path(path))
        if seen is not None:
            refuse_seen(collection, seen, str(path))
    elif num_draws == 0:
        return Evidence()
    else:
        try:
            collection = goal.collect(rng, num_samples=None, max_draws=num_draws, chunk=min(2048, num_draws))
        except NoneAcceptedError as error:
            logger.warning("%s", error)
            # They still say how large Z can be at most.
            draws = error.collection.draws.log_phi
            return Evidence(None, (of_draws(draws, goal.potential.log_upper_bound),), _acceptance(error.collection))
        except UpperBoundError as error:
            logger.warning("%s", error)
            return Evidence()
    if isinstance(goal.potential, ConditionalPotential):
        return _evidence(collection)
    rest, evaluation = collection.split((0.5, 0.5))
    return _evidence(evaluation, (of_draws(rest.draws.log_phi, goal.potential.log_upper_bound),))


def _evidence(evaluation: Collection, witnesses: tuple[Witness, ...] = ()) -> Evidence:
    accepted = evaluation.exact
    if len(accepted) < 2:
        logger.warning("%d exact samples are too few for upper bounds: raise num_draws", len(accepted))
    return Evidence(accepted if len(accepted) >= 2 else None, witnesses, _acceptance(evaluation))


def _acceptance(collection: Collection) -> Estimate | None:
    """The mean of φ / sup φ."""
    share = (collection.draws.log_phi - collection.log_upper_bound).exp()
    return mean(share, low=0.0, high=1.0) if len(share) else None
