"""A run: a target with a trained twist, its samples, its certificate."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from twistlm.certificates.certificate import Certificate
from twistlm.certificates.log_Z import Witness, of_draws
from twistlm.core.advice import coded
from twistlm.core.errors import ConfigError, TwistError
from twistlm.core.html import table
from twistlm.core.logmath import log_mean_exp, normalise
from twistlm.core.registry import lookup
from twistlm.core.remote import opened, url_of
from twistlm.core.rng import Rng
from twistlm.core.sizes import TOKEN_BYTES, check_sizes
from twistlm.core.storage import check_tensors
from twistlm.potentials.specs import Trust
from twistlm.runs import evidence, published
from twistlm.runs.certification import Certification, Known, kept
from twistlm.runs.config import FOLDS, RunConfig
from twistlm.runs.folder import RunFolder
from twistlm.runs.texts import TextSamples
from twistlm.sampling import smc
from twistlm.sampling.cases import Cases
from twistlm.sampling.diagnostics import Diagnostics
from twistlm.sampling.exact.collection import Collection
from twistlm.sampling.exact.origins import Origins
from twistlm.sampling.prompts import Entry, Prompts, shown
from twistlm.sampling.proposals import get_proposal
from twistlm.sampling.sampler import Sampler
from twistlm.sampling.samples import Samples
from twistlm.sampling.target import Target
from twistlm.training.losses import objective
from twistlm.twists.base import Twist
from twistlm.twists.informed import Informed

logger = logging.getLogger("twistlm")

GONE = "a certificate knows less without; restore it, or collect the same again with `twistlm train … --resume`"


class Run:
    """A target with a trained twist."""

    def __init__(
        self,
        target: Target,
        config: RunConfig,
        twist: Twist,
        folder: RunFolder | None,
        collection: Collection | None,
        history: Sequence[Mapping[str, Any]] = (),
        informed: Informed | None = None,
    ) -> None:
        self.target, self.config, self.folder = target, config, folder
        self.history: list[dict[str, Any]] = [dict(row) for row in history]
        self.model = target.twisted(twist)
        self.collection, self.informed = collection, informed
        # What tells another run's twist that this one's began as; None for log ψ = 0.
        self.begun: str | None = None
        # What its twist had seen, by what is recorded with it, besides the draws at hand.
        self.recorded = Origins()
        self._known: Known | None = None

    @staticmethod
    def load(
        path: str | Path,
        target: Target | None = None,
        *,
        model: str | Path | None = None,
        trust_functions: Trust = (),
        draws: bool = True,
    ) -> "Run":
        """Open a finished run. That runs no code of the folder's choice, unless it is trusted, and downloads nothing.

        Args:
            path: its folder, or a URL of it in a store, as s3://bucket/run.
            target: needed only if the potential could not be written to the folder (a lambda, a loaded model).
            model: where the base model's folder is now; one that is not where it was is also looked for in the run's
                folder and beside it.
            trust_functions: functions, as "module:name", that the folder's potential may import and run. True trusts
                whatever it names: opening it then runs code of its choice, from any module that is installed.
            draws: read and check its base draws, which evaluation needs; False is enough to sample.

        Raises:
            RunError: no run is there, it has not finished, it is corrupt or of another version.
            ConfigError: its potential is a function that is not trusted.
            ModelError: its model or classifier is not on this machine, or another one than it was made with.
        """
        with opened(path, write=False) as here:
            folder = RunFolder.open(here)
            folder.url = url_of(path)
            described = folder.load_description()
            config = described.run
            if target is None:
                target = described.target_at(here, model, trust_functions)
            found = folder.load_twist()
            twist = build_twist(target, config, Rng(config.seed, ("twist",)), blank=True)
            check_tensors(found.tensors, twist.module.state_dict(keep_vars=True), str(folder.twist))
            twist.module.load_state_dict(found.tensors)
            collection = target.draws(folder.draws) if draws and folder.draws.exists() else None
            if draws and collection is None and described.has_draws and RunFolder.has_begun(here):
                logger.warning(coded("TW107", "%s is gone: %s"), folder.draws, GONE)
            run = Run(target, config, twist, folder, collection, folder.metrics(), found.informed)
            run.begun, run.recorded = described.start, found.seen
            return run

    def __reduce__(self) -> tuple[Any, ...]:
        """What is sent to other processes: the twist, and by name what it stands on; draws and folder stay here."""
        twist = self.model.twist
        assert twist is not None
        return _elsewhere, (self.target, self.config, twist.module.state_dict(), self.informed)

    def fold(self, name: str) -> Collection | None:
        """The part of the base draws set aside as "training", "held_out" or "evaluation"; None if there are none."""
        return self._folds.get(name)

    @cached_property
    def _folds(self) -> dict[str, Collection]:
        """Split once: selecting copies the draws with their features, and every evaluation asks for all three.

        Of prompts that training does not see, all draws but those for evaluation are held out, and no others are.
        """
        if self.collection is None:
            return {}
        training, held_out, evaluation = self.collection.split(self.config.folds)
        if self.held_out_cases:
            first = self.collection.split((sum(self.config.folds[:2]),))[0]
            training, held_out = training.at(self.training_cases), first.at(self.held_out_cases)
        return dict(zip(FOLDS, (training, held_out, evaluation), strict=True))

    @cached_property
    def held_out(self) -> list[int]:
        """Which of the target's prompts training does not see; none of fewer than ten."""
        return sorted(self.config.held_out(len(self.target.cases)))

    @cached_property
    def training_cases(self) -> Cases:
        """The prompts that training sees."""
        return [case for r, case in enumerate(self.target.cases) if r not in self.held_out]

    @cached_property
    def held_out_cases(self) -> Cases:
        """Those of a set that it does not see."""
        return [self.target.cases[r] for r in self.held_out]

    def sampler(
        self,
        *,
        before: bool = False,
        proposal: str = "twist_induced",
        resampler: str = "systematic",
        ess_threshold: float | None = None,
        proposal_run: "Run | None" = None,
        informed: bool = True,
    ) -> Sampler:
        """The run's model with a way to sample from it: what `sample` and `evaluate` take as options.

        Args:
            before: the base model instead of the trained twist.
            proposal: a registered proposal; "tempered:0.5" for one with a parameter.
            resampler: a registered resampler.
            ess_threshold: resample when ESS ≤ this fraction of N; 0 never, 1 at every step. By default ½, and never
                with fewer than 16 particles where something weighs beside the twist (docs/informed.md).
            proposal_run: another run on the same base model, whose twist proposes while this one's weighs.
            informed: let SMC weigh by what was fitted beside the twist (`twistlm.twists.informed`); False for the twist
                as it is.

        Raises:
            ConfigError: a name is unknown, a number out of range, or the other run has another base model.
        """
        proposing = None
        if proposal_run is not None and not before:
            self.target.check_model(proposal_run.target, "proposal_run")
            proposing = proposal_run.model.twist
        return self.target.sampler(
            None if before else self.model.twist,
            proposal_twist=proposing,
            proposal=get_proposal(proposal),
            resampler=lookup("resampler", resampler).value,
            ess_threshold=ess_threshold,
            informed=self.informed if informed and not before else None,
        )

    def sample(
        self,
        num_samples: int,
        *,
        num_particles: int | None = None,
        prompt: Entry | None = None,
        condition: str | Tensor | None = None,
        seed: int = 0,
        **options: Any,
    ) -> TextSamples:
        """Samples of the target by SMC.

        Args:
            num_samples: how many.
            num_particles: None runs SMC once with `num_samples` particles, which come with weights and share ancestors.
                A number runs SMC independently for every sample and draws one of that many particles by weight.
            prompt: one of the target's prompts, by name, or a new one, which training need not have seen: a text, or a
                chat; None where the target has one alone.
            condition: what the target is given, if targets differ: text, or its tokens [c].
            seed: of the samples.
            **options: of `sampler`: proposal, resampler, ess_threshold, proposal_run.
        """
        check_sizes(TOKEN_BYTES * self.target.num_tokens, num_samples=num_samples)
        sampler, rng = self.sampler(**options), Rng(seed, ("sample",))
        case = self.target.case(condition, prompt)
        if num_particles is None:
            result = sampler.smc(rng.fork(0), [case], num_samples)
            samples, moves, results = sampler.samples_of(result, [case]), smc.increments(result), [result]
            weights = result.weights[0]
        else:
            chosen = sampler.choose(rng, [case] * num_samples, num_particles)
            samples, moves, results = chosen.samples, chosen.log_w_moves, list(chosen.results)
            weights = torch.full((num_samples,), 1 / num_samples)
        estimate = float(torch.cat([result.log_Z_hat for result in results]).mean())
        found = TextSamples.of(
            self.target, samples, weights.double(), estimate, moves, Diagnostics.of(results, self.target.lm)
        )
        return self._placed(found, prompt)

    def base_samples(
        self,
        num_samples: int,
        *,
        prompt: Entry | None = None,
        condition: str | Tensor | None = None,
        seed: int = 0,
    ) -> TextSamples:
        """Independent draws from the base model, weighted by φ: what samples of the target are compared with.

        Args:
            num_samples: how many.
            prompt: as for `sample`.
            condition: what the target is given, if targets differ.
            seed: of the samples.
        """
        check_sizes(TOKEN_BYTES * self.target.num_tokens, num_samples=num_samples)
        case = self.target.case(condition, prompt)
        drawn = self.sampler(before=True).base.draw(Rng(seed, ("base_samples",)), [case], num_samples)
        found = TextSamples.of(
            self.target, drawn, normalise(drawn.log_phi), float(log_mean_exp(drawn.log_phi)), self.moves(drawn)
        )
        return self._placed(found, prompt)

    def moves(self, drawn: Samples) -> Tensor:
        """How much each token moves log w by this run's twist [B, T], whatever drew them independently."""
        log_psi = self.model.carried(self.sampler().densities(drawn).log_psi, drawn.mask)
        log_targets = torch.cat([log_psi[:, :-1], drawn.log_phi.unsqueeze(-1)], 1)
        log_psi_moves = log_targets.diff(dim=1, prepend=log_targets.new_zeros(len(drawn), 1))
        return log_psi_moves + (drawn.log_p - drawn.log_q)

    def _placed(self, drawn: TextSamples, prompt: Entry | None) -> TextSamples:
        """The same with the prompt that was asked for, if one was."""
        if prompt is None:
            return drawn
        prompts = self.target.prompts
        known = prompts.index(prompt) if isinstance(prompt, str) else None
        if known is None:
            return replace(drawn, prompt=shown(prompts.alike(prompt)))
        return replace(drawn, prompt=shown(prompts.entries[known]), prompt_name=prompts.names[known])

    def evaluate(
        self,
        num_particles: int | Sequence[int] | None = None,
        *,
        num_samples: int | None = None,
        budget: int | None = None,
        seed: int = 1,
        before: bool = False,
        prompts: Prompts | Entry | Iterable[Entry] | None = None,
        save: bool | None = None,
        **options: Any,
    ) -> Certificate:
        """Certify the run's proposal and SMC: sandwiches of log Z, KL both ways. `certificate` remembers the last.

        It is kept in the run's folder as `twistlm evaluate` keeps it: what it takes the place of moves to evaluations/,
        a run of a sweep keeps the sweep's, and what was asked the same of the base model (`before`) stands beside it.

        Of a set of prompts it certifies each, and the mean over them; every number below is for each prompt then.

        Args:
            num_particles: N of the sandwiches; None takes the run's own settings here and below.
            num_samples: proposal samples for KL(q‖σ).
            budget: sequences spent on each bound at each N.
            seed: of the evaluation.
            before: certify the base model instead, with the same exact samples.
            prompts: at other prompts than the run's own, which training need not have seen; or "all" of its own. By
                default those that training has not seen, if there are such.
            save: whether it is kept. By default where the run was trained, and in no folder that was published.
            **options: methods of the sandwiches, "iwae" and "smc"; num_draws, base draws for each new prompt (256);
                engine, where prompts are certified (`twistlm.engine`), by default here; and those of `sampler`:
                proposal, resampler, ess_threshold, proposal_run.

        Raises:
            ConfigError: a setting is unknown or out of range; or the run has no folder, and is to be saved.
            ExactSamplesError: another run is to propose, and was trained on what this one kept for evaluation.
            RunError: somebody else is writing the folder, or it has another twist by now.
            StorageError: it was deleted or replaced, or the system refuses.
        """
        asked = Certification(
            num_particles,
            num_samples,
            budget,
            seed,
            # Read once: they may come from a generator.
            prompts if prompts is None or prompts == evidence.ALL else Prompts.of(prompts),
            options,
        )
        if save is None:
            save = self.folder is not None and RunFolder.has_begun(self.folder.path)
        if save:
            asked.check(self)
        found = asked.of(self, before=before)
        if asked.is_own and not before:
            self._known = asked.known(self, found)
        if save:
            asked.save(self, {"before" if before else "after": found})
        return found

    @property
    def certificate(self) -> Certificate | None:
        """The last one at prompts of its own: what `evaluate` has found, else what is in its folder of this twist.

        Raises:
            RunError: the one in the folder is damaged.
        """
        known = self.evaluated
        return None if known is None else known.certificate

    @property
    def evaluated(self) -> Known | None:
        """The same with what a folder says beside it: how it was made, and at which prompts of a set.

        Raises:
            RunError: as for `certificate`.
        """
        return kept(self.folder) if self._known is None and self.folder is not None else self._known

    @property
    def witnesses(self) -> tuple[Witness, ...]:
        """What base draws outside the evaluation fold say of log Z, so independent of its exact samples.

        Empty where there are none, or where targets differ. φ alone decides log Z, so training on them does no harm.
        """
        parts = [part for part in (self.fold("training"), self.fold("held_out")) if part is not None]
        if not parts or parts[0].draws.conditions is not None:
            return ()
        return (of_draws(torch.cat([part.log_weights for part in parts]), self.target.potential.log_upper_bound),)

    # --- How it shows itself ---

    @property
    def place(self) -> str:
        """Its folder, or the URL of it in a store; "in memory" where there is none."""
        return "in memory" if self.folder is None else self.folder.url or str(self.folder.path)

    def __repr__(self) -> str:
        return f"Run({self.place}: {self.config.training.loss} with twist {self.config.twist!r} on {self.target!r})"

    def _repr_html_(self) -> str:
        training = self.config.training
        try:
            known = None if self.certificate is None else self.certificate.summary()
        except TwistError as error:
            # A damaged one in the folder is no reason to show nothing.
            known = str(error)
        rows = [
            ("target", repr(self.target)),
            ("folder", self.place),
            ("method, twist, seed", f"{training.loss}, {self.config.twist}, {self.config.seed}"),
            ("updates", f"{training.num_updates} of {training.num_particles} sequences"),
            ("certificate", "none yet: run.evaluate()" if known is None else known),
        ]
        return table("Run", (), rows)

    def report(self, out: str | Path | None = None, *, overwrite: bool = False) -> Path:
        """Everything about the run in one HTML file, as `twistlm report` writes it; returns its path.

        It is made from what is in the run's folder: the certificate that `evaluate` has left there, and what else has
        been (`twistlm sample`). Its charts are beside it, in a folder of its name, as PNG and PDF.

        Args:
            out: a file that ends in .html; None for report.html in the run's folder.
            overwrite: replace what is at `out`.

        Raises:
            ConfigError: the run has no folder, or `out` is no name of a page.
            RunError: there is no certificate of this twist, `out` exists, or somebody else is writing the folder.
            StorageError: the system refuses.
        """
        if self.folder is None:
            raise ConfigError("a report is made from a run's folder, and this run has none: train it with out=…")
        # Reports stand above runs, and so are looked up as any other part is.
        write = lookup("report", "html").value
        with self.folder.adding() if out is None else nullcontext():
            page: Path = write([self.folder.path], None if out is None else Path(out), overwrite=overwrite).page
            return page

    def to_datatree(
        self,
        num_samples: int = 64,
        *,
        num_runs: int = 4,
        prompt: Entry | None = None,
        condition: str | Tensor | None = None,
        seed: int = 0,
        **options: Any,
    ) -> Any:
        """Samples of the target as an `xarray.DataTree` for ArviZ (`SMCResult.to_datatree`), with their texts.

        Args:
            num_samples: particles of each run of SMC: draws.
            num_runs: independent runs: chains.
            prompt: as for `sample`, as are the others.
            condition: what the target is given, if targets differ.
            seed: of the samples.
            **options: of `sampler`.

        Raises:
            ConfigError: ArviZ is not installed.
        """
        check_sizes(TOKEN_BYTES * self.target.num_tokens, num_samples=num_samples, num_runs=num_runs)
        cases, sampler = [self.target.case(condition, prompt)] * num_runs, self.sampler(**options)
        result = sampler.smc(Rng(seed, ("datatree",)), cases, num_samples)
        return result.to_datatree(self.target.texts(sampler.samples_of(result, cases)), seed=seed)

    # --- As a repository of the hub ---

    def save_pretrained(self, folder: str | Path, *, overwrite: bool = False) -> Path:
        """Write what using the run needs into a folder: twist, target, certificate and a card, no draws.

        Args:
            folder: new or empty.
            overwrite: replace the run that is there, once the new one is complete.

        Raises:
            RunError: a run is there; or something else, be it beside the run's files, which is not replaced.
            ConfigError: the potential has no JSON form (a lambda), so that nobody could open it.
        """
        return published.save(self, folder, overwrite=overwrite)

    def push_to_hub(self, repo_id: str, **options: Any) -> str:
        """The same as a repository of the hub; returns the commit's address.

        Args:
            repo_id: "name/of-it".
            **options: of `huggingface_hub.ModelHubMixin.push_to_hub`: private, token, commit_message, branch, ….
        """
        return published.push(self, repo_id, **options)

    @staticmethod
    def from_pretrained(
        name: str | Path,
        *,
        model: str | Path | None = None,
        target: Target | None = None,
        trust_functions: Trust = (),
        **options: Any,
    ) -> "Run":
        """A run from a folder, or from a repository of the hub, which is downloaded. It runs no code from there.

        Args:
            name: of either.
            model: as for `load`, as are the next two.
            target: see there.
            trust_functions: see there.
            **options: of `huggingface_hub.snapshot_download`: revision, token, cache_dir, local_files_only, ….

        Raises:
            RunError: it is no run, or damaged.
            ModelError: its base model is not on this machine.
            ConfigError: its potential is a function that is not trusted.
        """
        return Run.load(published.fetched(name, **options), target, model=model, trust_functions=trust_functions)


def _elsewhere(target: Target, config: RunConfig, state: Mapping[str, Tensor], informed: Informed | None) -> Run:
    """A run in another process than its own."""
    twist = build_twist(target, config, Rng(config.seed, ("twist",)), blank=True)
    twist.module.load_state_dict(state)
    return Run(target, config, twist, None, None, informed=informed)


def build_twist(target: Target, config: RunConfig, rng: Rng, *, blank: bool = False) -> Twist:
    """The twist that the settings ask for, at the start of its training.

    Args:
        target: what it is for.
        config: its kind and options, and the loss, which may want a probability.
        rng: of its parameters.
        blank: without initial values, where others take their place.

    Raises:
        ConfigError: there is no such twist, or its options are none of its own.
    """
    is_probability = objective(config.training.loss).probability
    return target.build_twist(rng, config.twist, config.twist_options, blank=blank, is_probability=is_probability)
