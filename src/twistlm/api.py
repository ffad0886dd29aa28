"""What a user writes: a Target, a Run, its samples, its certificate."""

import dataclasses
import hashlib
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from twistlm import exact, smc
from twistlm.certificate import Certificate, certify
from twistlm.errors import ConfigError, ExactSamplesError, PromptError
from twistlm.exact import Collection
from twistlm.losses import ROLES
from twistlm.potentials import Function, from_spec, spec
from twistlm.potentials.base import evaluate
from twistlm.registry import lookup
from twistlm.rng import Rng
from twistlm.runs import RunFolder
from twistlm.sources import Setting
from twistlm.training import Trainer, TrainingConfig, held_out_divergence, negative_lower_bound
from twistlm.twisted import TwistedLM
from twistlm.types import BaseLM, Potential, Samples, Twist

logger = logging.getLogger("twistlm")

FOLDS = ("training", "held_out", "evaluation")


class Target:
    """σ ∝ p₀ φ: what to sample from.

    Args:
        model: a registered name (`twistlm list`), a folder, a hub name, or a loaded `BaseLM`.
        potential: φ; or a function of a list of texts that returns log φ of each.
        prompt: the text to continue.
        num_tokens: T new tokens.
        eos: "absorb" ends a text at its first EOS; "ignore" always draws T tokens, as in the paper's experiments.
        dtype: precision of the weights; "auto" as stored.
        device: a torch device.

    Raises:
        PromptError: the prompt is empty.
        ConfigError: num_tokens < 1.
    """

    def __init__(
        self,
        model: str | BaseLM,
        potential: Potential | Callable[[list[str]], Any],
        prompt: str,
        num_tokens: int,
        *,
        eos: str = "absorb",
        dtype: str = "auto",
        device: str = "cpu",
    ) -> None:
        if not prompt:
            raise PromptError("prompt is empty; give the text that the model should continue")
        if num_tokens < 1:
            raise ConfigError(f"num_tokens must be at least 1, not {num_tokens}")
        self.model_name = model if isinstance(model, str) else getattr(model, "name", type(model).__name__)
        self._lm = None if isinstance(model, str) else model
        self.potential: Potential = potential if isinstance(potential, Potential) else Function(potential)
        self.prompt, self.num_tokens, self.eos, self.dtype, self.device = prompt, num_tokens, eos, dtype, device

    @cached_property
    def lm(self) -> BaseLM:
        """The base model, loaded at first use."""
        if self._lm is not None:
            return self._lm
        from twistlm.models.huggingface import load

        return load(self.model_name, dtype=self.dtype, device=self.device)

    @cached_property
    def bound_potential(self) -> Potential:
        """φ, reading texts with the model's tokenizer."""
        return self.potential.bind(self.lm)

    @cached_property
    def prompt_tokens(self) -> Tensor:
        """The prompt's tokens [P]."""
        return self.lm.encode(self.prompt)

    def twisted(self, twist: Twist | None = None) -> TwistedLM:
        """The base model with a twist, checked for length."""
        model = TwistedLM(self.lm, twist, self.eos)
        model.check([self.prompt_tokens], self.num_tokens)
        return model

    def build_twist(self, name: str, options: Mapping[str, Any], *, blank: bool = False) -> Twist:
        """A new twist; `blank` leaves out what saved weights will bring anyway."""
        entry = lookup("twist", name)
        arguments = dict(options)
        if entry.options.get("needs_token_log_phi") and not blank:
            arguments["token_log_phi"] = self.token_log_phi
        try:
            return entry.value(self.lm, **arguments)  # type: ignore[no-any-return]
        except TypeError as error:
            raise ConfigError(f"twist {name!r}: {error}") from error

    @cached_property
    def token_log_phi(self) -> Tensor:
        """log φ(prompt + v) of every single token v [V]."""
        tokens = torch.arange(self.lm.vocab_size).unsqueeze(-1)
        return evaluate(self.bound_potential, [self.prompt_tokens] * len(tokens), tokens)

    def spec(self) -> dict[str, Any]:
        """JSON values that `from_spec` reads back.

        Raises:
            ConfigError: the potential has no JSON form (a lambda, a loaded model).
        """
        return {
            "model": self.model_name, "potential": spec(self.potential), "prompt": self.prompt,
            "num_tokens": self.num_tokens, "eos": self.eos, "dtype": self.dtype, "device": self.device,
        }  # fmt: skip

    @staticmethod
    def from_spec(fields: Mapping[str, Any]) -> "Target":
        """The target that `spec` described."""
        arguments = dict(fields)
        return Target(arguments.pop("model"), from_spec(arguments.pop("potential")), **arguments)

    @cached_property
    def fingerprint(self) -> str:
        """Identifies the target in files of exact samples: what changes σ changes it."""
        try:
            described = self.spec()
        except ConfigError:
            described = {"model": self.model_name, "potential": repr(self.potential), "prompt": self.prompt,
                         "num_tokens": self.num_tokens, "eos": self.eos}  # fmt: skip
        described.pop("device", None)
        return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()[:16]

    def collect(
        self, rng: Rng, *, num_samples: int | None, max_draws: int, path: Path | None = None, **settings: Any
    ) -> Collection:
        """Exact samples by rejection; continues the file at `path` if there is one. See `twistlm.exact.collect`."""
        so_far = exact.load(path, self.fingerprint) if path is not None and path.exists() else None
        return exact.collect(
            rng, self.twisted(), self.bound_potential, prompt=self.prompt_tokens, num_steps=self.num_tokens,
            target=self.fingerprint, num_samples=num_samples, max_draws=max_draws, so_far=so_far, save_to=path, **settings,
        )  # fmt: skip

    def texts(self, samples: Samples) -> list[str]:
        """The continuations, without the prompt."""
        return self.lm.decode(list(samples.tokens))


