"""Certify any sampler of a target: a run of ours, the base model, or a language model that was tuned elsewhere."""

import logging
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

from twistlm.certificates import certify as certificates
from twistlm.certificates.certificate import Certificate
from twistlm.certificates.evidence import Evidence, acceptance, witness
from twistlm.certificates.log_Z import Witness
from twistlm.certificates.over_prompts import certify_prompts
from twistlm.certificates.paired import certify_paired
from twistlm.certificates.spending import Spending
from twistlm.core.advice import coded
from twistlm.core.errors import ConfigError, NoneAcceptedError, UpperBoundError
from twistlm.core.remote import opened, url_of
from twistlm.core.rng import Rng
from twistlm.core.sizes import TOKEN_BYTES, check_sizes
from twistlm.core.work import HERE, Engine
from twistlm.models.base import BaseLM
from twistlm.models.huggingface import load
from twistlm.potentials.specs import Trust
from twistlm.runs.evidence import of_collection, of_run
from twistlm.runs.folder import RunFolder
from twistlm.runs.run import Run
from twistlm.runs.seen import refuse_judging, seen_by
from twistlm.sampling.exact.collection import Collection
from twistlm.sampling.exact.provenance import refuse_offered
from twistlm.sampling.sampler import Sampler, WorkerContext
from twistlm.sampling.target import Target

logger = logging.getLogger("twistlm")

# Base draws where nothing is said and no run brings any.
NUM_DRAWS = 4096


def certify(
    target: Target | Run,
    proposal: str | Path | Run | BaseLM = "base",
    *,
    draws: str | Path | Collection | None = None,
    num_draws: int | None = None,
    seed: int = 1,
    trust_functions: Trust = (),
    engine: Engine | None = None,
    **spending: Any,
) -> Certificate:
    """How far a sampler is from a target, with both bounds and intervals; of a set of prompts, at each and on the mean.

    Args:
        target: what should be sampled; a run stands for its target, and brings the draws that it kept for evaluation.
        proposal: "base"; a run, or its folder; a causal language model with the base model's tokenizer, by folder, hub
            name or loaded.
        draws: file of `twistlm collect` for the target, or what `Target.collect` returned. They must not have trained
            the proposal.
        num_draws: base draws, over all prompts, to collect for exact samples, by a stream of `seed`; those of a run
            are left aside then. 0 for none, which leaves lower bounds and one-sided statements. By default those that
            a run brings, else 4,096.
        seed: of everything random.
        engine: who draws, and certifies at the prompts of a set (`twistlm.engine`); by default this process.
        trust_functions: functions, as "module:name", that the potential of a proposal's folder may import and run;
            True: any that it names.
        **spending: what it may cost, fields of `twistlm.certificates.spending.Spending`: num_particles (N of the
            sandwiches), num_samples (the proposal's, for KL(q‖σ)), budget (sequences spent on each bound at each N),
            methods ("iwae" and "smc"), effort (double N until the sandwich is tight enough, instead; see `Effort`).

    Raises:
        ConfigError: a setting is unknown or out of range, `draws` and `num_draws` are both given, or the proposal is of
            another base model.
        ModelError: the proposal cannot be loaded, or has another tokenizer.
        ExactSamplesError: the file belongs to another target, or the proposal was trained on what it is judged by.
    """
    goal, rng = target.target if isinstance(target, Run) else target, Rng(seed, ("certify",))
    asked = _spending(spending)
    check_sizes(TOKEN_BYTES * goal.num_tokens, num_samples=asked.num_samples)
    if draws is not None and num_draws is not None:
        raise ConfigError("draws and num_draws exclude each other, as a file is used whole; choose one")
    count = NUM_DRAWS if num_draws is None else num_draws
    check_sizes(TOKEN_BYTES * goal.num_tokens, least=0, num_draws=count)
    proposes = _opened(proposal, goal, trust_functions)
    sampler = _sampler(goal, proposes)
    # What is asked for takes the place of what a run brings.
    runs = (target, proposes) if draws is None and num_draws is None else ()
    known = next(
        (run for run in runs if isinstance(run, Run) and run.collection is not None and _is_of(run, goal)), None
    )
    if known is not None and isinstance(proposes, Run):
        refuse_judging(known, goal.cases, proposes)
    here = WorkerContext(sampler, goal.cases)
    several = len(goal.cases) > 1 and not sampler.is_conditional
    with (engine or HERE).start(partial(_context, goal, proposal, trust_functions)) as workers:
        if known is not None:
            if not several:
                return _certify(rng, here, _of_run(known), asked)
            given = of_run(known, goal.cases)
        else:
            collection = _collected(goal, rng.fork("draws"), draws, count, proposes, workers)
            if not several:
                return _certify(rng, here, _of_draws(collection), asked)
            rest, judging = (None, None) if collection is None else collection.split((0.5, 0.5))
            given = of_collection(goal.cases, judging, [] if rest is None else [rest])
        return certify_prompts(rng, here, goal.prompts.names, given, asked, workers)


