"""The twist of a hard constraint: what of it can be met in the tokens that are left, exactly, and how likely that is::

    log ψ_t(s_1:t) = log V_t(state),   V_T(state) = 1[accepting],   V_t(state) = Σ_c p̂(c | state) V_{t+1}(state after c)

with p̂(c | state) the chance that the base model takes a token of class c there, as far as draws have shown it. V is
exactly the mass of completions under that proxy of p₀. It is 0 where, and only where, no completion exists: no particle
dies of the constraint, and SMC is unbiased for any p̂ > 0. The idea of a tractable proxy that makes the lookahead of an
automaton exact is that of Ctrl-G (Zhang et al. 2024, arXiv:2406.13892), with a hidden Markov model as the proxy; here
it is a table of the automaton's own states.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from twistlm.automata.tokens import TokenAutomaton
from twistlm.core.errors import ConfigError
from twistlm.core.kernels.normaliser import of_head
from twistlm.models.base import DecoderState, Prompts
from twistlm.twists.base import Twist
from twistlm.twists.grammar import masked

# What no draw has shown is as likely as the whole vocabulary makes it, by so many draws' worth of weight.
PRIOR = 1.0
# No class of tokens is less likely than that under the proxy, or what is possible would be impossible.
LEAST = 1e-12


def build(
    automaton: TokenAutomaton,
    num_tokens: int,
    frequencies: Tensor | None = None,
    *,
    absorbing: bool = True,
    begin: Tensor | None = None,
) -> Twist:
    """The twist of a constraint on at most `num_tokens` tokens.

    Args:
        automaton: the constraint.
        num_tokens: T.
        frequencies: p̂ [S + 2, C], positive; None for as likely as a class has tokens.
        absorbing: after EOS nothing is drawn any more; False where it is drawn again and again.
        begin: the states in which the texts of a target's prompts begin [n]; None for the first.

    Raises:
        ConfigError: the constraint cannot be met within so many tokens; the message says how many it takes.
    """
    if frequencies is None:
        sizes = torch.bincount(automaton.token_class, minlength=automaton.following.shape[1]).double()
        frequencies = (sizes / sizes.sum()).expand(automaton.following.shape)
    log_values = completions(automaton, num_tokens, frequencies, absorbing=absorbing)
    for state in [0] if begin is None else begin.unique().tolist():
        if log_values[0, state].isneginf():
            raise ConfigError(_too_short(automaton, num_tokens, state))
    head = AutomatonHead(automaton, log_values)
    return masked(Twist(head, head, AutomatonDecoder(automaton)), automaton.grammars, num_tokens)


def completions(automaton: TokenAutomaton, num_tokens: int, frequencies: Tensor, *, absorbing: bool = True) -> Tensor:
    """log V_t(state) for every t, float64 [T + 1, S + 2]; the arguments are those of `build`."""
    fewest, most = automaton.lengths
    log_p = frequencies.double().clamp_min(LEAST).log()
    values = torch.full((num_tokens + 1, automaton.num_states), -torch.inf, dtype=torch.float64)
    values[-1, automaton.accepting] = 0.0
    if not fewest <= num_tokens <= most:
        values[-1, : automaton.ended] = -torch.inf
    states = torch.arange(automaton.num_states)
    for t in range(num_tokens - 1, -1, -1):
        after = reached(automaton, values, torch.full_like(states, t), states)
        values[t] = torch.logsumexp(log_p + after, -1)
        if absorbing:
            values[t, automaton.ended] = 0.0
    return values


def reached(automaton: TokenAutomaton, log_values: Tensor, t: Tensor, state: Tensor) -> Tensor:
    """log V_{t+1} of the state after a token of each class, at t [n] in state [n]: [n, C]."""
    after = log_values[t.unsqueeze(-1) + 1, automaton.following[state]]
    fewest, most = automaton.lengths
    if fewest == 0 and most >= len(log_values) - 1:
        return after
    ends = torch.arange(after.shape[1]) == (-1 if automaton.eos is None else automaton.eos)
    too_long, ends_wrongly = t + 1 > most, (t < fewest) | (t > most)
    refused = torch.where(ends, ends_wrongly.unsqueeze(-1), too_long.unsqueeze(-1))
    return after.masked_fill(refused & (state < automaton.ended).unsqueeze(-1), -torch.inf)


def smoothed(counts: Tensor, overall: Tensor) -> Tensor:
    """p̂ [S + 2, C] of what the base model's probability was summed to at each state [S + 2, C].

    Args:
        counts: Σ of p₀(class | prefix) over the prefixes that were seen in each state.
        overall: the mean of p₀(class | prefix) over all of them [C]: what is known of states that none were in.
    """
    seen = counts.sum(-1, keepdim=True)
    return ((counts + PRIOR * overall) / (seen + PRIOR)).clamp_min(LEAST)


class AutomatonDecoder(nn.Module):
    """Reads tokens as the automaton does: features are (tokens so far, state) [U, 2], integers."""

    def __init__(self, automaton: TokenAutomaton) -> None:
        super().__init__()
        self.automaton = automaton

    def start(self, prompts: Prompts, capacity: tuple[int, int] = (0, 0)) -> DecoderState:
        """Nothing has been written yet."""
        begin = self.automaton.begin(prompts)
        return DecoderState(torch.stack([torch.zeros_like(begin), begin], 1).to(prompts[0].device))

    def advance(self, state: DecoderState, parents: Tensor, tokens: Tensor) -> DecoderState:
        """One token further."""
        before = state.features[parents]
        automaton = self.automaton
        classes = automaton.token_class.to(tokens.device)[tokens]
        after = automaton.following.to(tokens.device)[before[:, 1], classes]
        return DecoderState(torch.stack([before[:, 0] + 1, after], 1))

    def features(self, prompts: Prompts, tokens: Tensor) -> Tensor:
        """(tokens before, state before) each of tokens [B, T]: [B, T, 2]."""
        states = self.automaton.walk(tokens, self.automaton.begin(prompts))[:, :-1].to(tokens.device)
        return torch.stack([torch.arange(tokens.shape[1], device=tokens.device).expand_as(states), states], -1)


class AutomatonHead(nn.Module):
    """log V_{t+1} of the state after each token."""

    shrinkage: Tensor

    def __init__(self, automaton: TokenAutomaton, log_values: Tensor) -> None:
        super().__init__()
        self.register_buffer("shrinkage", torch.ones(()), persistent=False)
        self.automaton, self.log_values = automaton, log_values.float()

    def forward(self, features: Tensor) -> Tensor:
        """log ψ [..., V] of features [..., 2]; those that are equal are worked out once."""
        distinct, index = features.reshape(-1, 2).unique(dim=0, return_inverse=True)
        by_class = reached(self.automaton, self.log_values, *distinct.cpu().unbind(-1))
        log_psi = by_class[:, self.automaton.token_class].to(features.device)
        return log_psi[index].view(*features.shape[:-1], -1)

    def gather(self, features: Tensor, tokens: Tensor) -> Tensor:
        """log ψ of the chosen tokens [...]."""
        t, state = features.expand(*tokens.shape, 2).reshape(-1, 2).cpu().unbind(-1)
        classes = self.automaton.token_class[tokens.cpu()].reshape(-1, 1)
        return (
            reached(self.automaton, self.log_values, t, state).gather(1, classes).view(tokens.shape).to(tokens.device)
        )

    def start_at(self, log_psi: float) -> None:
        """Nothing: this twist is never trained."""

    def log_normaliser(self, features: Tensor, logits: Callable[[slice], Tensor], rows: int) -> Tensor:
        """log Σ_v p₀(v) ψ(prefix, v) [n], −inf where nothing can follow."""
        return of_head(self, features, logits, rows)


def _too_short(automaton: TokenAutomaton, num_tokens: int, begin: int) -> str:
    """Why nothing of `num_tokens` tokens satisfies the constraint."""
    fewest, most = automaton.lengths
    if automaton.is_empty:
        return "nothing satisfies the constraint with this tokenizer; check its pattern, or the parts that contradict"
    if fewest > num_tokens:
        return f"the constraint asks for at least {fewest} tokens and num_tokens is {num_tokens}; raise num_tokens"
    if begin == automaton.dead:
        return "nothing satisfies the constraint after a prompt that ends inside a word; end it with a space, say"
    needed = automaton.fewest_tokens(begin)
    if needed is None or needed > most:
        return f"nothing of {fewest} to {most:g} tokens satisfies the constraint; allow other lengths"
    if needed > num_tokens:
        return f"the constraint takes at least {needed} tokens and num_tokens is {num_tokens}; raise num_tokens"
    return (
        f"no text of exactly {num_tokens} tokens satisfies the constraint, and none can end before, since EOS does not "
        "end a text here; choose another num_tokens"
    )
