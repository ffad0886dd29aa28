"""Twists of few effective parameters: what a thousand samples can teach::

    log ψ(h, v) = α [(A ĥ + a) · (Bᵀ x_v) + c · x_v + b_v] + w · ĥ

with ĥ the layer-normalised hidden state and x_v fixed features of token v: its row of the model's unembedding and,
for `lexical`, what the potential says of it. The bracket steers the proposal: `rank` products of a direction of the
prefix with a direction of the vocabulary, and what holds for a token after any prefix. The last term says how
promising the prefix itself is: the proposal does not see it, the weights do. The token side, V × (rank + 1) numbers,
is worked out once per version of the parameters, so that sampling pays a product of width `rank`, not d.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm

from twistlm.core.errors import ConfigError
from twistlm.core.kernels import normaliser
from twistlm.core.kernels.entries import entries
from twistlm.core.kernels.linear import PackedProduct, skinny
from twistlm.core.registry import register
from twistlm.models.base import BaseLM
from twistlm.twists.base import Twist


class LowRankHead(nn.Module):
    """See the module.

    Args:
        unembedding: rows of the vocabulary [V, d], borrowed.
        rank: number of products.
        lexicon: f further fixed features of every token [V, f], saved with the head; None for none.
    """

    def __init__(self, unembedding: Tensor, rank: int, lexicon: Tensor | None = None) -> None:
        super().__init__()
        vocab_size, width = unembedding.shape
        self.register_buffer("unembedding", unembedding.detach(), persistent=False)
        self.register_buffer("lexicon", lexicon)
        extra = 0 if lexicon is None else lexicon.shape[1]
        # Rows of norm one on average, so that one learning rate suits every model.
        self.scale = 1.0 / float(unembedding.float().norm(dim=-1).mean())
        self.down = nn.Parameter(torch.randn(rank, width) * width**-0.5)
        self.offset = nn.Parameter(torch.zeros(rank))
        self.up = nn.Parameter(torch.zeros(width + extra, rank + 1))
        self.bias = nn.Parameter(torch.zeros(vocab_size))
        self.value = nn.Parameter(torch.zeros(width))
        self.shrinkage: Tensor
        self.register_buffer("shrinkage", torch.ones(()))
        self._tokens: tuple[tuple[int, ...], Tensor, Tensor] | None = None

    def forward(self, features: Tensor) -> Tensor:
        """log ψ of every token [..., V], float32."""
        directions, shared = self._token_side()
        inner, value = self._prefix_side(features)
        # All in one product: each pass over [..., V] costs as much.
        prefixes = torch.cat([inner * self.shrinkage, self.shrinkage.expand_as(value[..., None]), value[..., None]], -1)
        tokens = torch.cat([directions, shared[:, None], torch.ones_like(shared)[:, None]], -1)
        return prefixes @ tokens.T

    def gather(self, features: Tensor, tokens: Tensor) -> Tensor:
        """log ψ of the chosen tokens [...], float32."""
        directions, shared = self._token_side()
        inner, value = self._prefix_side(features)
        steering = (inner * entries(directions, tokens)).sum(-1) + entries(shared, tokens)
        return steering * self.shrinkage + value

    def start_at(self, log_psi: float) -> None:
        """Every bias is raised by this."""
        with torch.no_grad():
            self.bias.add_(log_psi)

    def log_normaliser(self, features: Tensor, logits: normaliser.Logits, rows: int) -> Tensor:
        """log Σ_v p₀ψ [n] of features [n, d], with gradient."""
        directions, shared = self._token_side()
        inner, value = self._prefix_side(features)
        steered = normaliser.of_product(
            inner, directions, shared, float(self.shrinkage), PackedProduct(directions, shared), logits, rows
        )
        return steered + value

    def value_weight(self) -> Tensor:
        """w [d]."""
        return self.value

    def value_features(self, features: Tensor) -> Tensor:
        """ĥ [..., d]."""
        return normalised(features)

    def _prefix_side(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Aĥ + a [..., rank], and w·ĥ [...]."""
        normal = normalised(features)
        return normal @ self.down.T + self.offset, normal @ self.value

    def _token_side(self) -> tuple[Tensor, Tensor]:
        """Bᵀx_v [V, rank] and c·x_v + b_v [V]; kept while the parameters stay as they are."""
        version = (self.up._version, self.bias._version, self.up.data_ptr())
        kept = self._tokens
        if not torch.is_grad_enabled() and kept is not None and kept[0] == version:
            return kept[1], kept[2]
        assert isinstance(self.unembedding, Tensor)
        width = self.unembedding.shape[1]
        # In the model's own precision: a skinny product over all of V, twice per update, is the cost of training.
        both = skinny(self.unembedding, self.up[:width] * self.scale)
        if self.lexicon is not None:
            assert isinstance(self.lexicon, Tensor)
            both = both + self.lexicon @ self.up[width:]
        directions, shared = both[:, :-1].contiguous(), both[:, -1] + self.bias
        if not torch.is_grad_enabled():
            self._tokens = (version, directions, shared)
        return directions, shared


def normalised(features: Tensor) -> Tensor:
    """Layer-normalised features [..., d], float32, without learned scales."""
    return layer_norm(features.float(), features.shape[-1:])


@register("twist", "low_rank")
def low_rank(lm: BaseLM, rank: int = 4) -> Twist:
    """A few directions of the hidden state times a few of the unembedding, a bias per token, a value per prefix."""
    return _twist(lm, "low_rank", rank, None)


@register("twist", "lexical", needs_token_log_phi=True)
def lexical(lm: BaseLM, rank: int = 2, token_log_phi: Tensor | None = None) -> Twist:
    """As low_rank, and knows what the potential says of each single token after the prompt: needs the fewest samples.

    Args:
        lm: the base model.
        rank: number of products.
        token_log_phi: log φ(prompt + v) for every token v, [V]; None (when weights are about to be loaded) is all zero.
    """
    if token_log_phi is None:
        token_log_phi = torch.zeros(lm.vocab_size, dtype=torch.float64)
    return _twist(lm, "lexical", rank, lexicon(token_log_phi.double().cpu()))


def lexicon(log_phi: Tensor) -> Tensor:
    """Two features per token [V, 2]: log φ and φ, standardised and clipped, so that any potential fits one scale."""
    possible = log_phi.isfinite()
    finite = log_phi.clamp_min(log_phi[possible].min()) if bool(possible.any()) else torch.zeros_like(log_phi)

    def standardised(x: Tensor) -> Tensor:
        return ((x - x.mean()) / x.std().clamp_min(1e-6)).clamp(-8.0, 8.0)

    return torch.stack([standardised(finite), standardised(finite.exp())], -1).float()


def _twist(lm: BaseLM, name: str, rank: int, lexicon: Tensor | None) -> Twist:
    if rank < 1:
        raise ConfigError(f"twist {name!r} needs rank of at least 1, not {rank}")
    unembedding: Tensor | None = getattr(lm, "unembedding", None)
    if unembedding is None:
        raise ConfigError(f"twist {name!r} needs a model with an output layer to borrow; use 'mlp' for this one")
    head = LowRankHead(unembedding, rank, lexicon).to(unembedding.device)
    return Twist(head, head)
