"""Path consistency over whole remainders: soft values and the policy that they induce must explain φ together."""

from torch import Tensor

from twistlm.training.losses import end, loss
from twistlm.training.scored import Scored


@loss("pcl", sources=("drawn",), normaliser=True, scale=True)
def pcl(drawn: Scored) -> Tensor:
    """Squared error of log ψ_t + Σ_{k>t} (log ψ_k − log Σ_v p₀ψ_k) − log φ, at every t of any sequences.

    The sum is log q − log p₀ of the rest of the sequence under the twist-induced proposal, so this is the multi-step
    form of soft path consistency (Nachum et al. 2017), with gradient through every term. Each step's error is `rl`'s
    telescoped to the end. φ = 0 counts as e^−40.

    Args:
        drawn: equal weights [B, T].
    """
    assert drawn.log_normaliser is not None
    log_ratio = (drawn.log_psi - drawn.log_normaliser) * drawn.mask
    after = log_ratio.flip(-1).cumsum(-1).flip(-1) - log_ratio
    error = drawn.log_psi + after - end(drawn)
    return (drawn.weights * drawn.mask * error.square()).sum(0).mean()
