"""Contrastive twist learning."""

from torch import Tensor

from twistlm.training.losses import loss
from twistlm.training.scored import Scored


@loss("ctl", sources=("target", "intermediate"))
def ctl(target: Scored, intermediate: Scored) -> Tensor:
    """Contrastive twist learning: raise ψ_t on prefixes of the target, lower it on those of π_t.

    The gradient of Σ_t KL(σ(s_1:t) ‖ π_t(s_1:t)) / T with respect to ψ is Σ_t (E_π_t − E_σ)[∇ log ψ_t] / T, which is
    what differentiating this gives; its value is not that divergence (Zhao et al. 2024, equations 21 and 22).

    Args:
        target: weights [B, T] towards σ, the same at every t.
        intermediate: weights [B', T] towards π_t; may be the same draws weighted otherwise.
    """
    positive = (target.weights * target.log_psi).sum(0)
    negative = (intermediate.weights * intermediate.log_psi).sum(0)
    return (negative - positive).mean()
