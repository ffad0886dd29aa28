"""Monte Carlo regression of φ on prefixes."""

from torch import Tensor

from twistlm.losses import loss
from twistlm.types import Scored


@loss("mc_squared", sources=("base",))
def mc_squared(base: Scored) -> Tensor:
    """E_p₀[(ψ_t(s_1:t) − φ(s))²], the mean over t: least at ψ_t = E_p₀[φ | s_1:t].

    The plainest way to learn a twist. Where φ is rare its gradient all but vanishes: errors count in units of φ, not
    of log φ.

    Args:
        base: weights [B, T] towards p₀.
    """
    label = base.log_phi.exp().to(base.log_psi.dtype).unsqueeze(-1)
    return (base.weights * (base.log_psi.exp() - label).square()).sum(0).mean()
