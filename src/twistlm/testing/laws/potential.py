"""What every potential keeps."""

import math

import torch
from torch import Tensor

from twistlm.models.base import BaseLM, Prompts
from twistlm.potentials.base import bound_slack, copied
from twistlm.potentials.conditions import is_conditional
from twistlm.potentials.prefixes import prefix_scores, scores_prefixes
from twistlm.potentials.protocol import ConditionalPotential, Potential
from twistlm.sampling.twisted import TwistedLM
from twistlm.testing.laws.trial import Trial, close, decoded, first, stories


def check_potential(
    potential: Potential,
    lm: BaseLM | None = None,
    *,
    prompt: str | Tensor = "Once upon a time",
    tokens: Tensor | None = None,
    conditions: Tensor | None = None,
    tolerance: float = 1e-4,
) -> None:
    """Hold a potential against what sampling, training and certificates take for granted.

    log φ is one number or −∞ for every sequence, the same each time, whatever else is in the batch, and within the
    bounds that the potential declares; nothing that it is given is changed.

    Args:
        potential: φ; it is bound to `lm` here.
        lm: the base model; the bundled small one by default.
        prompt: text or tokens.
        tokens: sequences [B, T] to try it on, at least two; by default the model writes twelve of eight tokens. Choose
            some that matter: of φ = 0 and of the largest φ.
        conditions: what each sequence is given [B, c], for a potential that differs by a condition.
        tolerance: of log φ in nats (relative where it is large), between a batch and its parts.

    Raises:
        AssertionError: a law is broken; the message says which, for what sequence, and how to mend it.
    """
    lm = stories() if lm is None else lm
    trial = Trial(f"potential {type(potential).__name__}")
    first_prompt = lm.encode(prompt) if isinstance(prompt, str) else prompt
    if tokens is None:
        tokens = decoded(TwistedLM(lm, None, "ignore"), [first_prompt] * 12, 8)[0].tokens.cpu()
    prompts = [first_prompt] * len(tokens)
    bound = trial.result(
        lambda: potential.bind(lm), "it can be bound", "bind(lm)", "Return a copy that reads sequences of the model"
    )
    asked = _Asked(trial, bound, lm)
    whole = asked(prompts, tokens, conditions)
    _same_again(asked, prompts, tokens, conditions, whole)
    _within_bounds(asked, prompts, tokens, whole)
    _batch_is_its_parts(asked, prompts, tokens, conditions, whole, tolerance)
    if scores_prefixes(bound):
        _scores_prefixes(trial, bound, prompts, tokens, conditions)
    if is_conditional(bound):
        _scores_what_it_draws(asked, bound, prompts, tokens, tolerance)


