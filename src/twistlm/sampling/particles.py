"""What flows between the steps of sequential Monte Carlo, and what comes out.

Axes: R independent SMC runs (each with its own prompt), N particles, T new tokens, V vocabulary,
B sequences (R·N flattened, run-major), U distinct prefixes among them, d width of a model's features.
Log quantities are in nats; those per particle are float64.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from twistlm.core.exports import tree
from twistlm.core.logmath import log_mean_exp, normalise
from twistlm.core.rng import Rng
from twistlm.sampling.resampling import systematic
from twistlm.sampling.samples import Siblings


@dataclass(frozen=True)
class NextToken:
    """Distributions over the next token for U distinct prefixes shared by B particles.

    Attributes:
        logits: unnormalised log p₀(v | prefix), [U, V].
        log_psi: log ψ(prefix, v), [U, V] of any floating type, or None where the twist is identically 1.
        rows: the prefix of each particle, [B].
        log_psi_proposal: of the twist that induces the proposal, if it is another one, [U, V].
    """

    logits: Tensor
    log_psi: Tensor | None
    rows: Tensor
    log_psi_proposal: Tensor | None = None

    @property
    def inducing(self) -> Tensor | None:
        """log ψ of the twist that induces the proposal [U, V]; None where there is no twist."""
        return self.log_psi if self.log_psi_proposal is None else self.log_psi_proposal

    def of(self, particles: Tensor) -> "NextToken":
        """Some of the particles [B'], and the prefixes of those alone."""
        used, rows = torch.unique(self.rows[particles], return_inverse=True)
        log_psi, proposing = (None if x is None else x[used] for x in (self.log_psi, self.log_psi_proposal))
        return NextToken(self.logits[used], log_psi, rows, proposing)

    @property
    def log_p(self) -> Tensor:
        """Normalised log p₀ of each particle, float64 [B, V]."""
        return torch.log_softmax(self.logits.double(), -1)[self.rows]


@dataclass(frozen=True)
class Particles:
    """What the next SMC step needs.

    Attributes:
        tokens: [R, N, T]; positions not sampled yet hold `fill`.
        length: number of tokens sampled so far.
        log_w: accumulated log weights [R, N], float64.
        log_psi: log ψ_t of each particle's prefix [R, N], float64; 0 at the start.
        finished: EOS was sampled and is absorbing [R, N].
        log_p, log_q: log p₀ and log q of each sampled token [R, N, T], float64; 0 once finished.
        features: the base model's features before each token [R, N, T, …], None unless recorded (see `Keep`).
        siblings: other tokens that could have followed each prefix, None unless recorded.
    """

    tokens: Tensor
    length: int
    log_w: Tensor
    log_psi: Tensor
    finished: Tensor
    log_p: Tensor
    log_q: Tensor
    features: Tensor | None = None
    siblings: "Siblings | None" = None

    def select(self, ancestors: Tensor) -> "Particles":
        """The particles at `ancestors` [R, N] of each run, with their weights as they were."""
        return replace(
            self,
            tokens=select(self.tokens, ancestors),
            log_w=select(self.log_w, ancestors),
            log_psi=select(self.log_psi, ancestors),
            finished=select(self.finished, ancestors),
            log_p=select(self.log_p, ancestors),
            log_q=select(self.log_q, ancestors),
        )


def select(x: Tensor, ancestors: Tensor) -> Tensor:
    """`x[r, ancestors[r, n]]` for x [R, N, …] and ancestors [R, N]."""
    index = ancestors.reshape(*ancestors.shape, *[1] * (x.dim() - 2)).expand(-1, -1, *x.shape[2:])
    return x.gather(1, index)


@dataclass(frozen=True)
class StepInfo:
    """Diagnostics of one SMC step.

    Attributes:
        ancestors: index of each particle's parent within its run [R, N].
        log_increment: log w_t [R, N]. This is the potential G_t of Del Moral's Feynman–Kac models.
        ess: effective sample size after weighting [R].
        resampled: whether the run was resampled before this step [R].
        tokens: what each particle drew, its descendants or not [R, N].
    """

    ancestors: Tensor
    log_increment: Tensor
    ess: Tensor
    resampled: Tensor
    tokens: Tensor


@dataclass(frozen=True)
class SMCResult:
    """Weighted samples of the target, and how they came about. `log_phi` [R, N] is log φ of each sequence."""

    particles: Particles
    infos: tuple[StepInfo, ...]
    log_phi: Tensor

    @property
    def log_Z_hat(self) -> Tensor:
        """Estimate of log Z per run [R]: log of the mean weight. exp of it is unbiased for Z."""
        return log_mean_exp(self.particles.log_w)

    @property
    def weights(self) -> Tensor:
        """Normalised weights [R, N]."""
        return normalise(self.particles.log_w)

    def to_datatree(self, texts: Sequence[str] | None = None, *, seed: int = 0) -> Any:
        """All of it as an `xarray.DataTree` for ArviZ: runs are chains, particles draws.

        ArviZ's plots and summaries know nothing of weights. So `posterior`, `log_prior` (log p₀) and `log_likelihood`
        (log φ) hold particles that were drawn anew by weight, each worth the same. The particles as they are, with
        log weights, log q and their tokens, are in `particles`; who descends from whom, increments and effective sample
        sizes in `steps`. log Ẑ of each run is the attribute `log_Z_hat`.

        Args:
            texts: of the R·N sequences, run-major; None leaves them out.
            seed: of what is drawn by weight.

        Raises:
            ConfigError: ArviZ is not installed.
        """
        cells, steps = ("chain", "draw"), ("chain", "step")
        particles = self.particles
        values = {
            "tokens": ((*cells, "token"), particles.tokens),
            "log_p": (cells, particles.log_p.sum(-1)),
            "log_phi": (cells, self.log_phi),
        }
        index = systematic(Rng(seed, ("datatree",)), self.weights)
        drawn = {name: (axes, select(x, index).cpu().numpy()) for name, (axes, x) in values.items()}
        as_they_are = values | {"log_q": (cells, particles.log_q.sum(-1)), "log_weight": (cells, particles.log_w)}
        written = {} if texts is None else {"text": (cells, _grid(texts, index))}
        groups = {
            "posterior": {"tokens": drawn["tokens"], **written},
            "log_prior": {"p0": drawn["log_p"]},
            "log_likelihood": {"phi": drawn["log_phi"]},
            "particles": {name: (axes, x.cpu().numpy()) for name, (axes, x) in as_they_are.items()},
            "steps": {
                name: ((*steps, *slot), torch.stack([getattr(info, name) for info in self.infos], 1).cpu().numpy())
                for name, slot in (
                    ("ess", ()),
                    ("resampled", ()),
                    ("ancestors", ("slot",)),
                    ("log_increment", ("slot",)),
                )
            },
        }
        attributes = {"log_Z_hat": self.log_Z_hat.tolist(), "inference_library": "twistlm"}
        return tree(groups, attributes, {"steps": steps})


def _grid(texts: Sequence[str], index: Tensor) -> NDArray[np.str_]:
    """Texts of R·N sequences at the particles `index` [R, N] of each run."""
    return np.take_along_axis(np.array(texts).reshape(tuple(index.shape)), index.cpu().numpy(), 1)
