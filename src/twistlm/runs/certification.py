"""How a run is certified, and what that leaves in its folder: for `Run.evaluate` and `twistlm evaluate` alike."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from twistlm.certificates.bounds import METHODS
from twistlm.certificates.certificate import Certificate
from twistlm.certificates.certify import certify
from twistlm.certificates.evidence import Evidence
from twistlm.certificates.over_prompts import certify_prompts
from twistlm.certificates.paired import certify_paired
from twistlm.certificates.spending import Spending
from twistlm.core.errors import ConfigError
from twistlm.core.logmath import log_mean_exp, normalise
from twistlm.core.plain import several
from twistlm.core.rng import Rng
from twistlm.core.sizes import TOKEN_BYTES, check_sizes
from twistlm.core.work import HERE, Engine
from twistlm.runs import evidence
from twistlm.runs.folder import RunFolder
from twistlm.runs.seen import refuse_judging
from twistlm.runs.texts import TextSamples
from twistlm.sampling.exact.collection import Collection
from twistlm.sampling.prompts import Entry, Prompts, shown
from twistlm.sampling.resampling import invert
from twistlm.sampling.sampler import WorkerContext

if TYPE_CHECKING:
    from twistlm.runs.run import Run

# Base draws by which each prompt is judged that a run has none of.
JUDGING_DRAWS = 256
# Samples that are kept of each prompt of a set, for a reader.
NUM_KEPT = 8
# Options that are not of `Run.sampler`.
OWN = ("methods", "num_draws", "engine")


@dataclass(frozen=True)
class Certification:
    """What is asked of certificates of a run; None takes the run's own settings.

    Attributes:
        num_particles, num_samples, budget, seed: as for `Run.evaluate`.
        prompts: where: None, "all" or a set.
        options: the others of `Run.evaluate`.
    """

    num_particles: int | Sequence[int] | None = None
    num_samples: int | None = None
    budget: int | None = None
    seed: int = 1
    prompts: Prompts | str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_own(self) -> bool:
        """Whether it is at the run's own prompts."""
        return self.prompts in (None, evidence.ALL)

    @property
    def settings(self) -> dict[str, Any]:
        """What was given, as JSON values."""
        counts, other = self.num_particles, self.options.get("proposal_run")
        given = {
            "num_particles": None if counts is None else list(several(counts)),
            "num_samples": self.num_samples,
            "budget": self.budget,
            **{name: value for name, value in self.options.items() if name != "engine"},
            "proposal_run": None if other is None else other.place,
            "prompts": None if self.prompts is None else str(self.prompts),
            "seed": self.seed,
        }
        return {name: value for name, value in given.items() if value is not None}

    # --- Certifying ---

    def of(self, run: "Run", *, before: bool = False) -> Certificate:
        """The certificate of a run's proposal and SMC; `before`: of the base model, with the same exact samples.

        Raises:
            ExactSamplesError: another run is to propose, and was trained on what this one kept for evaluation.
        """
        sampling, engine = self._sampling, self.options.get("engine") or HERE
        rng, sampler = (
            Rng(self.seed, ("evaluate", "before" if before else "after")),
            run.sampler(before=before, **sampling),
        )
        spending = self._spending(run)
        # Exact samples that bring a condition bring their prompt too: all is paired already.
        at_prompts = self.prompts is not None or (len(run.target.cases) > 1 and not sampler.is_conditional)
        if self.is_own and (other := self.options.get("proposal_run")) is not None:
            refuse_judging(run, evidence.where(run, self.prompts)[0] if at_prompts else run.target.cases, other)
        if at_prompts:
            return self._at_prompts(rng, run, spending, engine, {"before": before, **sampling})
        evaluation, spare = run.fold("evaluation"), run.fold("training") if before else None
        known = Evidence() if evaluation is None else Evidence.of(evaluation)
        if sampler.is_conditional:
            return certify_paired(rng, WorkerContext(sampler, run.target.cases), known, spending)
        return certify(
            rng,
            sampler,
            run.target.cases[0],
            replace(known, witnesses=run.witnesses, acceptance=None),
            spending,
            # The base model's own draws are there already.
            drawn=spare.draws if spare is not None and _drawn_by_base(spare) else None,
        )

    def _spending(self, run: "Run") -> Spending:
        settings = run.config.evaluation
        counts = settings.num_particles if self.num_particles is None else self.num_particles
        return Spending(
            several(counts),
            settings.num_samples if self.num_samples is None else self.num_samples,
            settings.budget if self.budget is None else self.budget,
            tuple(self.options.get("methods", METHODS)),
        )

    def _at_prompts(
        self, rng: Rng, run: "Run", spending: Spending, engine: Engine, sampling: Mapping[str, Any]
    ) -> Certificate:
        context = partial(_context, run, self.prompts, sampling)
        here = context()
        with engine.start(context) as workers:
            draws, num_draws = Rng(self.seed, ("evaluate", "draws")), self.options.get("num_draws", JUDGING_DRAWS)
            where = evidence.at_prompts(run, self.prompts, draws, num_draws, workers)
            return certify_prompts(rng, here, where.names, where.evidence, spending, workers)

    @property
    def _sampling(self) -> dict[str, Any]:
        return {name: value for name, value in self.options.items() if name not in OWN}

    # --- Keeping ---

    def known(self, run: "Run", certificate: Certificate) -> "Known":
        """A certificate that was made so, with what a folder says beside it."""
        return Known(certificate, self.settings, self._where(run, bool(certificate.by_prompt)))

    def _where(self, run: "Run", several: bool) -> dict[str, Any]:
        return {"prompts": evidence.where(run, self.prompts)[1].described()} if several else {}

    def check(self, run: "Run") -> None:
        """Refuse early, before anything is computed, what `save` would refuse."""
        with _writable(run):
            pass

    def save(self, run: "Run", certificates: Mapping[str, Certificate], **settings: Any) -> Path:
        """Keep certificates in the run's folder, and a few samples at each prompt of a set; returns their file.

        What they take the place of moves to evaluations/ (`runs.folder.evaluations`).

        Args:
            run: the run, whose folder must be there, and have the twist that was certified.
            certificates: by what they are of: "before" training, "after".
            **settings: how a reader knows what was asked, in place of some of `settings`.

        Raises:
            ConfigError: the run has no folder.
            RunError: somebody else is writing it, or it has another twist by now.
            StorageError: it was deleted or replaced, or the system refuses.
        """
        several = any(each.by_prompt for each in certificates.values())
        with _writable(run) as folder:
            path = folder.evaluations.add(certificates, self.settings | settings, **self._where(run, several))
        if several and "after" in certificates:
            drawn = samples_at_prompts(run, self.prompts, NUM_KEPT, self.seed, **self._sampling)
            with _writable(run) as folder:
                folder.save_prompt_samples(drawn)
        return path


