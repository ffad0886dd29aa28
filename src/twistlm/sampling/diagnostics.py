"""What SMC says about itself: effective sample sizes, genealogy, weights; and what is wrong, each with its remedy."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from twistlm.core.advice import coded
from twistlm.core.logmath import log_mean_exp
from twistlm.models.base import BaseLM
from twistlm.models.token_texts import token_texts
from twistlm.sampling.particles import SMCResult
from twistlm.sampling.smc import lineages


@dataclass(frozen=True)
class Finding:
    """Something that is wrong, in one line, what to do about it, in another, and the code that explains it further."""

    problem: str
    remedy: str
    code: str

    def __str__(self) -> str:
        return coded(self.code, f"{self.problem} Remedy: {self.remedy}")


# Fewer effective particles than this say little about an expectation; with few particles, half of them.
MIN_ESS = 5.0
# A step is dead if it takes this share of the particles that lived before it.
DEAD_SHARE = 0.9
# A tail is a fifth of so few weights, and fewer than 20 of them say nothing of its shape.
MIN_WEIGHTS = 100
# Log weights nearer to each other than this differ by rounding alone.
EQUAL = 1e-9


@dataclass(frozen=True)
class Genealogy:
    """Who descends from whom in one run of SMC: T steps of N slots.

    Attributes:
        parents: slot of each particle's parent at the step before [T, N]; its own where nothing was resampled.
        pieces: the text that each particle's token added, [T][N].
        log_w: log of the normalised weights after each step [T, N]; −inf for the dead.
    """

    parents: Tensor
    pieces: list[list[str]]
    log_w: Tensor

    @staticmethod
    def of(result: SMCResult, lm: BaseLM, run: int = 0) -> "Genealogy":
        """The genealogy of one of the runs."""
        parents = torch.stack([info.ancestors[run] for info in result.infos]).cpu()
        tokens = torch.stack([info.tokens[run] for info in result.infos]).cpu()
        log_w = torch.stack([log_w[run] for log_w in weights_by_step(result)]).cpu()
        return Genealogy(parents, token_texts(lm, tokens, parents), log_w.log_softmax(-1))

    @property
    def survives(self) -> Tensor:
        """Whether a particle has descendants at the last step [T, N]."""
        alive = torch.ones_like(self.parents, dtype=torch.bool)
        for t in range(len(self.parents) - 1, 0, -1):
            alive[t - 1] = torch.zeros_like(alive[t]).scatter(0, self.parents[t][alive[t]], True)
        return alive


def weights_by_step(result: SMCResult) -> list[Tensor]:
    """Accumulated log weights [R, N] after each step, replayed from the increments."""
    log_w, by_step = torch.zeros_like(result.particles.log_w), []
    for info in result.infos:
        equal = log_mean_exp(log_w).unsqueeze(-1).expand_as(log_w)
        log_w = torch.where(info.resampled.unsqueeze(-1), equal, log_w) + info.log_increment
        by_step.append(log_w)
    return by_step


@dataclass(frozen=True)
class Diagnostics:
    """R runs of SMC with N particles and T steps.

    Attributes:
        ess: effective sample size after each step [R, T].
        resampled: whether it was resampled before that step [R, T].
        num_ancestors: distinct particles of each step that the last ones descend from [R, T].
        log_w: final log weights [R, N], accumulated and not normalised: log Ẑ is the log of their mean.
        num_distinct: different sequences among the N [R].
        died: share of the living particles that got weight zero at each step [T].
        genealogy: of the first run.
    """

    ess: Tensor
    resampled: Tensor
    num_ancestors: Tensor
    log_w: Tensor
    num_distinct: Tensor
    died: Tensor
    genealogy: Genealogy

    @staticmethod
    def of(results: Sequence[SMCResult], lm: BaseLM) -> "Diagnostics":
        """What several batches of runs with equally many particles and steps recorded; `lm` decodes the genealogy."""

        def by_step(name: str) -> Tensor:
            return torch.cat([torch.stack([getattr(info, name) for info in each.infos], -1) for each in results]).cpu()

        slots = [torch.stack(lineages(each.infos), 1) for each in results]
        dead = torch.cat([torch.stack(weights_by_step(each), 1) for each in results]).cpu().isneginf()
        return Diagnostics(
            ess=by_step("ess"),
            resampled=by_step("resampled"),
            num_ancestors=_distinct(torch.cat(slots).cpu()),
            log_w=torch.cat([each.particles.log_w for each in results]).cpu(),
            num_distinct=torch.tensor([len(run.unique(dim=0)) for each in results for run in each.particles.tokens]),
            died=_died(dead, by_step("resampled")),
            genealogy=Genealogy.of(results[0], lm),
        )

    @property
    def num_particles(self) -> int:
        """N."""
        return self.log_w.shape[1]

    @property
    def pareto_k(self) -> float | None:
        """Shape k̂ of the tail of all R·N weights (Vehtari et al. 2024); None where there is no tail to fit one to.

        Above 1 − 1/log₁₀(R·N), and above 0.7 in any case, their mean, and with it Ẑ, is not to be relied on. It is made
        for independent weights; those of one run are so between two resamplings only.
        """
        # Why here: this imports scipy.stats, a second that only diagnostics are to wait for.
        from arviz_stats.base import array_stats

        living = self.log_w[self.log_w.isfinite()].numpy()
        if living.size < MIN_WEIGHTS or np.ptp(living) < EQUAL:
            return None
        try:
            # Duplicates have equal weights, and a quarter of the tail that is equal leaves nothing to divide by.
            with np.errstate(divide="ignore", invalid="ignore"):
                # It takes the negative of log weights: log likelihoods to be left out.
                shape = float(array_stats.psislw(-living)[1])
        except ValueError:
            # All of the tail is equal.
            return None
        return shape if math.isfinite(shape) else None

    @property
    def max_pareto_k(self) -> float:
        """What k̂ may be at most (Vehtari et al. 2024, section 3.2)."""
        return min(0.7, 1.0 - 1.0 / math.log10(max(10, self.log_w.numel())))

    def as_dict(self) -> dict[str, Any]:
        """JSON values; a log weight of −inf is null."""
        return {
            "ess": self.ess.tolist(),
            "resampled": self.resampled.tolist(),
            "num_ancestors": self.num_ancestors.tolist(),
            "log_w": _finite(self.log_w),
            "num_distinct": self.num_distinct.tolist(),
            "died": self.died.tolist(),
            "pareto_k": self.pareto_k,
            "genealogy": {
                "parents": self.genealogy.parents.tolist(),
                "pieces": self.genealogy.pieces,
                "log_w": _finite(self.genealogy.log_w),
            },
        }

    @staticmethod
    def from_dict(fields: dict[str, Any]) -> "Diagnostics":
        """The inverse of `as_dict`."""
        tree = fields["genealogy"]
        made = Diagnostics(
            ess=torch.tensor(fields["ess"], dtype=torch.float64),
            resampled=torch.tensor(fields["resampled"]),
            num_ancestors=torch.tensor(fields["num_ancestors"]),
            log_w=_tensor(fields["log_w"]),
            num_distinct=torch.tensor(fields["num_distinct"]),
            died=torch.tensor(fields["died"], dtype=torch.float64),
            genealogy=Genealogy(torch.tensor(tree["parents"]), tree["pieces"], _tensor(tree["log_w"])),
        )
        made._check()
        return made

    def _check(self) -> None:
        """Raises ValueError where the parts do not belong to each other."""
        tree, (runs, particles), steps = self.genealogy, self.log_w.shape, self.ess.shape[-1]
        parents = tree.parents
        by_step = (self.ess, self.resampled, self.num_ancestors)
        shapes = {
            "by step": [tuple(each.shape) for each in by_step] == [(runs, steps)] * 3,
            "num_distinct": self.num_distinct.shape == (runs,),
            "died": self.died.shape == (steps,) and steps > 0 and particles > 0,
            "genealogy": parents.shape == tree.log_w.shape == (steps, particles),
            "pieces": [len(row) for row in tree.pieces] == [particles] * steps,
            "texts": all(isinstance(piece, str) for row in tree.pieces for piece in row),
            "parents": tree.parents.dtype == torch.int64
            and bool(((tree.parents >= 0) & (tree.parents < particles)).all()),
            "resampled": self.resampled.dtype == torch.bool,
            "numbers": not any(bool(each.isnan().any()) for each in (self.ess, self.log_w, self.died, tree.log_w)),
        }
        if wrong := [name for name, right in shapes.items() if not right]:
            raise ValueError(f"parts that do not fit: {', '.join(wrong)}")


def _distinct(slots: Tensor) -> Tensor:
    """Different values along the last axis: [R, T] from [R, T, N]."""
    return 1 + (slots.sort(-1).values.diff(dim=-1) != 0).sum(-1)


def _died(dead: Tensor, resampled: Tensor) -> Tensor:
    """Share [T] of the particles that lived before a step which it took; dead [R, T, N] after each step.

    Resampling chooses none of the dead, so that all live afterwards.
    """
    before = torch.nn.functional.pad(dead, (0, 0, 1, 0))[:, :-1] & ~resampled.unsqueeze(-1)
    lived = (~before).sum((0, 2))
    return (dead & ~before).sum((0, 2)).double() / lived.clamp_min(1)


def _finite(log_w: Tensor) -> list[list[float | None]]:
    return [[value if math.isfinite(value) else None for value in row] for row in log_w.tolist()]


def _tensor(rows: list[list[float | None]]) -> Tensor:
    return torch.tensor([[-math.inf if value is None else value for value in row] for row in rows], dtype=torch.float64)


# --- What is wrong ---


def findings(smc: Diagnostics) -> list[Finding]:
    """What is wrong with SMC itself; what its samples are worth, a certificate says (`certificates.verdict`)."""
    return [each for each in (_too_few_particles(smc), _dead_step(smc)) if each is not None]


def _too_few_particles(smc: Diagnostics) -> Finding | None:
    effective, n, shape = float(smc.ess[:, -1].median()), smc.num_particles, smc.pareto_k
    if effective < min(MIN_ESS, n / 2):
        code, problem = "TW401", f"half of the runs end with an ESS of {effective:.1f} of {n} or less."
    elif shape is not None and shape > smc.max_pareto_k:
        wanted = f"at most {smc.max_pareto_k:.3f} is wanted"
        code, problem = "TW402", f"a few weights decide everything (Pareto k̂ = {shape:.3f}, and {wanted})."
    else:
        return None
    return Finding(
        f"Too few particles: {problem}", "more --num-particles, or a better twist (more draws, more updates).", code
    )


def _dead_step(smc: Diagnostics) -> Finding | None:
    worst = int(smc.died.argmax())
    if smc.died[worst] < DEAD_SHARE:
        return None
    return Finding(
        f"A dead step: {float(smc.died[worst]):.0%} of the particles get weight zero at step {worst + 1} of "
        f"{len(smc.died)}.",
        "a softer potential (a threshold with eps > 0), or a twist that sees it coming.",
        "TW403",
    )
