"""Samples as a user wants them."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from twistlm.sampling.diagnostics import Diagnostics


@dataclass(frozen=True)
class TextSamples:
    """Samples as a user wants them.

    Attributes:
        texts: continuations, without the prompt.
        weights: normalised weights [n].
        log_phi: log φ [n].
        log_p: log p₀ of each continuation [n].
        log_Z_hat: the run's estimate of log Z (mean over runs if there were several).
        pieces: what each token added to the text, [n][T].
        log_psi_moves: log ψ_t − log ψ_{t−1} at each token [n, T], with φ for ψ_T.
        log_w_moves: how much each token moved log w [n, T].
        diagnostics: what SMC recorded; None where there was none.
        prompt: what they go on from, where the target has several or was taken to a new one: its text, or what the
            user said last; "" where the target's only prompt says it.
        prompt_name: its name in the target's set, or in another that was asked for; "" if it is in none.
    """

    texts: list[str]
    weights: Tensor
    log_phi: Tensor
    log_p: Tensor
    log_Z_hat: float
    pieces: list[list[str]]
    log_psi_moves: Tensor
    log_w_moves: Tensor
    diagnostics: Diagnostics | None = None
    prompt: str = ""
    prompt_name: str = ""

    def rows(self) -> list[dict[str, Any]]:
        """One JSON object per sample."""
        columns = zip(
            self.texts,
            self.weights.tolist(),
            self.log_phi.tolist(),
            self.log_p.tolist(),
            self.pieces,
            self.log_psi_moves.tolist(),
            self.log_w_moves.tolist(),
            strict=True,
        )
        names = ("text", "weight", "log_phi", "log_p", "pieces", "log_psi_moves", "log_w_moves")
        where = {"prompt_name": self.prompt_name, "prompt": self.prompt} if self.prompt else {}
        return [where | dict(zip(names, row, strict=True)) for row in columns]
