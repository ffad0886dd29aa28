"""`twistlm evaluate`."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from annotated_types import MinLen
from tyro.conf import arg

from twistlm.cli.options import (
    AnyPath,
    Count,
    EngineOptions,
    Group,
    RunPath,
    Seed,
    SMCOptions,
    Text,
    TrustFunction,
    Verbose,
)
from twistlm.core.errors import ConfigError

if TYPE_CHECKING:
    from twistlm.sampling.prompts import Prompts


@dataclass(frozen=True)
class OfEvaluation(Group):
    """What is spent, in place of the run's own settings."""

    num_particles: Annotated[
        Annotated[tuple[Count, ...], MinLen(1)] | None,
        arg(help="Numbers of particles of the sandwiches; default here and below: the run's."),
    ] = None
    num_samples: Annotated[Count | None, arg(help="Proposal samples for KL(q‖σ).")] = None
    budget: Annotated[Count | None, arg(help="Sequences spent on each bound at each number of particles.")] = None
    num_draws: Annotated[Count | None, arg(help="Base draws for each prompt of a file of --prompts.")] = None


@dataclass(frozen=True)
class OfPrompts(Group):
    """Where it is certified."""

    prompts: Annotated[
        AnyPath | None,
        arg(
            help="A file of prompts (.txt, .jsonl or .csv) that training need not have seen, or `all` of the run's. "
            "Default: those of its own that training has not seen."
        ),
    ] = None
    column: Annotated[Text | None, arg(help="Of the file: the column that holds the prompts; default: prompt.")] = None
    chat: Annotated[bool, arg(help="Texts of the file are what a user says; that is so anyway for a run on chats.")] = (
        False
    )
    system: Annotated[
        Text | None, arg(help="The system's message of those chats; default: that of the run's own, if all have one.")
    ] = None

    def read(self, own: "Prompts") -> "Prompts | str | None":
        """What `Run.evaluate` takes, for a run with the prompts `own`.

        Raises:
            ConfigError: an option is of a file, and none was given.
            PromptError: the file is none of prompts, or of another kind of them than the run's; the message says where.
        """
        from twistlm.runs.evidence import ALL
        from twistlm.sampling.prompts import Prompts

        is_file = self.prompts is not None and str(self.prompts) != ALL
        if not is_file:
            if self.column is not None or self.chat or self.system is not None:
                raise ConfigError("--column, --chat and --system are of a file of --prompts; give that too")
            return None if self.prompts is None else ALL
        assert self.prompts is not None
        as_chat = self.chat or self.system is not None
        found = Prompts.read(self.prompts, self.column or "prompt", as_chat=as_chat, system=self.system)
        return Prompts(tuple(own.alike(entry) for entry in found.entries), found.names, found.weights)


def evaluate(
    run: RunPath,
    trust_function: TrustFunction = (),
    seed: Seed = 1,
    verbose: Verbose = False,
    *,
    spending: Annotated[OfEvaluation, arg(name="")],
    where: Annotated[OfPrompts, arg(name="")],
    smc: SMCOptions,
    workers: EngineOptions,
) -> None:
    """Certify a run: bounds on log Z and KL both ways, beside the base model's. Writes certificate.json.

    What that replaces moves to evaluations/. A run of a sweep keeps the sweep's certificate, which its tables are made
    of: there this one goes to evaluations/ itself. `twistlm report` shows them all.

    A run on a set of prompts is certified at each of them, and on the mean over them; a few samples of each are kept in
    prompt_samples.jsonl. One twist serves prompts that it never saw:

    twistlm evaluate runs/requests --prompts other.txt
    """

    from twistlm.certificates.verdict import verdict
    from twistlm.core.remote import shown
    from twistlm.core.terminal import console
    from twistlm.report.tables import print_certificates
    from twistlm.runs import evidence
    from twistlm.runs.certification import Certification
    from twistlm.runs.run import Run

    opened = Run.load(run, trust_functions=trust_function)
    prompts, spent = where.read(opened.target.prompts), spending.given
    if spending.num_draws is not None and prompts in (None, evidence.ALL):
        raise ConfigError(
            "--num-draws is for a file of --prompts: of its own the run has draws; leave it out, or judge it by new "
            f"ones with: twistlm certify {shown(run)} --num-draws {spending.num_draws}"
        )
    options = smc.for_run(trust_function) | {"engine": workers.made()}
    if "num_draws" in spent:
        options["num_draws"] = spent.pop("num_draws")
    asked = Certification(**spent, seed=seed, prompts=prompts, options=options)
    asked.check(opened)
    certificates = {name: asked.of(opened, before=name == "before") for name in ("before", "after")}
    path = asked.save(opened, certificates, **({} if where.prompts is None else {"prompts": str(where.prompts)}))
    lines = verdict(certificates["after"], certificates["before"])
    print_certificates(console(), certificates, evidence.where(opened, prompts)[1], lines, verbose=verbose)
    assert opened.folder is not None
    evaluations = opened.folder.evaluations
    if others := len(evaluations.others()):
        print(f"{others} more in {shown(evaluations.folder)}; `twistlm report {shown(run)}` shows them all")
    print(f"Written to {shown(path)}")
