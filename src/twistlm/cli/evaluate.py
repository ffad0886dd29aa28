"""`twistlm evaluate`."""

from typing import Annotated

from annotated_types import MinLen
from tyro.conf import arg

from twistlm.cli.options import Count, ProposalName, ProposalRun, ResamplerName, RunPath, Seed, Threshold, TrustFunction


def evaluate(
    run: RunPath,
    num_particles: Annotated[
        Annotated[tuple[Count, ...], MinLen(1)] | None,
        arg(help="Numbers of particles of the sandwiches; default here and below: the run's."),
    ] = None,
    num_samples: Annotated[Count | None, arg(help="Proposal samples for KL(q‖σ).")] = None,
    budget: Annotated[Count | None, arg(help="Sequences spent on each bound at each number of particles.")] = None,
    proposal: ProposalName = "twist_induced",
    resampler: ResamplerName = "systematic",
    ess_threshold: Threshold = 0.5,
    proposal_run: ProposalRun = None,
    trust_function: TrustFunction = (),
    seed: Seed = 1,
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
    proposes = None if proposal_run is None else Run.load(proposal_run, trust_functions=trust_function)
    certificates = {
        name: opened.evaluate(
            num_particles,
            num_samples=num_samples,
            budget=budget,
            seed=seed,
            before=name == "before",
            proposal=proposal,
            resampler=resampler,
            ess_threshold=ess_threshold,
            proposal_run=proposes,
        )
        for name in ("before", "after")
    }
    assert opened.folder is not None
    asked = {
        "num_particles": num_particles, "num_samples": num_samples, "budget": budget, "proposal": proposal,
        "resampler": resampler, "ess_threshold": ess_threshold,
        "proposal_run": None if proposal_run is None else str(proposal_run), "seed": seed,
    }  # fmt: skip
    evaluations = opened.folder.evaluations
    path = evaluations.add(certificates, {k: v for k, v in asked.items() if v is not None})
    show = console()
    show.print(certificate_table(certificates))
    show.print(bounds_table(certificates))
    print_lines(show, verdict(certificates["after"], certificates["before"]))
    if others := evaluations.count_others():
        print(f"{others} more in {evaluations.folder}; `twistlm report {run}` shows them all")
    print(f"Written to {path}")
