"""The target: a base model, a prompt and a potential."""

import logging
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, Unpack

import torch
from torch import Tensor

from twistlm.core.advice import coded
from twistlm.core.errors import ConfigError, PromptError
from twistlm.core.identity import Files, UnidentifiableError, digest
from twistlm.core.registry import available, lookup
from twistlm.core.rng import Rng
from twistlm.core.sizes import TOKEN_BYTES, check_sizes
from twistlm.core.storage import as_type
from twistlm.core.work import HERE, Engine
from twistlm.models.base import BaseLM
from twistlm.models.chats import encode_chat
from twistlm.models.loaded import as_base_lm
from twistlm.models.local import contents, is_here
from twistlm.models.token_texts import check_same_tokens
from twistlm.potentials import Function
from twistlm.potentials.conditions import condition, conditioned, num_following
from twistlm.potentials.prefixes import of_tokens
from twistlm.potentials.protocol import Potential
from twistlm.potentials.specs import Trust, from_spec, spec
from twistlm.sampling.cases import Case
from twistlm.sampling.constraining import constraint_twist, possible
from twistlm.sampling.description import Loading, TargetFields, as_html, prompts_in, refuse_downloads, to_download
from twistlm.sampling.exact.budget import Budget
from twistlm.sampling.exact.collect import collect
from twistlm.sampling.exact.collection import UNIDENTIFIED, Collection
from twistlm.sampling.exact.provenance import believed
from twistlm.sampling.prompts import Entry, Prompts, content
from twistlm.sampling.proposals import base
from twistlm.sampling.sampler import Sampler, WorkerContext, check_room
from twistlm.sampling.samples import Samples
from twistlm.sampling.smc import NOTHING, Keep
from twistlm.sampling.twisted import TwistedLM
from twistlm.twists.base import Twist
from twistlm.twists.sigmoid import probability

logger = logging.getLogger("twistlm")

LOADED = ("lm", "bound_potential", "cases", "token_log_phi", "constraint")