@dataclass(frozen=True)
class RunConfig:
    """Everything that makes a run what it is, beside its target.

    Attributes:
        twist: a registered twist.
        twist_options: its arguments.
        training: loss, sources, optimiser.
        num_draws: base draws to collect first; they are training data, and those accepted are exact samples. 0 for none.
        folds: shares of the draws for training, for the held-out criterion and for evaluation.
        max_held_out: at most so many exact samples in the held-out criterion.
        num_siblings: further draws of every token, kept for training.
        seed: of everything random.
    """

    twist: str = "low_rank"
    twist_options: Mapping[str, Any] = field(default_factory=dict)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    num_draws: int = 2048
    folds: tuple[float, float, float] = (0.5, 0.15, 0.35)
    max_held_out: int = 128
    num_siblings: int = 16
    seed: int = 0

    def as_dict(self) -> dict[str, Any]:
        """JSON values."""
        return dataclasses.asdict(self)

    @staticmethod
    def from_dict(fields: Mapping[str, Any]) -> "RunConfig":
        """The inverse of `as_dict`."""
        values = dict(fields)
        training: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in values.pop("training").items()
        }
        values["folds"] = tuple(values["folds"])
        return RunConfig(training=TrainingConfig(**training), **values)


@dataclass(frozen=True)
class TextSamples:
    """Samples as a user wants them.

    Attributes:
        texts: continuations, without the prompt.
        weights: normalised weights [n].
        log_phi: log φ [n].
        log_p: log p₀ of each continuation [n].
        log_Z_hat: the run's estimate of log Z (mean over runs if there were several).
    """

    texts: list[str]
    weights: Tensor
    log_phi: Tensor
    log_p: Tensor
    log_Z_hat: float  # noqa: N815

    def rows(self) -> list[dict[str, Any]]:
        """One JSON object per sample."""
        columns = zip(self.texts, self.weights.tolist(), self.log_phi.tolist(), self.log_p.tolist(), strict=True)
        return [{"text": t, "weight": w, "log_phi": f, "log_p": p} for t, w, f, p in columns]


