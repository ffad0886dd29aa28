"""Distributional policy gradient."""

from torch import Tensor

from twistlm.training.losses import loss
from twistlm.training.scored import Scored


@loss("dpg", sources=("target",), normaliser=True, label="value")
def dpg(target: Scored) -> Tensor:
    """Distributional policy gradient: maximum likelihood of the twist-induced proposal under the target.

    KL(σ‖q) = −E_σ[Σ_t log q_t] + const with log q_t = log p₀ + log ψ_t − log Σ_v p₀ψ_t, the sum over V exact
    (Khalifa, Elsahar and Dymetman, 2021; Zhao et al. 2024, appendix on DPG). Its optimum fixes ψ_t up to a function of
    the prefix, which the proposal does not see and the weights do.

    Args:
        target: weights [B, T] towards σ, the same at every t.
    """
    assert target.log_normaliser is not None
    log_q = (target.log_psi - target.log_normaliser) * target.mask
    return -(target.weights * log_q).sum(0).mean()
