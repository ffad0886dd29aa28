"""Twists that read the base model's own hidden states: one small network, then an output layer over V.

    log ψ(prefix, v) = (trunk(h) · W_v + b_v)

with h the hidden state that also predicts the next token. The builders differ in the trunk and in whose W it is. All
start at log ψ = 0 exactly, so that training starts from q = p₀ (the paper's appendix on architectures).
"""

from typing import Any

import torch
from torch import Tensor, nn

from twistlm.categorical import output_product
from twistlm.errors import ConfigError
from twistlm.registry import register
from twistlm.types import BaseLM, Twist


# Size of the lexicon's standardised features next to the unembedding's rows, whose norm is one.
LEXICON_SCALE = 0.5


class VocabularyHead(nn.Module):
    """log ψ over the vocabulary from features, through `trunk` and an output matrix.

    Args:
        trunk: features [..., d] to [..., k] (k + f with a lexicon), float32.
        weight: output matrix [V, k]; a parameter of the head, or a frozen tensor that it borrows.
        bias: learn one value per token.
        value: features to [..., 1], added to log ψ of every token: how promising the prefix itself is. It cancels in
            the proposal and counts in the weights.
        lexicon: f fixed features of every token [V, f] beside those of `weight`.
    """

    def __init__(
        self,
        trunk: nn.Module,
        weight: Tensor,
        *,
        bias: bool = True,
        value: nn.Module | None = None,
        lexicon: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.trunk, self.value = trunk, value
        if isinstance(weight, nn.Parameter) and weight.requires_grad:
            self.weight: Tensor = weight
        else:
            # Borrowed (the model's unembedding): not saved with the twist, not trained, not copied.
            self.register_buffer("weight", weight.detach(), persistent=False)
        self.bias = nn.Parameter(torch.zeros(weight.shape[0])) if bias else None
        self.lexicon: Tensor | None
        self.register_buffer("lexicon", lexicon)
        self.shrinkage: Tensor
        self.register_buffer("shrinkage", torch.ones(()))
        self._half: tuple[tuple[int, int], Tensor] | None = None

    def forward(self, features: Tensor) -> Tensor:
        """log ψ of every token [..., V].

        Without gradient the product runs in the features' precision: it is as large as the model's own output layer,
        and sampling weighs by the very values it draws from, so rounding costs no exactness.
        """
        inner: Tensor = self.trunk(features.float())
        main, extra = inner.split([self.weight.shape[1], inner.shape[-1] - self.weight.shape[1]], -1)
        if torch.is_grad_enabled():
            log_psi: Tensor = main @ self.weight.float().T
        else:
            log_psi = output_product(main.to(features.dtype), self._weight_as(features.dtype)).float()
        if self.lexicon is not None:
            log_psi += extra @ self.lexicon.T
        if self.bias is not None:
            log_psi += self.bias
        if self.value is not None:
            log_psi += self.value(features.float())
        return log_psi if self._plain else log_psi * self.shrinkage

    def gather(self, features: Tensor, tokens: Tensor) -> Tensor:
        """log ψ of the chosen tokens [...], float32: k multiplications each instead of V·k."""
        inner: Tensor = self.trunk(features.float())
        rows = self.weight[tokens].float()
        if self.lexicon is not None:
            rows = torch.cat([rows, self.lexicon[tokens]], -1)
        log_psi: Tensor = (inner * rows).sum(-1)
        if self.bias is not None:
            log_psi = log_psi + self.bias[tokens]
        if self.value is not None:
            log_psi = log_psi + self.value(features.float()).squeeze(-1)
        return log_psi * self.shrinkage

    @property
    def _plain(self) -> bool:
        return bool(self.shrinkage == 1.0)

    def _weight_as(self, dtype: torch.dtype) -> Tensor:
        """The output matrix in `dtype`, converted once per version of the weights."""
        if self.weight.dtype == dtype:
            return self.weight
        version = (self.weight.data_ptr(), self.weight._version)
        if self._half is None or self._half[0] != version or self._half[1].dtype != dtype:
            self._half = (version, self.weight.detach().to(dtype))
        return self._half[1]


def _zero_output(vocab_size: int, width: int) -> nn.Parameter:
    return nn.Parameter(torch.zeros(vocab_size, width))


def _layers(sizes: list[int], *, zero_last: bool) -> nn.Sequential:
    """Linear layers with ReLU between them, as the paper's MLP twist."""
    layers: list[nn.Module] = []
    for narrow, wide in zip(sizes, sizes[1:], strict=False):
        layers += [nn.Linear(narrow, wide), nn.ReLU()]
    if zero_last:
        layers.pop()
        nn.init.zeros_(layers[-1].weight)  # type: ignore[arg-type]
        nn.init.zeros_(layers[-1].bias)  # type: ignore[arg-type]
    return nn.Sequential(*layers)


def _twist(head: VocabularyHead, lm: BaseLM) -> Twist:
    head.to(_device(lm))
    return Twist(head, head)


def _device(lm: Any) -> torch.device:
    device: torch.device = getattr(lm, "device", torch.device("cpu"))
    return device


@register("twist", "linear")
def linear(lm: BaseLM) -> Twist:
    """One linear layer from the hidden state to log ψ over V."""
    return _twist(VocabularyHead(nn.Identity(), _zero_output(lm.vocab_size, lm.feature_size)), lm)


@register("twist", "mlp")
def mlp(lm: BaseLM, num_layers: int = 3, width: int | None = None) -> Twist:
    """An MLP with `num_layers` linear layers, the last of them over V; `width` defaults to the model's."""
    if num_layers < 2:
        raise ConfigError(f"twist 'mlp' needs num_layers of at least 2, not {num_layers}; use 'linear' for one")
    width = width or lm.feature_size
    trunk = _layers([lm.feature_size, *[width] * (num_layers - 1)], zero_last=False)
    return _twist(VocabularyHead(trunk, _zero_output(lm.vocab_size, width)), lm)


@register("twist", "tied")
def tied(lm: BaseLM, num_layers: int = 2, width: int | None = None) -> Twist:
    """A small network followed by the model's own unembedding: few parameters, and similar tokens share their twist."""
    if num_layers < 1:
        raise ConfigError(f"twist 'tied' needs num_layers of at least 1, not {num_layers}")
    unembedding = _unembedding(lm, "tied")
    sizes = [lm.feature_size, *[width or lm.feature_size] * (num_layers - 1), lm.feature_size]
    return _twist(VocabularyHead(_layers(sizes, zero_last=True), unembedding), lm)


class _Bottleneck(nn.Module):
    """Layer norm, `rank` dimensions, and from there into the unembedding's space: zero at the start."""

    def __init__(self, width: int, rank: int, scale: Tensor) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.down = nn.Linear(width, rank)
        self.up = nn.Linear(rank, scale.shape[0])
        nn.init.normal_(self.down.weight, std=width**-0.5)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)
        self.scale: Tensor
        self.register_buffer("scale", scale, persistent=False)

    def forward(self, features: Tensor) -> Tensor:
        """[..., d] to [..., k] through `rank` dimensions, in units of `scale` [k]."""
        inner: Tensor = self.up(self.down(self.norm(features)))
        return inner * self.scale


