"""Three grades of sentiment, five that are defined by them, and how well either is told."""

import torch
from torch import Tensor
from torch.nn.functional import one_hot

CLASSES = ("negative", "neutral", "positive")
STARS = ("1 star", "2 stars", "3 stars", "4 stars", "5 stars")


def targets(labels: list[str]) -> Tensor:
    """One row per label: 1 at its class, float64 [B, 3]."""
    return one_hot(torch.tensor([CLASSES.index(label) for label in labels]), len(CLASSES)).double()


def ordinal_cuts(logits: Tensor, labels: Tensor) -> Tensor:
    """Quintiles of x = log p(positive) − log p(negative) over tweets weighted so that the three classes are level."""
    x, weights = _balance(logits), (labels / labels.sum(0)).sum(-1)
    order = x.argsort()
    share = weights[order].cumsum(0) / weights.sum()
    return torch.stack([x[order][(share >= k / 5).nonzero()[0, 0]] for k in (1, 2, 3, 4)])


def ordinal(logits: Tensor, cuts: Tensor) -> Tensor:
    """Soft grades [B, 5]: P(at most k stars) = sigmoid((c_k − x) / s), s an eighth of the outer cuts' distance."""
    below = ((cuts - _balance(logits).unsqueeze(-1)) * 8 / (cuts[-1] - cuts[0])).sigmoid()
    ends = torch.cat([below.new_zeros(len(below), 1), below, below.new_ones(len(below), 1)], -1)
    return ends.diff()


def accuracy(logits: Tensor, truth: Tensor) -> dict[str, float]:
    """Accuracy and log-loss in nats; `truth` may be soft."""
    return {
        "accuracy": float((logits.argmax(-1) == truth.argmax(-1)).double().mean()),
        "log-loss": float(-(truth * logits.log_softmax(-1)).sum(-1).mean()),
    }


def _balance(logits: Tensor) -> Tensor:
    return logits[:, CLASSES.index("positive")] - logits[:, CLASSES.index("negative")]
