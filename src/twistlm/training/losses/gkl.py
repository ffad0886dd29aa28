"""Generalised KL: regression of the density ratio between the target and the base model."""

from torch import Tensor

from twistlm.training.losses import loss
from twistlm.training.scored import Scored


@loss("gkl", sources=("target", "base"))
def gkl(target: Scored, base: Scored) -> Tensor:
    """E_p₀[ψ_t] − E_σ[log ψ_t], the mean over t: least at ψ_t = σ(s_1:t) / p₀(s_1:t), the optimal ψ_t divided by Z.

    It is the generalised Kullback–Leibler divergence E_p₀[r log(r / ψ) − r + ψ] from the ratio r = σ / p₀, without the
    terms that do not depend on ψ (KLIEP's criterion: Sugiyama et al. 2008). Its gradient is CTL's with weights that
    are not normalised, so every draw teaches every prefix, and ψ's scale is learnt too.

    Args:
        target: weights [B, T] towards σ, the same at every t.
        base: weights [B, T] towards p₀.
    """
    expected = (base.weights * base.log_psi.exp()).sum(0)
    positive = (target.weights * target.log_psi).sum(0)
    return (expected - positive).mean()