class _Value(nn.Module):
    """A linear function of the normalised features, zero at the start."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.linear = nn.Linear(width, 1)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)
        self.scale = width**-0.5

    def forward(self, features: Tensor) -> Tensor:
        """[..., 1]."""
        value: Tensor = self.linear(self.norm(features) * self.scale)
        return value


@register("twist", "low_rank")
def low_rank(lm: BaseLM, rank: int = 4) -> Twist:
    """The unembedding behind a bottleneck of `rank` dimensions, a bias per token, a value per prefix: for few samples."""
    return _behind_bottleneck(lm, "low_rank", rank, None)


@register("twist", "lexical", needs_token_log_phi=True)
def lexical(lm: BaseLM, rank: int = 4, token_log_phi: Tensor | None = None) -> Twist:
    """As low_rank, knowing what the potential says of each single token after the prompt: learns from fewer samples still.

    Args:
        lm: the base model.
        rank: dimensions of the bottleneck.
        token_log_phi: log φ(prompt + v) for every token v, [V]; None (when weights are about to be loaded) is all zero.
    """
    if token_log_phi is None:
        token_log_phi = torch.zeros(lm.vocab_size, dtype=torch.float64)
    return _behind_bottleneck(lm, "lexical", rank, _lexicon(token_log_phi.double().cpu()))


def _lexicon(log_phi: Tensor) -> Tensor:
    """Two features per token [V, 2]: log φ and φ, standardised and clipped, so that any potential fits one scale."""
    finite = log_phi.clamp_min(log_phi[log_phi.isfinite()].min() if bool(log_phi.isfinite().any()) else 0.0)

    def standardised(x: Tensor) -> Tensor:
        return ((x - x.mean()) / x.std().clamp_min(1e-6)).clamp(-8.0, 8.0)

    return torch.stack([standardised(finite), standardised(finite.exp())], -1).float()


def _behind_bottleneck(lm: BaseLM, name: str, rank: int, lexicon: Tensor | None) -> Twist:
    if rank < 1:
        raise ConfigError(f"twist {name!r} needs rank of at least 1, not {rank}")
    unembedding = _unembedding(lm, name)
    # Rows of norm one on average, so that one learning rate suits every model.
    scale = (1.0 / unembedding.float().norm(dim=-1).mean()).cpu().expand(lm.feature_size)
    if lexicon is not None:
        scale = torch.cat([scale, torch.full((lexicon.shape[1],), LEXICON_SCALE)])
    trunk = _Bottleneck(lm.feature_size, rank, scale)
    head = VocabularyHead(trunk, unembedding, value=_Value(lm.feature_size), lexicon=lexicon)
    return _twist(head, lm)


def _unembedding(lm: BaseLM, twist: str) -> Tensor:
    unembedding: Tensor | None = getattr(lm, "unembedding", None)
    if unembedding is None:
        raise ConfigError(f"twist {twist!r} needs a model with an output layer to borrow; use 'mlp' for this one")
    return unembedding
