"""Distributional policy gradient."""

from torch import Tensor

from twistlm.training.losses import loss
from twistlm.training.scored import Scored


@loss("dpg", sources=("target",), normaliser=True)
def dpg(target: Scored) -> Tensor:
    """Distributional policy gradient: maximum likelihood of the twist-induced proposal under the target.

    KL(σ‖q) = −E_σ[Σ_t log q_t] + const with log q_t = log p₀ + log ψ_t − log Σ_v p₀ψ_t, the sum over V exact
    (Khalifa, Elsahar and Dymetman, 2021; Zhao et al. 2024, appendix on DPG). Its optimum fixes ψ_t up to a function of
    the prefix, which the proposal does not see and the weights do.

    With a baseline a token's gradient counts by w − 1 in the place of w = σ/q, since E_q[∇ log q(s_t | s_<t)] = 0
    whatever the prefix (Williams, 1992; of DPG Korbak et al., 2022): it vanishes with every batch where q is σ, and not
    in the mean alone. Once a step has moved q, what is added is the mean of q_new/q over the tokens that q drew, which
    is 1 in expectation for any q_new.

    Args:
        target: weights [B, T] towards σ, the same at every t.
    """
    assert target.log_normaliser is not None
    log_q = (target.log_psi - target.log_normaliser) * target.mask
    divergence = -(target.weights * log_q).sum(0).mean()
    if target.baseline is None:
        return divergence
    return divergence + (target.baseline * target.mask * target.ratio).sum(0).mean()
