"""`twistlm certify`."""

from contextlib import nullcontext
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from annotated_types import MinLen
from tyro.conf import Positional, arg

from twistlm.cli.options import (
    OR_URL,
    AnyPlace,
    Count,
    FilePlace,
    Limit,
    Natural,
    OfEngine,
    Positive,
    Seed,
    SmallUnlessGiven,
    TargetOptions,
    Text,
    TrustFunction,
    Verbose,
    refuse_existing,
)
from twistlm.core.errors import ConfigError, RunError
from twistlm.core.remote import url_of

if TYPE_CHECKING:
    from twistlm.certificates.spending import Effort


@dataclass(frozen=True)
class OfCertificate(OfEngine):
    """By what the sampler is judged, what is spent on that, and who does it."""

    draws: Annotated[
        AnyPlace | None, arg(help="File of `twistlm collect`, which trained nothing that is certified.")
    ] = None
    num_draws: Annotated[
        Natural | None,
        arg(
            help="Base draws to collect for exact samples, in place of those that a run kept for evaluation; 0 for "
            "none. Default: a run's own, else 4,096."
        ),
    ] = None
    num_particles: Annotated[
        Annotated[tuple[Count, ...], MinLen(1)], arg(help="Numbers of particles of the sandwiches.")
    ] = (4, 16, 64)
    num_samples: Annotated[Count, arg(help="The proposal's samples for KL(q‖σ).")] = 512
    budget: Annotated[Count, arg(help="Sequences spent on each bound at each number of particles.")] = 512
    gap: Annotated[
        Positive | None, arg(help="Double the smallest number of particles until the sandwich is so tight (nats).")
    ] = None
    max_sequences: Annotated[Limit, arg(help="With --gap: spend at most so many sequences.")] = inf
    max_seconds: Annotated[Limit, arg(help="With --gap: spend about so long at most.")] = inf

    @property
    def effort(self) -> "Effort | None":
        """What may be spent on a gap; None where none is asked for.

        Raises:
            ConfigError: limits are given, and nothing that they limit.
        """
        from twistlm.certificates.spending import Effort

        if self.gap is not None:
            return Effort(self.gap, self.max_sequences, self.max_seconds)
        limits = {"--max-sequences": self.max_sequences, "--max-seconds": self.max_seconds}
        if given := [f"{name} {limit:g}" for name, limit in limits.items() if limit < inf]:
            raise ConfigError(f"{', '.join(given)}: limits of what --gap spends; give that too, or leave them out")
        return None


def certify(
    target: Annotated[
        Positional[Text | None],
        arg(
            help="What should be sampled: a run folder, or an experiment, of whose target --model, --prompt and so on "
            "replace a part; without one they are all of it."
        ),
    ] = None,
    proposal: Annotated[
        Text | None,
        arg(
            help="What samples: 'base', a run folder, or a causal language model with the base model's tokenizer (a "
            "folder or hub name). Default: the run itself, or 'base' for an experiment."
        ),
    ] = None,
    out: Annotated[
        FilePlace | None, arg(help=f"JSON file for the certificate; an existing one is refused. {OR_URL}")
    ] = None,
    preset: SmallUnlessGiven = None,
    trust_function: TrustFunction = (),
    seed: Seed = 1,
    verbose: Verbose = False,
    *,
    spending: Annotated[OfCertificate, arg(name="")],
    options: TargetOptions,
) -> None:
    """How far is a sampler from its target? Bounds on log Z and KL both ways, every number with its interval.

    The sampler may be a run of ours, the base model, or a language model that was tuned elsewhere (by PPO, GRPO, SFT).
    Of a set of prompts each is certified, and the mean over them. Upper bounds and KL(σ‖q) need exact samples, which
    rejection collects if φ has an upper bound; without them only lower bounds and one-sided statements are made. A
    certificate is written when it is complete; killed before, the same command again makes the same. What takes long
    can be collected first: `twistlm collect`, then --draws. A run is judged by the draws that it kept for evaluation,
    or by new ones if --num-draws says how many.
    """

    from twistlm.certificates.verdict import verdict
    from twistlm.core.folders import writing_file
    from twistlm.core.remote import shown
    from twistlm.core.storage import save_json
    from twistlm.core.terminal import console
    from twistlm.report.tables import effort_lines, print_certificates, print_lines
    from twistlm.runs.certify import certify as certificate_of
    from twistlm.runs.run import Run

    refuse_existing(out)
    effort, engine = spending.effort, spending.made()
    is_run = target is not None and _is_run(target)
    given = [*([] if preset is None else ["preset"]), *options.given]
    if is_run and given:
        raise ConfigError(f"{', '.join(given)}: {target} is a run, whose target stays what it is; leave them out")
    goal = (
        Run.load(str(target), trust_functions=trust_function)
        if is_run
        else options.preset(target, preset, "small").target()
    )
    sampler = proposal if proposal is not None else goal if isinstance(goal, Run) else "base"
    with nullcontext() if out is None else writing_file(out):
        certificate = certificate_of(
            goal,
            sampler,
            draws=spending.draws,
            num_draws=spending.num_draws,
            num_particles=spending.num_particles,
            num_samples=spending.num_samples,
            budget=spending.budget,
            effort=effort,
            engine=engine,
            seed=seed,
            trust_functions=trust_function,
        )
        certificates = {str(proposal or target if is_run else sampler): certificate}
        try:
            if out is not None:
                # Somebody else may have put a file there meanwhile.
                refuse_existing(out)
                save_json(out, certificate)
        finally:
            # What was found is shown also where it cannot be kept.
            show, prompts = console(), (goal.target if isinstance(goal, Run) else goal).prompts
            print_certificates(show, certificates, prompts, verdict(certificate), verbose=verbose)
            print_lines(show, effort_lines(certificate))
    if out is not None:
        print(f"Written to {shown(out)}")


def _is_run(named: str) -> bool:
    """Whether it is a run folder, and not an experiment.

    Raises:
        RunError: it is a path, and there is no run.
    """
    from twistlm.core.registry import available
    from twistlm.runs.folder import RunFolder

    path = Path(named)
    if url_of(named) is not None or RunFolder.is_one(path):
        return True
    if (len(path.parts) > 1 or path.exists()) and named not in available("experiment"):
        why = "is not a run folder (it has no config.json)" if path.exists() else "does not exist"
        raise RunError(
            f"{named} {why}; name a run that `twistlm train` or `twistlm demo` has made, or an experiment "
            "(`twistlm list`)"
        )
    return False
