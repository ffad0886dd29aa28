"""A pool of all draws made so far, each weighted as a draw from the mixture of the proposals that made them.

Multiple importance sampling with the balance heuristic (Veach and Guibas, 1995): with n_j of n draws from q_j, the
density of a draw is q̄ = Σ_j (n_j / n) q_j whichever of them it came from, and p₀/q̄ stays bounded as long as one q_j is
near p₀. So draws from early, bad proposals go on teaching beside those from later, better ones.
"""

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from twistlm.core.logmath import normalise
from twistlm.core.rng import Rng
from twistlm.potentials.protocol import Potential
from twistlm.sampling.proposals import Proposal
from twistlm.sampling.resampling import invert
from twistlm.sampling.sampler import proposal_samples
from twistlm.sampling.samples import Samples
from twistlm.sampling.switching import Switching
from twistlm.sampling.twisted import TwistedLM

# The pool grows at update 0, 16, 64, 256, …: every draw has to be weighed under every earlier proposal, and every
# earlier draw under the new one.
FIRST, FACTOR = 16, 4
# Sequences drawn at a time.
BATCH = 2048
# Sequences whose densities are taken at a time.
CHUNK = 4096


def updates_until_growth(update: int) -> int | None:
    """If the pool grows at `update`, after how many more it grows again; None if it does not."""
    at, following = 0, FIRST
    while at < update:
        at, following = following, following * FACTOR
    return following - at if at == update else None


def snapshot(module: nn.Module) -> dict[str, Tensor]:
    """A copy of everything that `load_state_dict` brings back."""
    return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}


@dataclass
class Pool:
    """Draws of G generations, n in all, in the order in which they came.

    Attributes:
        switching: how the twists are switched on and off, if they are; then q_j is the mixture of all patterns.
        twists: parameters of each generation's twist.
        counts: how many draws each made, those that were not kept included.
        samples: all draws that were kept.
        unsteered: which draws are the base model's own, the twist having been off throughout [n]; None without
            switching.
        log_q: log q_j(s_1:t) of every draw under every generation [G, n, T], float64.
    """

    switching: Switching | None = None
    twists: list[dict[str, Tensor]] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)
    samples: Samples | None = None
    unsteered: Tensor | None = None
    log_q: Tensor | None = None

    def grow(
        self, rng: Rng, model: TwistedLM, potential: Potential, *, prompt: Tensor, num_steps: int, count: int,
        proposal: Proposal, least: float = -torch.inf,
    ) -> None:  # fmt: skip
        """Add `count` draws from the proposal of `model`, whose twist is left as it is.

        Those with log φ below `least` are counted and not kept: nothing has to be worked out for them again.
        """
        assert model.twist is not None
        module = model.twist.module
        now = snapshot(module)
        rng = rng.fork("pool", sum(self.counts))
        paused = None if self.switching is None else self.switching.draw(rng.fork("switching"), count, num_steps)
        fresh = proposal_samples(
            rng, model, potential, prompts=[prompt], num_samples=count, num_steps=num_steps, proposal=proposal,
            max_batch=BATCH, record_features=model.features_are_reusable, paused=paused,
        )  # fmt: skip
        kept = (fresh.log_phi >= least).nonzero().squeeze(-1)
        fresh, rows = fresh.select(kept), []
        for twist in self.twists:
            module.load_state_dict(twist)
            rows.append(self._log_q(model, fresh, proposal))
        module.load_state_dict(now)
        rows.append(self._log_q(model, fresh, proposal, own=True))
        if self.samples is not None and self.log_q is not None:
            self.log_q = torch.cat([self.log_q, self._log_q(model, self.samples, proposal).unsqueeze(0)])
        self.twists.append(now)
        self.counts.append(count)
        self.samples = fresh if self.samples is None else Samples.concatenate([self.samples, fresh])
        if paused is not None:
            unsteered = paused.all(-1).to(kept.device)[kept]
            self.unsteered = unsteered if self.unsteered is None else torch.cat([self.unsteered, unsteered])
        self.log_q = torch.stack(rows) if self.log_q is None else torch.cat([self.log_q, torch.stack(rows)], 1)

    def draw(self, rng: Rng, count: int) -> tuple[Samples, Tensor]:
        """A random part of the pool, and log p₀(s_1:t) − log q̄(s_1:t) of each [count, T].

        Half of it is drawn evenly and half by the weight towards σ, and the ratios make up for that: the few draws
        that σ would make are seen often, and no ratio more than doubles.
        """
        assert self.samples is not None
        log_w = self.final_log_ratio + self.samples.log_phi
        evenly = torch.full_like(log_w, 1 / len(log_w))
        chance = (evenly + normalise(log_w)) / 2 if bool(log_w.isfinite().any()) else evenly
        points = (torch.arange(count) + rng.uniform((1, count))) / count
        index = invert(chance.unsqueeze(0), points.to(chance.device))[0]
        part = self.select(index)
        assert part.samples is not None
        return part.samples, part.log_ratio + (evenly / chance).log()[index].unsqueeze(-1)

    def select(self, index: Tensor) -> "Pool":
        """The draws at `index`, still weighed against all generations as they were."""
        assert self.samples is not None
        assert self.log_q is not None
        unsteered = None if self.unsteered is None else self.unsteered[index]
        return replace(self, samples=self.samples.select(index), unsteered=unsteered, log_q=self.log_q[:, index])

    @property
    def log_ratio(self) -> Tensor:
        """log p₀(s_1:t) − log q̄(s_1:t) of every draw [n, T]."""
        return self._log_ratio(slice(None))

    @property
    def final_log_ratio(self) -> Tensor:
        """The same of whole sequences [n]."""
        return self._log_ratio(slice(-1, None))[:, 0]

    def _log_ratio(self, steps: slice) -> Tensor:
        assert self.samples is not None
        assert self.log_q is not None
        shares = torch.tensor(self.counts, dtype=torch.float64, device=self.log_q.device) / sum(self.counts)
        mixture = torch.logsumexp(self.log_q[:, :, steps] + shares.log().view(-1, 1, 1), 0)
        return self.samples.log_p.cumsum(-1)[:, steps] - mixture

    def _log_q(self, model: TwistedLM, samples: Samples, proposal: Proposal, own: bool = False) -> Tensor:
        """log q_j(s_1:t) of given sequences [n, T] for the model's twist as it is; `own`: they were drawn by it."""
        if (own and self.switching is None) or len(samples) == 0:
            return samples.log_q.cumsum(-1)
        parts = []
        for at in range(0, len(samples), CHUNK):
            part = samples.select(torch.arange(at, min(at + CHUNK, len(samples))))
            found = model.densities(part, proposal)
            parts.append(
                found.log_q.cumsum(-1) if self.switching is None
                else self.switching.log_q(found.log_p, found.log_q)
            )  # fmt: skip
        return torch.cat(parts)