def _scores_prefixes(
    trial: Trial, bound: Potential, prompts: Prompts, tokens: Tensor, conditions: Tensor | None
) -> None:
    """What it says of a text that is not finished is a number, the same each time."""
    begun = tokens[:, : max(1, tokens.shape[1] // 2)]
    given = f"score_prefixes of the first {begun.shape[1]} of {tokens.shape[1]} tokens"
    how = "Return a number for each text, or say that it scores none (scores_prefixes)"
    one, again = (
        trial.result(
            lambda: prefix_scores(bound, prompts, begun, conditions), "unfinished texts have scores", given, how
        )
        for _ in range(2)
    )
    trial.require(one.equal(again), "a score is the same each time", given, how)


class _Asked:
    """The potential, with the laws that hold for every call."""

    def __init__(self, trial: Trial, bound: Potential, lm: BaseLM) -> None:
        self.trial, self.bound, self.lm = trial, bound, lm

    def __call__(self, prompts: Prompts, tokens: Tensor, conditions: Tensor | None) -> Tensor:
        """log φ [B]."""
        mine, prompts_before = tokens.clone(), copied(prompts)
        given = f"log_phi of {len(tokens)} sequences of {tokens.shape[1]} tokens"
        if is_conditional(self.bound):
            bound, to = self.bound, conditions
            self.trial.require(
                to is not None,
                "there is something to try it on",
                "no conditions were given",
                "Pass conditions=… [B, c] to check_potential",
            )
            assert to is not None
            log_phi = self._result(lambda: bound.log_phi_given(prompts, mine, to), given)
        else:
            log_phi = self._result(lambda: self.bound.log_phi(prompts, mine), given)
        law = "log φ is a tensor of one number for each sequence"
        shape = list(log_phi.shape) if isinstance(log_phi, Tensor) else type(log_phi).__name__
        self.trial.require(shape == [len(tokens)], law, f"{given} gave {shape}", f"Return shape [{len(tokens)}]")
        self.trial.require(
            log_phi.is_floating_point(), law, f"{given} gave {log_phi.dtype}", "Return float64, or float32 at least"
        )
        log_phi = log_phi.detach().double().cpu()
        wrong = log_phi.isnan() | (log_phi == math.inf)
        self.trial.require(
            not bool(wrong.any()),
            "log φ is a number or −∞",
            f"it is {self.at(wrong, log_phi, prompts, tokens)}",
            "Clamp before the logarithm, and let φ = 0 be −∞ (see logsigmoid)",
        )
        untouched = bool(mine.equal(tokens)) and all(map(torch.equal, prompts, prompts_before))
        self.trial.require(
            untouched,
            "what it is given stays as it is",
            f"{given} changed its prompts or tokens",
            "Work on copies: tokens.clone()",
        )
        return log_phi

    def _result(self, function, given: str) -> Tensor:  # type: ignore[no-untyped-def]
        result: Tensor = self.trial.result(
            function, "log φ exists for every sequence", given, "Return −∞ for what is impossible, do not raise"
        )
        return result

    def at(self, wrong: Tensor, log_phi: Tensor, prompts: Prompts, tokens: Tensor) -> str:
        """The first wrong value, and of which sequence; "" if none is."""
        if not bool(wrong.any()):
            return ""
        row = int(wrong.nonzero()[0])
        return f"{log_phi[row].item():.6g} for {self.text(prompts[row], tokens[row])}"

    def text(self, prompt: Tensor, tokens: Tensor) -> str:
        """A sequence as a reader knows it."""
        try:
            return repr(self.lm.decode([torch.cat([prompt.cpu(), tokens.cpu()])])[0])
        except Exception:
            return f"the tokens {[*prompt.tolist(), *tokens.tolist()]}"


def _same_again(asked: _Asked, prompts: Prompts, tokens: Tensor, conditions: Tensor | None, whole: Tensor) -> None:
    again = asked(prompts, tokens, conditions)
    wrong = again != whole
    asked.trial.require(
        not bool(wrong.any()),
        "the same sequence has the same log φ, bit for bit",
        f"the second time it is {asked.at(wrong, again, prompts, tokens)}, not {whole[wrong][:1].tolist()}",
        "Draw nothing at random: put the network into eval mode, and keep no state between calls",
    )


def _within_bounds(asked: _Asked, prompts: Prompts, tokens: Tensor, whole: Tensor) -> None:
    upper, lower = asked.bound.log_upper_bound, getattr(asked.bound, "log_lower_bound", None)
    for bound, name, sign in ((upper, "log_upper_bound", 1), (lower, "log_lower_bound", -1)):
        if bound is None:
            continue
        slack = bound_slack(asked.bound, name)
        # A bound that is no number bounds nothing.
        wrong = ~(sign * whole <= sign * bound + slack)
        asked.trial.require(
            not bool(wrong.any()),
            f"{name} is kept",
            f"log φ is {asked.at(wrong, whole, prompts, tokens)}, and the bound {bound:g}",
            f"Widen {name}, or set it to None: exact samples and intervals rest on it",
        )


def _batch_is_its_parts(
    asked: _Asked, prompts: Prompts, tokens: Tensor, conditions: Tensor | None, whole: Tensor, tolerance: float
) -> None:
    count = len(tokens)
    law = "a batch is its sequences, each for itself"
    remedy = "Let no sequence see another: no statistics over the batch, and padding masked"
    asked.trial.require(
        count > 1, "there is something to try it on", f"{count} sequences were given", "Give at least two"
    )
    alone = torch.cat(
        [
            asked(prompts[k : k + 1], tokens[k : k + 1], None if conditions is None else conditions[k : k + 1])
            for k in range(count)
        ]
    )
    backwards = torch.arange(count).flip(0)
    turned = asked(
        [prompts[k] for k in backwards], tokens[backwards], None if conditions is None else conditions.flip(0)
    )
    for values, how in ((alone, "alone"), (turned.flip(0), "in another order")):
        wrong = ~close(values, whole, tolerance)
        asked.trial.require(
            not bool(wrong.any()),
            law,
            f"{how} it is {asked.at(wrong, values, prompts, tokens)}, in a batch {whole[wrong][:1].tolist()}",
            remedy,
        )


def _scores_what_it_draws(
    asked: _Asked, bound: ConditionalPotential, prompts: Prompts, tokens: Tensor, tolerance: float
) -> None:
    """`draw_condition` says of its conditions what `log_phi_given` says."""
    count = len(tokens)
    following = tokens[:, :1].expand(count, bound.num_following)
    uniforms = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    log_p = torch.full(following.shape, -1.0, dtype=torch.float64)
    given, log_phi = asked.trial.result(
        lambda: bound.draw_condition(uniforms, prompts, tokens, following, log_p),
        "conditions can be drawn",
        f"draw_condition of {count} sequences",
        "See potentials.protocol.ConditionalPotential",
    )
    asked.trial.require(
        list(given.shape) == [count, bound.num_condition],
        "a condition has num_condition tokens",
        f"draw_condition gave {list(given.shape)}",
        f"Return [{count}, {bound.num_condition}]",
    )
    if bound.num_following:
        # log φ of a condition that is read from what follows is the model's own log p of it, which was made up here.
        return
    scored = asked(prompts, tokens, given)
    wrong = ~close(log_phi.double().cpu(), scored, tolerance)
    asked.trial.require(
        not bool(wrong.any()),
        "draw_condition and log_phi_given agree",
        f"the one says {log_phi[wrong.to(log_phi.device)][:1].tolist()}, the other {scored[wrong][:1].tolist()} of "
        f"sequence {first(wrong)}",
        "Return log φ of the very condition that was drawn",
    )