class Run:
    """A target with a trained twist."""

    def __init__(
        self, target: Target, config: RunConfig, twist: Twist, folder: RunFolder | None, collection: Collection | None,
        history: Sequence[Mapping[str, Any]] = (),
    ) -> None:  # fmt: skip
        self.target, self.config, self.folder = target, config, folder
        self.history: list[dict[str, Any]] = [dict(row) for row in history]
        self.model = target.twisted(twist)
        self.base = target.twisted()
        self.collection = collection

    @staticmethod
    def load(path: str | Path, target: Target | None = None) -> "Run":
        """Open a finished run.

        Args:
            path: its folder. Potentials that are functions are imported and run: open only folders that you trust.
            target: needed only if the potential could not be written to the folder (a lambda, a loaded model).

        Raises:
            RunError: no run is there, it has not finished, it is corrupt or of another version.
        """
        folder = RunFolder.open(Path(path))
        config = RunConfig.from_dict(folder.config["run"])
        if target is None:
            if folder.config["target"] is None:
                raise ConfigError(f"the potential of {path} has no JSON form; pass target=… to Run.load")
            target = Target.from_spec(folder.config["target"])
        tensors, _ = folder.load_twist()
        twist = target.build_twist(config.twist, config.twist_options, blank=True)
        twist.module.load_state_dict(tensors)
        collection = exact.load(folder.draws, target.fingerprint) if folder.draws.exists() else None
        return Run(target, config, twist, folder, collection, folder.metrics())

    def fold(self, name: str) -> Collection | None:
        """The part of the base draws set aside as "training", "held_out" or "evaluation"; None if there are none."""
        return None if self.collection is None else self.collection.split(self.config.folds)[FOLDS.index(name)]

    def sample(self, num_samples: int, *, num_particles: int | None = None, seed: int = 0) -> TextSamples:
        """Samples of the target by SMC.

        Args:
            num_samples: how many.
            num_particles: None runs SMC once with `num_samples` particles, which come with weights and share ancestors.
                A number runs SMC independently for every sample and draws one of that many particles by weight.
            seed: of the samples.
        """
        rng = Rng(seed, ("sample",))
        count = num_samples if num_particles is None else num_particles
        runs = 1 if num_particles is None else num_samples
        group = runs if num_particles is None else max(1, 512 // num_particles)
        samples, weights, estimates = [], [], []
        for at in range(0, runs, group):
            prompts = [self.target.prompt_tokens] * min(group, runs - at)
            result = smc.run(
                rng.fork(at), self.model, self.target.bound_potential, prompts=prompts, num_particles=count,
                num_steps=self.target.num_tokens,
            )  # fmt: skip
            found = smc.to_samples(result, prompts, self.model)
            if num_particles is not None:
                index = smc.choose(rng.fork(at, "choose"), result) + count * torch.arange(len(prompts))
                found = found.select(index)
            samples.append(found)
            weights.append(result.weights[0] if num_particles is None else torch.full((len(found),), 1 / num_samples))
            estimates.append(result.log_Z_hat)
        joined = Samples.concatenate(samples)
        return TextSamples(
            self.target.texts(joined), torch.cat(weights).double(), joined.log_phi, joined.log_p.sum(-1),
            float(torch.cat(estimates).mean()),
        )  # fmt: skip

    def evaluate(
        self,
        num_particles: int | Sequence[int] = (4, 16, 64),
        *,
        num_samples: int = 512,
        budget: int = 512,
        seed: int = 1,
        before: bool = False,
    ) -> Certificate:
        """Certify the run's proposal and SMC: sandwiches of log Z, KL both ways.

        Args:
            num_particles: N of the sandwiches.
            num_samples: proposal samples for KL(q‖σ).
            budget: sequences spent on each bound at each N.
            seed: of the evaluation.
            before: certify the base model instead, with the same exact samples.
        """
        certificate, _ = certify(
            Rng(seed, ("evaluate", "before" if before else "after")), self.base if before else self.model,
            self.target.bound_potential, prompt=self.target.prompt_tokens, num_steps=self.target.num_tokens,
            collection=self.fold("evaluation"),
            num_particles=[num_particles] if isinstance(num_particles, int) else num_particles,
            num_samples=num_samples, budget=budget,
        )  # fmt: skip
        return certificate


def train(
    target: Target,
    *,
    method: str | None = None,
    twist: str | None = None,
    seed: int | None = None,
    num_particles: int | None = None,
    num_updates: int | None = None,
    out: str | Path | None = None,
    exists: str = "refuse",
    config: RunConfig | None = None,
    **training: Any,
) -> Run:
    """Learn a twist for `target`.

    First base draws are collected (if φ has an upper bound), which serve as training data, as exact samples for the
    held-out criterion and for evaluation; then the twist is trained, keeping the best by the held-out criterion.

    Args:
        target: what to sample from.
        method: the loss: "ctl", "dpg", … (`twistlm list`).
        twist: the kind of twist: "low_rank", "mlp", "tied", …
        seed: of everything random; the same seed gives the same run bit for bit on the same machine.
        num_particles: sequences per update.
        num_updates: at most so many updates.
        out: run folder; None keeps everything in memory.
        exists: what to do if `out` exists: "refuse", "resume" or "overwrite".
        config: all settings at once; the arguments above override it.
        **training: further fields of `TrainingConfig`.

    Raises:
        ConfigError: a setting is unknown or out of range.
        RunError: `out` exists and must not, or cannot be resumed.
        TrainingError: the loss became infinite.
    """
    config = _merged(config, target, method, twist, seed, num_particles, num_updates, training)
    folder = None
    if out is not None:
        try:
            described: dict[str, Any] | None = target.spec()
        except ConfigError as error:
            logger.warning("%s; Run.load will need target=…", error)
            described = None
        folder = RunFolder.create(Path(out), {"target": described, "run": config.as_dict()}, exists)
    rng = Rng(config.seed)
    collection = _collect(target, config, rng, folder)
    built = target.build_twist(config.twist, config.twist_options)
    run = Run(target, config, built, folder, collection)
    setting = Setting(
        run.model, target.bound_potential, target.prompt_tokens, target.num_tokens, collection=run.fold("training"),
        num_siblings=config.num_siblings,
    )  # fmt: skip
    held_out = run.fold("held_out")
    if held_out is not None and len(held_out.exact) >= 2:
        judged = held_out.exact.take(min(config.max_held_out, len(held_out.exact)))
        criterion = held_out_divergence(judged, setting)
    else:
        logger.warning("no exact samples to judge by: the lower bound on log Z decides which twist is best")
        criterion = negative_lower_bound(setting)
    run.history = Trainer(rng.fork("train"), setting, config.training, criterion, folder).train()
    return run


def _merged(
    config: RunConfig | None, target: Target, method: str | None, twist: str | None, seed: int | None,
    num_particles: int | None, num_updates: int | None, training: dict[str, Any],
) -> RunConfig:  # fmt: skip
    """The config with the arguments of `train` laid over it."""
    bounded = target.potential.log_upper_bound is not None
    if config is None:
        config = RunConfig(num_draws=RunConfig.num_draws if bounded else 0)
        source = "draws" if bounded else "proposal"
        training = {f"{role}_source": source for role in ROLES} | training
    given = {"loss": method, "num_particles": num_particles, "num_updates": num_updates}
    training = {k: v for k, v in given.items() if v is not None} | training
    unknown = training.keys() - {f.name for f in dataclasses.fields(TrainingConfig)}
    if unknown:
        known = ", ".join(f.name for f in dataclasses.fields(TrainingConfig))
        raise ConfigError(f"unknown setting {', '.join(sorted(unknown))}; training takes {known}")
    changes: dict[str, Any] = {"training": dataclasses.replace(config.training, **training)}
    if twist is not None:
        changes |= {"twist": twist, "twist_options": config.twist_options if twist == config.twist else {}}
    if seed is not None:
        changes["seed"] = seed
    lookup("twist", changes.get("twist", config.twist))
    return dataclasses.replace(config, **changes)


def _collect(target: Target, config: RunConfig, rng: Rng, folder: RunFolder | None) -> Collection | None:
    if config.num_draws == 0:
        return None
    try:
        return target.collect(
            rng, num_samples=None, max_draws=config.num_draws, chunk=min(512, config.num_draws),
            path=folder.draws if folder is not None else None, keep_features=True, num_siblings=config.num_siblings,
        )  # fmt: skip
    except ExactSamplesError as error:
        if "none of" not in str(error):
            raise
        logger.warning("%s", error)
        return None
