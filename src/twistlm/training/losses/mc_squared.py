"""Monte Carlo regression of φ on prefixes."""

from torch import Tensor

from twistlm.training.losses import loss
from twistlm.training.scored import Scored


@loss("mc_squared", sources=("labelled",), scale=True)
def mc_squared(labelled: Scored) -> Tensor:
    """E_p₀[(ψ_t(s_1:t) − φ(s))²], the mean over t: least at ψ_t = E_p₀[φ | s_1:t].

    The plainest way to learn a twist. Where φ is rare its gradient all but vanishes: errors count in units of φ, not
    of log φ.

    Args:
        labelled: weights [B, T] towards p₀ of whole sequences, or prefixes with a label of their own each.
    """
    label = labelled.labels.exp()
    return (labelled.weights * (labelled.log_psi.exp() - label).square()).sum(0).mean()