def _certify(rng: Rng, here: WorkerContext, known: Evidence, spending: Spending) -> Certificate:
    """At one prompt, or over conditions."""
    if here.sampler.is_conditional:
        return certify_paired(rng, here, known, spending)
    return certificates.certify(rng, here.sampler, here.cases[0], known, spending)


def _context(goal: Target, proposal: str | Path | Run | BaseLM, trust_functions: Trust) -> WorkerContext:
    """Where the goal is drawn, and the proposal certified."""
    return WorkerContext(_sampler(goal, _opened(proposal, goal, trust_functions)), goal.cases)


def _spending(asked: dict[str, Any]) -> Spending:
    known = [field.name for field in fields(Spending)]
    if unknown := sorted(asked.keys() - set(known)):
        raise ConfigError(f"unknown setting {', '.join(unknown)}; a certificate takes {', '.join(known)}")
    methods = {"methods": tuple(asked["methods"])} if "methods" in asked else {}
    return Spending(**{**asked, **methods})


def _opened(proposal: str | Path | Run | BaseLM, goal: Target, trust_functions: Trust) -> Run | BaseLM | None:
    """The proposal, loaded; None for the base model."""
    if not isinstance(proposal, str | Path):
        return proposal
    if str(proposal) == "base":
        return None
    # One that was damaged, and one that was published, which has no metrics.
    if url_of(proposal) is not None or RunFolder.has_begun(Path(proposal)) or RunFolder.is_ours(Path(proposal)):
        return Run.load(proposal, trust_functions=trust_functions)
    return load(str(proposal), dtype=goal.dtype, device=goal.device)


def _sampler(goal: Target, proposes: Run | BaseLM | None) -> Sampler:
    """The base model, a run's twist, or another model, asked to sample the goal.

    Raises:
        ConfigError: it is a run on another base model.
        ModelError: it has another tokenizer.
    """
    if proposes is None:
        return goal.sampler()
    if not isinstance(proposes, Run):
        return goal.sampler_of(proposes)
    goal.check_model(proposes.target, "the proposal")
    # What weighs beside a twist was fitted to the run's own target.
    return goal.sampler(proposes.model.twist, informed=proposes.informed if _is_of(proposes, goal) else None)


def _is_of(run: Run, goal: Target) -> bool:
    """Whether the goal is what the run was trained for."""
    return run.target.fingerprint == goal.fingerprint


def _of_run(run: Run) -> Evidence:
    """What a run kept for its evaluation."""
    evaluation = run.fold("evaluation")
    assert evaluation is not None
    return _evidence(evaluation, run.witnesses)


def _collected(
    goal: Target,
    rng: Rng,
    given: str | Path | Collection | None,
    num_draws: int,
    proposes: Run | BaseLM | None,
    engine: Engine,
) -> Collection | None:
    """Draws that are given, which what proposes must not have seen, or new ones; None if there are to be none."""
    if given is not None:
        if isinstance(given, Collection):
            collection, name = goal.draws(given), "draws"
        else:
            with opened(given, write=False) as file:
                collection, name = goal.draws(file), str(given)
        if isinstance(proposes, Run):
            refuse_offered(collection, seen_by(proposes), name)
        return collection
    if num_draws == 0:
        return None
    try:
        return goal.collect(rng, max_draws=num_draws, chunk=min(2048, num_draws), engine=engine)
    except NoneAcceptedError as error:
        logger.warning(coded("TW101", "%s"), error)
        # They still say how large Z can be at most.
        kept: Collection = error.collection
        return kept
    except UpperBoundError as error:
        logger.warning(coded("TW102", "%s"), error)
        return None


def _of_draws(collection: Collection | None) -> Evidence:
    """Half of the draws serve log Z, the other half are the exact samples."""
    if collection is None:
        return Evidence()
    if not bool(collection.accepted.any()):
        return Evidence(None, (witness(collection),), acceptance(collection))
    if collection.draws.conditions is not None:
        return _evidence(collection)
    rest, evaluation = collection.split((0.5, 0.5))
    return _evidence(evaluation, (witness(rest),))


def _evidence(evaluation: Collection, witnesses: tuple[Witness, ...] = ()) -> Evidence:
    evidence = Evidence.of(evaluation, witnesses)
    if evidence.exact is None:
        logger.warning(
            coded("TW103", "%d exact samples are too few for upper bounds: raise num_draws"),
            int(evaluation.accepted.sum()),
        )
    return evidence