class Target:
    """σ ∝ p₀ φ: what to sample from, at one prompt or at each of a set.

    Args:
        model: a registered name (`twistlm list`), a folder, a hub name, a loaded `BaseLM`, a causal LM of transformers
            that was loaded from a folder, or a pair of one and its tokenizer.
        potential: φ; or a function of a list of texts that returns log φ of each, in nats
            (of φ itself: `Function(..., log=False)`).
        prompt: the text to continue, or the chat to answer.
        num_tokens: T new tokens.
        prompts: a set of them instead (`Prompts`), or a list of texts or chats.
        eos: "absorb" ends a text at its first EOS; "ignore" always draws T tokens, as in the paper's experiments.
        identity: what model and potential are called in files of draws, instead of by their content: for those that
            cannot be identified (a compiled function) or that twistlm takes for others though they are the same. Give
            another name whenever either changes.
        **loading: dtype, the precision of the weights ("auto" as stored), and device, a torch device ("cpu").

    Raises:
        PromptError: there is no prompt, or one is empty, is not text, or is there twice.
        ConfigError: num_tokens < 1, or the identity is empty.
        ModelError: a loaded model is none of these, or its tokenizer is not on this machine.
    """

    def __init__(
        self,
        model: str | Path | BaseLM | Any,
        potential: Potential | Callable[[list[str]], Any],
        prompt: Entry | None = None,
        num_tokens: int | None = None,
        *,
        prompts: Prompts | Entry | Iterable[Entry] | None = None,
        eos: str = "absorb",
        identity: str | None = None,
        **loading: Unpack[Loading],
    ) -> None:
        given = prompt if prompts is None else prompts
        if given is None or (prompt is not None and prompts is not None):
            raise PromptError("give either prompt, the text that the model should continue, or prompts, a set of them")
        if num_tokens is None:
            raise ConfigError("num_tokens is missing; say how many new tokens a text has")
        self.prompts = Prompts.of(given)
        check_sizes(TOKEN_BYTES, num_tokens=num_tokens)
        if identity is not None and not identity:
            raise ConfigError("identity is empty; give a name, or leave it out")
        self.identity = identity
        self._lm = None if isinstance(model, str | Path) else as_base_lm(model)
        self.model_name = str(model) if self._lm is None else getattr(self._lm, "name", type(self._lm).__name__)
        self.potential: Potential = potential if isinstance(potential, Potential) else Function(potential)
        if unknown := sorted(loading.keys() - Loading.__annotations__.keys()):
            raise ConfigError(f"a target takes no {', '.join(unknown)}; see twistlm.Target")
        self.num_tokens, self.eos = int(num_tokens), eos
        self.dtype, self.device = loading.get("dtype", "auto"), loading.get("device", "cpu")

    def __repr__(self) -> str:
        return f"Target({self.model_name!r}, {self.potential!r}, {self.prompts}, num_tokens={self.num_tokens})"

    _repr_html_ = as_html

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
    def constraint(self) -> Twist | None:
        """The exact twist of the hard constraints in φ; None without any."""
        return constraint_twist(self.lm, self.bound_potential, self.cases, self.num_tokens, self.eos)

    @property
    def prompt_tokens(self) -> Tensor:
        """The (first) prompt's tokens [P]."""
        return self.cases[0].prompt

    @cached_property
    def cases(self) -> tuple[Case, ...]:
        """Where it is sampled: its prompts, in order. Targets that differ by a condition take it from each exact draw.

        Raises:
            PromptError: two prompts have the same tokens.
            ModelError: the model reads no chats.
        """
        made = tuple(
            Case(self.encode(entry), weight=share)
            for entry, share in zip(self.prompts.entries, self.prompts.shares, strict=True)
        )
        first: dict[tuple[int, ...], str] = {}
        for case, name in zip(made, self.prompts.names, strict=True):
            other = first.setdefault(tuple(case.prompt.tolist()), name)
            if other != name:
                raise PromptError(f"prompts {other!r} and {name!r} have the same tokens; take one of them out")
        return made

    def encode(self, entry: Entry) -> Tensor:
        """Token ids [P] of a prompt, a text or a chat, as the model reads it."""
        return self.lm.encode(entry) if isinstance(entry, str) else encode_chat(self.lm, entry)

    def case(self, given: str | Tensor | None = None, prompt: Entry | None = None) -> Case:
        """The case of what a user gives.

        Args:
            given: a condition as text or as tokens [c]; None for a target without conditions.
            prompt: the name of one of the target's prompts, or a new one; None for a target that has one.

        Raises:
            ConfigError: the condition is missing, not wanted, or of another length; the prompt is missing.
            PromptError: the prompt is empty, or too long.
        """
        case = self.cases[0] if prompt is None else self._case_of(prompt)
        if prompt is None and len(self.cases) > 1:
            raise ConfigError(
                f"prompt is missing: this target has {len(self.cases)} of them; give the name of one (such as "
                f"{self.prompts.names[0]!r}), or a text of your own"
            )
        return replace(case, given=condition(self.bound_potential, given))

    def _case_of(self, prompt: Entry) -> Case:
        known = self.prompts.index(prompt) if isinstance(prompt, str) else None
        return self.cases[known] if known is not None else self.at(self.prompts.alike(prompt)).cases[0]

    def at(self, prompts: Prompts | Entry | Iterable[Entry]) -> "Target":
        """The same model and potential at other prompts; the model is loaded once for both.

        Raises:
            PromptError: a prompt is wrong, or too long for the model.
        """
        other = self.changed(prompts=prompts)
        other.__dict__.update(lm=self.lm, bound_potential=self.bound_potential, constraint=self.constraint)
        other.twisted()
        return other

    def changed(self, **changes: Any) -> "Target":
        """The same with other arguments (of `Target`) in place of some; its identity goes with model and potential."""
        same = () if {"model", "potential"} & changes.keys() else ("identity",)
        names = ("potential", "prompts", "num_tokens", "eos", "dtype", "device", *same)
        own = {name: getattr(self, name) for name in names}
        return Target(**{"model": self.model_name if self._lm is None else self._lm, **own, **changes})

    def sampler(self, twist: Twist | None = None, *, proposal_twist: Twist | None = None, **how: Any) -> Sampler:
        """The base model with a twist as a sampler of this target; `how`: further fields of `Sampler`."""
        return Sampler(self.twisted(twist, proposal_twist), self.bound_potential, self.num_tokens, **how)

    def sampler_of(self, lm: BaseLM) -> Sampler:
        """Another language model as a sampler of this target: one that was tuned towards it, and is to be certified.

        It samples by itself, so its q is its own likelihood; p₀ and φ of what it writes come from the target.

        Raises:
            ModelError: it does not read and write the same tokens.
        """
        check_same_tokens(lm, self.lm, self.model_name)
        model, reference = TwistedLM(lm, None, self.eos), self.context().sampler.model.base
        return Sampler(model, self.bound_potential, self.num_tokens, proposal=base, reference=reference)

    def check_model(self, other: "Target", what: str) -> None:
        """Refuse what was made with another base model.

        Raises:
            ConfigError: the message names `what`.
        """
        if other.model_name != self.model_name:
            raise ConfigError(
                f"{what} is on {other.model_name!r} and this target on {self.model_name!r}; choose one on the same "
                "base model"
            )

    def twisted(self, twist: Twist | None = None, proposal_twist: Twist | None = None) -> TwistedLM:
        """The base model with a twist, checked for length; `proposal_twist` if another one is to propose."""
        model = TwistedLM(self.lm, twist, self.eos, proposal_twist, self.constraint)
        check_room(model, self.cases, self.prompts.names, self.num_tokens)
        return model

    def check(self) -> None:
        """Try everything on one sequence, so that what cannot work is refused before anything is begun.

        Raises:
            ModelError: model or classifier cannot be loaded.
            ConfigError: the classifier has no such label, or another setting is wrong.
            PotentialError: φ cannot be had.
            PromptError: prompt and new tokens do not fit into the model's context.
        """
        self.twisted()
        bound, last = self.bound_potential, self.prompt_tokens[-1:]
        tokens, following = last.expand(1, self.num_tokens), last.expand(1, num_following(bound))
        uniforms, log_p = torch.full((1,), 0.5, dtype=torch.float64), torch.zeros(following.shape, dtype=torch.float64)
        conditioned(bound, lambda: uniforms, [self.prompt_tokens], tokens, following, log_p)

    def build_twist(
        self, rng: Rng, name: str, options: Mapping[str, Any], *, blank: bool = False, is_probability: bool = False
    ) -> Twist:
        """A new twist, initialised from `rng`.

        `blank` leaves out what saved weights will bring anyway; `is_probability` makes its ψ a sigmoid.

        Raises:
            ConfigError: the twist does not take these options, or ψ is to be a probability and φ may be more than 1.
        """
        bound = self.potential.log_upper_bound
        # A threshold's 1 + 1e-16 is a probability for all that anyone can tell.
        if is_probability and (bound is None or bound > 1e-6):
            raise ConfigError("this loss learns ψ as a probability and needs φ ≤ 1: set log_upper_bound, or use 'ctl'")
        entry = lookup("twist", name)
        arguments = dict(options)
        if entry.options.get("needs_token_log_phi") and not blank:
            arguments["token_log_phi"] = self.token_log_phi
        try:
            with rng.initialising():
                built: Twist = entry.value(self.lm, **arguments)
        except TypeError as error:
            raise ConfigError(f"twist {name!r}: {error}") from error
        return probability(built) if is_probability else built

    @cached_property
    def token_log_phi(self) -> Tensor:
        """log φ(prompt + v) of every single token v [V]."""
        return of_tokens(self.bound_potential, self.prompt_tokens, self.lm.vocab_size)

    def spec(self) -> dict[str, Any]:
        """JSON values that `from_spec` reads back.

        Raises:
            ConfigError: the potential has no JSON form (a lambda, a loaded model).
        """
        named = {} if self.identity is None else {"identity": self.identity}
        return {
            "model": self.model_name,
            "potential": spec(self.potential),
            **self.prompts.spec(),
            "num_tokens": self.num_tokens,
            "eos": self.eos,
            "dtype": self.dtype,
            "device": self.device,
            **named,
        }

    @cached_property
    def downloads(self) -> list[str]:
        """Names of models that would come from the hub; a potential without a JSON form does not say what it loads."""
        return to_download([] if self._lm is not None else [self.model_name], self.potential)

    @staticmethod
    def from_spec(fields: Mapping[str, Any], trust_functions: Trust = ()) -> "Target":
        """The target that `spec` described; `trust_functions` as for potentials.

        Raises:
            RunError: these are not the fields of a target.
            ConfigError: the potential does not fit, or names a function that is not trusted.
            ModelError: it names a model of the hub that is not on this machine: a description downloads nothing.
        """
        described = as_type(TargetFields, dict(fields), "the description of the target")
        refuse_downloads(described)
        return Target(
            described.model,
            from_spec(described.potential, trust_functions),
            num_tokens=described.num_tokens,
            prompts=prompts_in(described),
            eos=described.eos,
            dtype=described.dtype,
            device=described.device,
            identity=described.identity,
        )

    @cached_property
    def fingerprint(self) -> str:
        """Identifies the target in files of exact samples: what changes σ changes it, the names of folders do not.

        It covers the content of weights, tokenizers and functions (see `twistlm.core.identity`), or `identity` instead.
        """
        about: dict[str, Any] = {"num_tokens": self.num_tokens, "eos": self.eos}
        # Names and weights do not change what is sampled at a prompt.
        about |= {name: value for name, value in self.prompts.spec().items() if name == "prompt"} or {
            "prompts": [content(entry) for entry in self.prompts.entries]
        }
        if self.identity is not None:
            return digest({**about, "identity": self.identity})[:16]
        try:
            model = self._lm if self._lm is not None else [self._contents(), self.dtype]
            return digest({**about, "model": model, "potential": self.potential})[:16]
        except UnidentifiableError as error:
            remedy = "call it by name, Target(…, identity='my-target-v1')"
            said = f"this target cannot be identified (%s): no file of its draws will be accepted again; {remedy}"
            logger.warning(coded("TW105", said), error)
            # Another one for every target of every process.
            return f"{UNIDENTIFIED}-{os.getpid()}-{id(self)}"

    @property
    def known_fingerprint(self) -> str | None:
        """What folders tell it from others by; None of one that cannot be identified."""
        return None if self.fingerprint.startswith(UNIDENTIFIED) else self.fingerprint

    def _contents(self) -> list[Files]:
        if self.model_name not in available("model") and not is_here(self.model_name):
            _ = self.lm  # which downloads it
        return contents("model", self.model_name)

    def collect(
        self,
        rng: Rng,
        *,
        max_draws: int,
        num_samples: int | None = None,
        chunk: int = 512,
        path: Path | None = None,
        keep: Keep = NOTHING,
        engine: Engine | None = None,
    ) -> Collection:
        """Exact samples by rejection; continues the file at `path` if there is one. See `sampling/exact/collect.py`.

        They are drawn by `engine` (`twistlm.engine`), by default in this process.
        """
        so_far, here = self.draws(path) if path is not None and path.exists() else None, self.context()
        with (engine or HERE).start(self.context) as workers:
            how: dict[str, Any] = {"so_far": so_far, "save_to": path, "keep": keep, "engine": workers}
            return collect(rng, here, Budget(max_draws, num_samples, chunk), target=self.fingerprint, **how)

    def context(self) -> WorkerContext:
        """Sampler that draws are collected by: p₀ and what is possible. Each worker makes one for itself."""
        constraint = possible(self.lm, self.bound_potential, self.cases, self.num_tokens, self.eos)
        model = TwistedLM(self.lm, None, self.eos, constraint=constraint)
        check_room(model, self.cases, self.prompts.names, self.num_tokens)
        return WorkerContext(Sampler(model, self.bound_potential, self.num_tokens), self.cases)

    def __getstate__(self) -> dict[str, Any]:
        """What is sent to other processes: there all that has been loaded is loaded anew."""
        return {name: value for name, value in vars(self).items() if name not in LOADED}

    def draws(self, given: Path | Collection) -> Collection:
        """What `collect` made, or its file, believed after its content and some of its draws have been checked.

        Raises:
            ExactSamplesError: it is of another target or version, or was changed.
            RunError: it is missing, corrupt or damaged.
        """
        return believed(given, self.fingerprint, self.context().sampler, self.cases)

    def texts(self, samples: Samples) -> list[str]:
        """The continuations, without the prompt."""
        return self.lm.decode(list(samples.tokens))
