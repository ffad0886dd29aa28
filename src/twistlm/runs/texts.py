"""Samples as a user wants them."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from twistlm.core.html import table
from twistlm.core.logmath import ess
from twistlm.models.base import is_end
from twistlm.models.token_texts import token_texts_of
from twistlm.sampling.diagnostics import Diagnostics
from twistlm.sampling.samples import Samples
from twistlm.sampling.target import Target

# Samples that a notebook shows.
MOST_SHOWN = 20


@dataclass(frozen=True, repr=False)
class TextSamples:
    """Samples as a user wants them.

    Attributes:
        texts: continuations, without the prompt.
        tokens: what was drawn [n, T].
        finished: whether each ended with EOS [n].
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
    tokens: Tensor
    finished: Tensor
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

    @staticmethod
    def of(
        target: Target,
        samples: Samples,
        weights: Tensor,
        log_Z_hat: float,
        log_w_moves: Tensor,
        diagnostics: Diagnostics | None = None,
    ) -> "TextSamples":
        """Samples of a target; arguments as the attributes."""
        return TextSamples(
            target.texts(samples),
            samples.tokens,
            is_end(samples.tokens, target.lm.eos_token_ids if target.eos == "absorb" else ()).any(-1),
            weights,
            samples.log_phi,
            samples.log_p.sum(-1),
            log_Z_hat,
            token_texts_of(target.lm, samples.tokens),
            # By the definition of the increments, log w_t = log p₀ + log ψ_t − log ψ_{t−1} − log q_t.
            log_w_moves - samples.log_p + samples.log_q,
            log_w_moves,
            diagnostics,
        )

    def __len__(self) -> int:
        return len(self.texts)

    def __repr__(self) -> str:
        return f"TextSamples({len(self)} texts, log Ẑ = {self.log_Z_hat:.3f}, ESS {float(ess(self.weights.log())):.1f})"

    def _repr_html_(self) -> str:
        """The likeliest under the target first, for notebooks."""
        order = self.weights.argsort(descending=True)[:MOST_SHOWN].tolist()
        rows = [
            [float(self.weights[i]), f"{self.log_phi[i]:.2f}", f"{self.log_p[i]:.1f}", self.texts[i]] for i in order
        ]
        note, more = f"after {self.prompt!r}" if self.prompt else "", len(self) - len(order)
        return table(repr(self), ("weight", "log φ", "log p₀", "text"), rows, note=note, more=more)

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
