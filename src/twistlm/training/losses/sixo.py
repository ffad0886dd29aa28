"""SIXO: twists as classifiers between the target and the base model."""

from torch import Tensor
from torch.nn.functional import logsigmoid

from twistlm.training.losses import loss
from twistlm.training.scored import Scored


@loss("sixo", sources=("target", "base"))
def sixo(target: Scored, base: Scored) -> Tensor:
    """Noise-contrastive estimation of σ(s_1:t) / p₀(s_1:t), the optimal ψ_t divided by Z (Lawson et al. 2022).

    log ψ_t is the logit of a classifier that tells prefixes of the target from those of the base model:
    −E_σ[log sigmoid(log ψ_t)] − E_p₀[log sigmoid(−log ψ_t)], the mean over t (Zhao et al. 2024, appendix C.3).

    Args:
        target: weights [B, T] towards σ, the same at every t.
        base: weights [B, T] towards p₀.
    """
    positive = (target.weights * logsigmoid(target.log_psi)).sum(0)
    negative = (base.weights * logsigmoid(-base.log_psi)).sum(0)
    return -(positive + negative).mean()
