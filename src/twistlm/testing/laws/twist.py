"""What every twist keeps."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from twistlm.core.kernels import normaliser
from twistlm.core.rng import Rng
from twistlm.models.base import BaseLM
from twistlm.sampling.proposals import twist_induced
from twistlm.sampling.samples import Samples
from twistlm.sampling.twisted import TwistedLM
from twistlm.testing.laws.trial import Trial, close, decoded, first, stories
from twistlm.twists.base import HasValue, Twist

# Every parameter is moved by so much at random: a twist that has learned something.
MOVED = 0.05
# Sequences of each prompt, and their tokens.
COUNT, NUM_STEPS = 6, 5

Build = Callable[[BaseLM], Twist]


def check_twist(
    build: Build,
    lm: BaseLM | None = None,
    *,
    prompts: Sequence[Tensor] | None = None,
    conditions: Tensor | None = None,
    start: float = 0.0,
    tolerance: float = 1e-3,
) -> None:
    """Hold a twist against what sampling and training take for granted.

    Before training log ψ is one constant, so that q = p₀. Afterwards it is the same whether worked out token by token
    through caches, in one pass over whole sequences, or for each sequence alone; its sum over V is the one it says; its
    gradient reaches all that is trained and nothing else; what is saved is enough; an update of the parameters is
    noticed; and shrunk to nothing it leaves the base model.

    Args:
        build: makes a fresh twist for a base model, as one that is registered does.
        lm: the base model; the bundled small one by default.
        prompts: tokens of prompts, better of different lengths.
        conditions: one [c] for each prompt, for a twist with a reader: [prompts, c].
        start: log ψ before training, where it is not 0.
        tolerance: absolute, or relative where a number is large: float32 and the shape of a batch leave that much.

    Raises:
        AssertionError: a law is broken; the message says which, for what input, and how to mend it.
    """
    lm = stories() if lm is None else lm
    prompts = [lm.encode("Once upon a time"), lm.encode("The")] if prompts is None else list(prompts)
    trial = _TwistTrial(f"twist {getattr(build, '__name__', type(build).__name__)}", build, lm, tolerance)
    repeated = [prompt for prompt in prompts for _ in range(COUNT)]
    given = None if conditions is None else conditions.repeat_interleave(COUNT, 0)
    trial.starts_constant(repeated, given, start)
    model = trial.moved()
    samples, log_psi = decoded(model, repeated, NUM_STEPS, given)
    trial.shapes_and_entries(model, samples)
    trial.sum_over_v(model, samples)
    trial.cached_is_full(model, samples, log_psi)
    trial.alone_is_batch(model, samples)
    trial.gradient(model, samples)
    trial.saved_is_enough(model, samples)
    trial.updates_are_noticed(model, samples)
    trial.shrinks_to_the_base_model(model, samples)
    trial.value_leaves_the_proposal(model, samples)


class _TwistTrial(Trial):
    """A twist on trial; every method is a law or two."""

    def __init__(self, part: str, build: Build, lm: BaseLM, tolerance: float) -> None:
        super().__init__(part)
        self.build, self.lm, self.tolerance = build, lm, tolerance

    def fresh(self) -> TwistedLM:
        """The model with a twist that has learned nothing."""
        with Rng(0).initialising():
            twist = self.build(self.lm)
        return TwistedLM(self.lm, twist, "ignore")

    def moved(self) -> TwistedLM:
        """The same with every parameter moved."""
        model = self.fresh()
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in _twist(model).module.parameters():
                noise = torch.randn(parameter.shape, generator=generator).to(parameter)
                parameter.add_(MOVED * noise)
        return model

    def starts_constant(self, prompts: list[Tensor], conditions: Tensor | None, start: float) -> None:
        """Before training, and after `start_at`."""
        model, moved = self.fresh(), -3.0
        samples, _ = decoded(model, prompts, NUM_STEPS, conditions)
        features = model.twist_features(samples)
        head = _twist(model).head
        for expected, law, remedy in (
            (start, "before training log ψ is one constant", "Let the output layer be zero, or pass start=…"),
            (moved, "start_at makes log ψ one constant everywhere", "Let it raise the output layer's bias"),
        ):
            with torch.no_grad():
                log_psi = head(features).double()
            wrong = ~close(log_psi, torch.tensor(expected).to(log_psi), 1e-5)
            at = f"at [{first(wrong)}] it is {log_psi[wrong][:1].tolist()}, not {expected:g}"
            self.require(not bool(wrong.any()), law, at, remedy)
            head.start_at(moved)

    def shapes_and_entries(self, model: TwistedLM, samples: Samples) -> None:
        """log ψ of every token, and of chosen ones."""
        head = _twist(model).head
        with torch.no_grad():
            features = model.twist_features(samples)
            whole, chosen = head(features), head.gather(features, samples.tokens)
        expected = [*samples.tokens.shape, self.lm.vocab_size]
        self.require(
            list(whole.shape) == expected and whole.is_floating_point(),
            "log ψ is one number for every token",
            f"features {list(features.shape)} gave {list(whole.shape)} of {whole.dtype}",
            f"Return floating-point {expected}",
        )
        self.require(
            list(chosen.shape) == expected[:-1] and chosen.dtype in (torch.float32, torch.float64),
            "gather gives log ψ of each chosen token",
            f"it gave {list(chosen.shape)} of {chosen.dtype}",
            f"Return {expected[:-1]} in float32 or wider",
        )
        self.require(
            bool(whole.isfinite().all()),
            "log ψ is a finite number",
            f"at [{first(~whole.isfinite())}] it is not",
            "Bound what is exponentiated; only φ may be 0",
        )
        entries = whole.gather(-1, samples.tokens.unsqueeze(-1)).squeeze(-1)
        self._agree(
            chosen, entries, "gather gives what the head gives", "Use the same trunk, bias and shrinkage in both"
        )

    def sum_over_v(self, model: TwistedLM, samples: Samples) -> None:
        """log Σ_v p₀ψ, its value and its gradient."""
        head, parameters = _twist(model).head, _trained(model)
        features = model.twist_features(samples).detach().flatten(0, 1)
        base = model.base_features(samples.prompts, samples.tokens).flatten(0, 1)
        upstream = torch.linspace(-1.0, 2.0, len(features)).to(features.device)

        def logits(part: slice) -> Tensor:
            with torch.no_grad():
                return self.lm.logits(base[part])

        def total(written_out: bool) -> tuple[Tensor, list[Tensor]]:
            value = (
                normaliser.of_head(head, features, logits, len(features))
                if written_out
                else head.log_normaliser(features, logits, max(1, len(features) // 3))
            )
            gradients = torch.autograd.grad((value * upstream).sum(), parameters, allow_unused=True)
            return value.detach(), [torch.zeros(()) if each is None else each for each in gradients]

        remedy = "Use twistlm.core.kernels.normaliser, which has this for any head"
        for shrinkage in (0.5, 1.0):
            head.shrinkage.fill_(shrinkage)
            (own, mine), (truth, theirs) = total(False), total(True)
            self._agree(own, truth, "log_normaliser is log Σ_v p₀(v) ψ(v)", remedy)
            for gradient, expected in zip(mine, theirs, strict=True):
                self._agree(gradient, expected, "log_normaliser has the gradient of log Σ_v p₀(v) ψ(v)", remedy)

    def cached_is_full(self, model: TwistedLM, samples: Samples, log_psi: Tensor) -> None:
        """Token by token, through caches and replaced sequences, against one pass."""
        law = "token by token through caches it is what one full pass gives"
        remedy = "Let `advance` follow `parents`, and let features before token t depend on the tokens before t alone"
        with torch.no_grad():
            full = model.score(samples, normaliser=True)
        assert full.log_normaliser is not None
        self._agree(log_psi, full.log_psi, law, remedy)
        log_q = samples.log_p + (full.log_psi - full.log_normaliser).double()
        self._agree(samples.log_q, log_q, f"{law}, and so is the proposal", remedy)

    def alone_is_batch(self, model: TwistedLM, samples: Samples) -> None:
        """Every sequence for itself, and the same again."""
        with torch.no_grad():
            whole = model.score(samples).log_psi
            again = model.score(samples).log_psi
            alone = torch.cat(
                [model.score(samples.select(torch.tensor([k]))).log_psi for k in range(0, len(samples), 4)]
            )
        self.require(
            bool(again.equal(whole)),
            "the same sequences have the same log ψ, bit for bit",
            "a second pass differs",
            "Draw nothing at random: no dropout, and no state between passes",
        )
        self._agree(
            alone,
            whole[::4],
            "a batch is its sequences, each for itself",
            "Let no sequence see another: no statistics over the batch, and padding masked",
        )

    def gradient(self, model: TwistedLM, samples: Samples) -> None:
        """It reaches what is trained, and nothing of the base model."""
        twist = _twist(model)
        twist.module.zero_grad()
        scores = model.score(samples, normaliser=True)
        assert scores.log_normaliser is not None
        weight = torch.randn(scores.log_psi.shape, generator=torch.Generator().manual_seed(2)).to(scores.log_psi)
        ((scores.log_psi * weight).sum() + scores.log_normaliser.sum()).backward()
        silent = [
            name
            for name, parameter in twist.module.named_parameters()
            if parameter.requires_grad and (parameter.grad is None or not bool(parameter.grad.abs().sum() > 0))
        ]
        self.require(
            not silent,
            "every trained parameter has a gradient",
            f"{', '.join(silent)} has none",
            "Leave out of `module` what log ψ does not depend on, or set requires_grad to False",
        )
        own = {id(parameter) for parameter in twist.module.parameters()}
        network = getattr(self.lm, "module", None)
        others = [] if network is None else [p for p in network.parameters() if id(p) not in own]
        self.require(
            all(parameter.grad is None for parameter in others),
            "the base model is left alone",
            "its parameters have a gradient",
            "Detach its features, or train a copy",
        )
        twist.module.zero_grad()

    def saved_is_enough(self, model: TwistedLM, samples: Samples) -> None:
        """What `state_dict` says makes a fresh twist the same."""
        saved = {name: tensor.clone() for name, tensor in _twist(model).module.state_dict().items()}
        other = self.fresh()
        _twist(other).module.load_state_dict(saved)
        with torch.no_grad():
            self._agree(
                other.score(samples).log_psi,
                model.score(samples).log_psi,
                "what module.state_dict() saves makes a fresh twist the same",
                "Register every parameter and buffer with `module`",
            )

    def updates_are_noticed(self, model: TwistedLM, samples: Samples) -> None:
        """What is derived from the parameters is derived again when they have changed."""
        twist = _twist(model)
        moved = {name: tensor.clone() for name, tensor in twist.module.state_dict().items()}
        with torch.no_grad():
            twist.head(model.twist_features(samples))
            for parameter in twist.module.parameters():
                parameter.mul_(0.5)
            without = twist.head(model.twist_features(samples))
        self._agree(
            without,
            twist.head(model.twist_features(samples)),
            "after an update log ψ is the same with gradient and without",
            "Key what is kept by each parameter's _version, as VocabularyHead does",
        )
        twist.module.load_state_dict(moved)

    def shrinks_to_the_base_model(self, model: TwistedLM, samples: Samples) -> None:
        """With a shrinkage of 0 the proposal is p₀."""
        _twist(model).head.shrinkage.fill_(0.0)
        drawn = model.densities(samples, twist_induced)
        self._agree(
            drawn.log_q,
            drawn.log_p,
            "shrunk to 0 it leaves the proposal at p₀",
            "Multiply all of log ψ that differs from token to token by `shrinkage`, a buffer",
        )
        _twist(model).head.shrinkage.fill_(1.0)

    def value_leaves_the_proposal(self, model: TwistedLM, samples: Samples) -> None:
        """A head that says it has a value to be fitted: log ψ moves by w · x, for every token alike."""
        head = _twist(model).head
        if not isinstance(head, HasValue):
            return
        with torch.no_grad():
            features = model.twist_features(samples)
            before = head(features).clone()
            moved = torch.linspace(-0.1, 0.1, len(head.value_weight())).to(head.value_weight())
            head.value_weight().add_(moved)
            self._agree(
                head(features) - before,
                (head.value_features(features) @ moved).unsqueeze(-1).expand_as(before),
                "moving the value by w moves log ψ by w · value_features, for every token alike",
                "Leave value_weight and value_features out, or let log ψ be the rest plus their product",
            )
            head.value_weight().sub_(moved)

    def _agree(self, value: Tensor, expected: Tensor, law: str, remedy: str) -> None:
        value, expected = value.detach().double(), expected.detach().double()
        wrong = ~close(value, expected, self.tolerance)
        if bool(wrong.any()):
            at = f"at [{first(wrong)}] {value[wrong][0].item():.6g}, and {expected[wrong][0].item():.6g} is expected"
            self.require(False, law, at, remedy)


def _twist(model: TwistedLM) -> Twist:
    assert model.twist is not None
    return model.twist


def _trained(model: TwistedLM) -> list[Tensor]:
    return [parameter for parameter in _twist(model).module.parameters() if parameter.requires_grad]
