"""`twistlm evaluate`."""

from dataclasses import dataclass
from typing import Annotated

from annotated_types import MinLen
from tyro.conf import arg

from twistlm.cli.options import Count, Group, RunPath, Seed, SMCOptions, TrustFunction


@dataclass(frozen=True)
class OfEvaluation(Group):
    """What is spent, in place of the run's own settings."""

    num_particles: Annotated[
        Annotated[tuple[Count, ...], MinLen(1)] | None,
        arg(help="Numbers of particles of the sandwiches; default here and below: the run's."),
    ] = None
    num_samples: Annotated[Count | None, arg(help="Proposal samples for KL(q‖σ).")] = None
    budget: Annotated[Count | None, arg(help="Sequences spent on each bound at each number of particles.")] = None


def evaluate(
    run: RunPath,
    trust_function: TrustFunction = (),
    seed: Seed = 1,
    *,
    spending: Annotated[OfEvaluation, arg(name="")],
    smc: SMCOptions,
) -> None:
    """Certify a run: bounds on log Z and KL both ways, beside the base model's. Writes certificate.json.

    What that replaces moves to evaluations/. A run of a sweep keeps the sweep's certificate, which its tables are made
    of: there this one goes to evaluations/ itself. `twistlm report` shows them all.
    """

    from twistlm.certificates.verdict import verdict
    from twistlm.core.terminal import console
    from twistlm.report.tables import bounds_table, certificate_table, print_lines
    from twistlm.runs.run import Run

    opened = Run.load(run, trust_functions=trust_function)
    how = smc.for_run(trust_function)
    certificates = {
        name: opened.evaluate(**spending.given, seed=seed, before=name == "before", **how)
        for name in ("before", "after")
    }
    assert opened.folder is not None
    asked = {**spending.given, **smc.given, "seed": seed}
    if smc.proposal_run is not None:
        asked["proposal_run"] = str(smc.proposal_run)
    evaluations = opened.folder.evaluations
    path = evaluations.add(certificates, asked)
    show = console()
    show.print(certificate_table(certificates))
    show.print(bounds_table(certificates))
    print_lines(show, verdict(certificates["after"], certificates["before"]))
    if others := evaluations.count_others():
        print(f"{others} more in {evaluations.folder}; `twistlm report {run}` shows them all")
    print(f"Written to {path}")
