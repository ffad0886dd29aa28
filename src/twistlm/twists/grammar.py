"""The twist of a grammar: which tokens keep the text possible. It goes around another one, that of an automaton::

    log ψ_t(s_1:t) = log ψ'_t(s_1:t) if the grammar allows a text that begins with s_1:t, else −∞

What takes too many tokens to complete is not known to it, so that particles may die at the limit; no text that is
complete by then is ruled out, so that SMC is unbiased.
"""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from twistlm.automata.grammar import Grammar
from twistlm.core.kernels.normaliser import of_head
from twistlm.models.base import Decoder, DecoderState, Prompts
from twistlm.twists.base import Twist

# Stands where nothing has been written yet.
NOTHING = -1


def masked(twist: Twist, grammars: Sequence[Grammar], num_tokens: int) -> Twist:
    """A twist under grammars, for at most `num_tokens` tokens; itself if there are none."""
    if not grammars:
        return twist
    assert twist.decoder is not None
    head = MaskedHead(twist, grammars, num_tokens)
    return Twist(head, head, MaskedDecoder(twist.decoder, num_tokens))


def unmasked(twist: Twist) -> Twist:
    """The twist that grammars were put around."""
    return twist.head.inner if isinstance(twist.head, MaskedHead) else twist


class MaskedDecoder(nn.Module):
    """Features are those of the twist within, [U, k], and the tokens so far, [U, T], with `NOTHING` after them: int32.

    Given sequences have T² of them each, so half the bytes count; the automaton's are integers too.
    """

    def __init__(self, inner: Decoder, num_tokens: int) -> None:
        super().__init__()
        self.inner, self.num_tokens = inner, num_tokens

    def start(self, prompts: Prompts, capacity: tuple[int, int] = (0, 0)) -> DecoderState:
        """Nothing has been written yet, whatever the prompt."""
        states = self.inner.start(prompts, capacity).features.int()
        return DecoderState(torch.cat([states, states.new_full((len(states), self.num_tokens), NOTHING)], 1))

    def advance(self, state: DecoderState, parents: Tensor, tokens: Tensor) -> DecoderState:
        """One token further."""
        states, written = state.features[:, : -self.num_tokens], state.features[parents, -self.num_tokens :]
        end = (written != NOTHING).sum(1, keepdim=True)
        after = self.inner.advance(DecoderState(states.long()), parents, tokens).features.int()
        return DecoderState(torch.cat([after, written.scatter(1, end, tokens.int().unsqueeze(1))], 1))

    def features(self, prompts: Prompts, tokens: Tensor) -> Tensor:
        """Before each of tokens [B, T]: [B, T, k + T]."""
        count = tokens.shape[1]
        before = torch.ones((count, self.num_tokens), dtype=torch.bool, device=tokens.device).tril(-1)
        whole = nn.functional.pad(tokens.int(), (0, self.num_tokens - count), value=NOTHING).unsqueeze(1)
        written = whole.expand(-1, count, -1).masked_fill(~before, NOTHING)
        return torch.cat([self.inner.features(prompts, tokens).int(), written], -1)


class MaskedHead(nn.Module):
    """log ψ of the twist within, −∞ where a grammar forbids the token."""

    shrinkage: Tensor

    def __init__(self, inner: Twist, grammars: Sequence[Grammar], num_tokens: int) -> None:
        super().__init__()
        self.register_buffer("shrinkage", torch.ones(()), persistent=False)
        self.inner, self.grammars, self.num_tokens = inner, tuple(grammars), num_tokens

    def forward(self, features: Tensor) -> Tensor:
        """log ψ [..., V] of features [..., k + T]."""
        within, written = features[..., : -self.num_tokens].long(), features[..., -self.num_tokens :]
        log_psi = self.inner.head(within)
        rows = log_psi.reshape(-1, log_psi.shape[-1])
        distinct, index = written.reshape(-1, written.shape[-1]).unique(dim=0, return_inverse=True)
        # A row at a time: [D, V] of them may be more than there is room for.
        order = index.argsort()
        groups = order.split(index.bincount(minlength=len(distinct)).tolist())
        for prefix, group in zip(_prefixes(distinct), groups, strict=True):
            for grammar in self.grammars:
                forbidden = ~grammar.allowed(prefix).to(rows.device)
                rows[group] = rows[group].masked_fill(forbidden, -torch.inf)
        return rows.view_as(log_psi)

    def gather(self, features: Tensor, tokens: Tensor) -> Tensor:
        """log ψ of the chosen tokens [...]."""
        features = features.expand(*tokens.shape, features.shape[-1])
        within, written = features[..., : -self.num_tokens].long(), features[..., -self.num_tokens :]
        pairs = zip(_prefixes(written.reshape(-1, written.shape[-1])), tokens.reshape(-1).tolist(), strict=True)
        allowed = [all(grammar.allows(prefix, token) for grammar in self.grammars) for prefix, token in pairs]
        forbidden = ~torch.tensor(allowed, device=tokens.device).view(tokens.shape)
        return self.inner.head.gather(within, tokens).masked_fill(forbidden, -torch.inf)

    def start_at(self, log_psi: float) -> None:
        """Nothing: this twist is never trained."""

    def log_normaliser(self, features: Tensor, logits: Callable[[slice], Tensor], rows: int) -> Tensor:
        """log Σ_v p₀(v) ψ(prefix, v) [n], −inf where nothing can follow."""
        return of_head(self, features, logits, rows)


def _prefixes(written: Tensor) -> Iterator[list[int]]:
    """The tokens in each row."""
    lengths = (written != NOTHING).sum(1).tolist()
    for row, length in zip(written.tolist(), lengths, strict=True):
        yield row[:length]
