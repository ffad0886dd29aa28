"""What a loss sees of a batch."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Scored:
    """Teacher-forced scores of B sequences, with weights: all that a loss sees. Gradient flows only through log ψ.

    Once a sequence has finished, its log ψ stays what it was at EOS, as in SMC.

    Attributes:
        mask: [B, T], 1 where the token was a random choice.
        weights: of the prefixes at each t, self-normalised over the batch, no gradient [B, T]; those of whole
            sequences are the same at every t. Towards what, says the batch's role (`twistlm.training.losses`).
        log_p, log_q: log p₀ of each token, and of the proposal that it was drawn from [B, T].
        log_psi: log ψ_t(s_1:t) [B, T], with gradient.
        log_normaliser: log Σ_v p₀(v | s_<t) ψ_t(s_<t, v) [B, T], with gradient; None unless the loss asked for it.
        log_phi: log φ [B], or of a fresh end of each prefix [B, T].
        baseline: the weight [B, 1] of every sequence were the proposal σ, which `weights` are compared with (0 at a
            target that no sequence hits); None for no baseline, and where the sequences are not draws of `log_q`.
        num_targets: R targets that the sequences belong to, equally many to each, one after the other.
        target_weights: what each target counts, which `weights` have in them [R]; None: all alike.
    """

    mask: Tensor
    weights: Tensor
    log_p: Tensor
    log_q: Tensor
    log_psi: Tensor
    log_normaliser: Tensor | None
    log_phi: Tensor
    baseline: Tensor | None = None
    num_targets: int = 1
    target_weights: Tensor | None = None

    @property
    def ratio(self) -> Tensor:
        """q / q as drawn of each token [B, T], q being the twist-induced proposal as it is: what a step has moved."""
        assert self.log_normaliser is not None
        drawn = (self.log_p - self.log_q).to(self.log_psi.dtype)
        return ((self.log_psi - self.log_normaliser + drawn) * self.mask).exp()

    @property
    def labels(self) -> Tensor:
        """log φ for each prefix [B, T], or [B, 1] if all prefixes of a sequence have its own; in log ψ's precision."""
        log_phi = self.log_phi if self.log_phi.dim() == 2 else self.log_phi.unsqueeze(-1)
        return log_phi.to(self.log_psi.dtype)