@dataclass(frozen=True)
class Known:
    """A certificate of a run's twist, with what a folder says beside it.

    Attributes:
        certificate: at prompts of the run's own.
        settings: how it was made, as JSON values.
        more: what else, as JSON values: the prompts, of a set.
    """

    certificate: Certificate
    settings: Mapping[str, Any]
    more: Mapping[str, Any]


def kept(folder: RunFolder) -> Known | None:
    """The certificate that counts in a run's folder, if it is of the twist that is there, at prompts of the run's own.

    Raises:
        RunError: it is damaged.
    """
    evaluations = folder.evaluations
    current = evaluations.current() if folder.is_trained else None
    if current is None or not evaluations.is_of_this_twist(current):
        return None
    if "after" not in current.certificates or current.settings.get("prompts") not in (None, evidence.ALL):
        return None
    more = {"prompts": [asdict(each) for each in current.prompts]} if current.prompts else {}
    return Known(current.certificates["after"], current.settings, more)


@contextmanager
def _writable(run: "Run") -> Iterator[RunFolder]:
    if run.folder is None:
        raise ConfigError("this run has no folder to save in: train it with out=…, or leave out save=True")
    with run.folder.adding():
        yield run.folder


def _context(run: "Run", prompts: Prompts | str | None, options: Mapping[str, Any]) -> WorkerContext:
    """Where a run is certified at prompts."""
    return WorkerContext(run.sampler(**options), evidence.where(run, prompts)[0])


def _drawn_by_base(collection: Collection) -> bool:
    """Whether its draws are what the base model samples of one target."""
    return collection.are_base_draws and collection.draws.conditions is None


TWIST, BASE = "twist, drawn by weight", "base model p₀"

# Draws of the proposal at each prompt, of which a few are kept by weight.
NUM_DRAWS = 64


def samples_at_prompts(
    run: "Run", prompts: Prompts | Entry | Iterable[Entry] | None, num_samples: int, seed: int, **options: Any
) -> dict[str, list[TextSamples]]:
    """Independent draws of the proposal, `num_samples` of them chosen by weight, and as many of the base model.

    A prompt where no draw had φ > 0 has none of the target, and ends nothing.

    Args:
        run: whose twist.
        prompts: as for `Run.evaluate`.
        num_samples: at each prompt.
        seed: of the samples.
        **options: of `Run.sampler`.

    Returns:
        By what drew them, those of each prompt, in order. What was chosen by weight has equal weights, and may be there
        twice; draws of the base model are weighted by φ within the prompt.
    """
    cases, asked = evidence.where(run, prompts)
    rng, num_draws = Rng(seed, ("samples_at_prompts",)), max(NUM_DRAWS, num_samples)
    check_sizes(TOKEN_BYTES * run.target.num_tokens, num_samples=num_samples)
    made: dict[str, list[TextSamples]] = {TWIST: [], BASE: []}
    drawn = run.sampler(**options).draw(rng.fork("twist"), cases, num_draws)
    base = run.sampler(before=True).draw(rng.fork("base"), cases, num_samples)
    for number, (name, entry) in enumerate(zip(asked.names, asked.entries, strict=True)):
        at = torch.arange(num_draws) + number * num_draws
        log_w = drawn.log_ratios[at]
        if log_w.isfinite().any():
            points = rng.fork("choose", number).uniform((1, num_samples))
            chosen = drawn.select(at[invert(normalise(log_w).unsqueeze(0), points).squeeze(0).cpu()])
            weights = torch.full((num_samples,), 1 / num_samples, dtype=torch.float64)
            texts = TextSamples.of(run.target, chosen, weights, float(log_mean_exp(log_w)), run.moves(chosen))
            made[TWIST].append(_at(texts, name, entry))
        own = base.select(torch.arange(num_samples) + number * num_samples)
        texts = TextSamples.of(
            run.target, own, normalise(own.log_phi), float(log_mean_exp(own.log_phi)), run.moves(own)
        )
        made[BASE].append(_at(texts, name, entry))
    return made


def _at(drawn: TextSamples, name: str, entry: Entry) -> TextSamples:
    return replace(drawn, prompt=shown(entry), prompt_name=name)
