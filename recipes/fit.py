"""One training loop for the recipes' small networks: AdamW (or Muon), warm-up, cosine decay, clipping."""

import math
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from twistlm.core.progress import bar


@dataclass(frozen=True)
class Schedule:
    """How long and how fast.

    Attributes:
        steps: updates.
        learning_rate: its peak; 5 % of the steps lead to it, a cosine from there to a tenth.
        weight_decay: of matrices; vectors have none.
        report_every: updates between calls of `evaluate`.
        muon: matrices between hidden layers by Muon (Jordan et al. 2024), whose steps are scaled like AdamW's.
    """

    steps: int
    learning_rate: float
    weight_decay: float = 0.1
    report_every: int = 500
    muon: bool = False


def fit(
    network: nn.Module, batches: Iterator[object], loss: Callable[[object], Tensor], schedule: Schedule,
    evaluate: Callable[[], str], name: str,
) -> None:  # fmt: skip
    """Minimise `loss` over `batches`, in bfloat16 with float32 parameters."""
    parameters = list(network.parameters())
    optimisers = _optimisers(network, schedule)
    schedulers = [
        torch.optim.lr_scheduler.LambdaLR(each, lambda step: _rate(step, schedule.steps)) for each in optimisers
    ]
    started, recent = time.perf_counter(), math.nan
    with bar(name, schedule.steps) as report:
        for step in range(1, schedule.steps + 1):
            network.train()
            with torch.autocast("cpu", torch.bfloat16):
                value = loss(next(batches))
            network.zero_grad()
            value.backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            for optimiser in optimisers:
                optimiser.step()
            for scheduler in schedulers:
                scheduler.step()
            recent = value.item() if math.isnan(recent) else 0.98 * recent + 0.02 * value.item()
            report(step, f"loss {recent:.3f}")
            if step % schedule.report_every == 0 or step == schedule.steps:
                network.eval()
                line = f"{name}: {step} of {schedule.steps}, {time.perf_counter() - started:.0f} s, loss {recent:.3f}, "
                print(line + evaluate(), file=sys.stderr, flush=True)
    network.eval()


def _optimisers(network: nn.Module, schedule: Schedule) -> list[torch.optim.Optimizer]:
    """AdamW for everything, or for vectors and embeddings alone."""
    hidden = [p for name, p in network.named_parameters() if schedule.muon and p.dim() == 2 and "embed" not in name]
    own = {id(p) for p in hidden}
    rest = [p for p in network.parameters() if id(p) not in own]
    groups = [
        {"params": [p for p in rest if p.dim() > 1], "weight_decay": schedule.weight_decay},
        {"params": [p for p in rest if p.dim() < 2], "weight_decay": 0.0},
    ]
    adam = torch.optim.AdamW(groups, lr=schedule.learning_rate, betas=(0.9, 0.98), fused=True)
    if not hidden:
        return [adam]
    muon = torch.optim.Muon(
        hidden, lr=schedule.learning_rate, weight_decay=schedule.weight_decay, adjust_lr_fn="match_rms_adamw"
    )
    return [adam, muon]


def _rate(step: int, steps: int) -> float:
    warm = max(1, steps // 20)
    if step < warm:
        return (step + 1) / warm
    return 0.1 + 0.45 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))
