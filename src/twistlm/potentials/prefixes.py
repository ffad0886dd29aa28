"""What a potential says of texts that are not finished: the one checked evaluation of prefixes."""

import torch
from torch import Tensor

from twistlm.core.errors import PotentialError
from twistlm.core.memory import in_pieces
from twistlm.core.progress import bar
from twistlm.models.base import Prompts
from twistlm.potentials.base import BasePotential, copied, evaluate
from twistlm.potentials.protocol import Potential

# Single tokens at a time.
ASKED = 4096
# Nats up to which a score is taken as it is; beyond, its logarithm counts, so that impossible prefixes (−inf) have one.
KNEE, FARTHEST = 40.0, 1e4


def scores_prefixes(potential: Potential | None) -> bool:
    """Whether a potential can say something of a text that is not finished."""
    return isinstance(potential, BasePotential) and potential.scores_prefixes


def prefix_scores(potential: Potential, prompts: Prompts, tokens: Tensor, conditions: Tensor | None = None) -> Tensor:
    """Scores of B prompts followed by the first tokens [B, t]: finite, float64 [B], without gradient.

    They grow with the chances of the finished text, as far as the potential can tell: a monotone function of what it
    says (`softened`). Equal prefixes are scored once.

    Raises:
        PotentialError: the potential scores no prefixes, raised, or returned NaN or another shape.
    """
    name = type(potential).__name__
    if not isinstance(potential, BasePotential) or not potential.scores_prefixes:
        raise PotentialError(f"{name} does not score texts that are not finished")
    first, index = _distinct(prompts, tokens, conditions)

    def score(part: slice) -> Tensor:
        chosen = first[part].to(tokens.device)
        told = None if conditions is None else conditions[chosen].clone()
        asked = copied([prompts[at] for at in first[part].tolist()])
        return potential.score_prefixes(asked, tokens[chosen].clone(), told)

    with torch.no_grad():
        scores = in_pieces(score, len(first), f"scoring prefixes by {name}")
    if scores.shape != (len(first),) or bool(scores.isnan().any()):
        raise PotentialError(f"{name}.score_prefixes must return {len(first)} numbers, none of them NaN")
    return softened(scores.detach().to(tokens.device, torch.float64))[index.to(tokens.device)]


def of_tokens(potential: Potential, prompt: Tensor, vocab_size: int) -> Tensor:
    """log φ [V] of the prompt followed by every single token."""
    parts = []
    with bar("asking φ about every token", vocab_size) as report:
        for tokens in torch.arange(vocab_size).unsqueeze(-1).split(ASKED):
            parts.append(evaluate(potential, [prompt] * len(tokens), tokens))
            report(sum(map(len, parts)), "")
    return torch.cat(parts)


def known_scores(
    potential: Potential | None, prompts: Prompts, tokens: Tensor, conditions: Tensor | None = None
) -> Tensor:
    """`prefix_scores`, or 0 of every prefix where there is no potential that could tell."""
    if potential is None or not scores_prefixes(potential):
        return torch.zeros(len(tokens), dtype=torch.float64, device=tokens.device)
    return prefix_scores(potential, prompts, tokens, conditions)


def softened(scores: Tensor) -> Tensor:
    """Scores with what lies far out brought near, ±inf too; strictly increasing up to ±10,000 nats."""
    far = scores.abs().clamp(KNEE, FARTHEST)
    return torch.where(scores.abs() <= KNEE, scores, scores.sign() * KNEE * (1.0 + torch.log(far / KNEE)))


def _distinct(prompts: Prompts, tokens: Tensor, conditions: Tensor | None) -> tuple[Tensor, Tensor]:
    """Where each distinct prefix occurs for the first time, and which of those each of the B is."""
    # Prompts that are equal are mostly one object.
    read = {id(prompt): tuple(prompt.tolist()) for prompt in {id(prompt): prompt for prompt in prompts}.values()}
    given = [()] * len(tokens) if conditions is None else conditions.tolist()
    found: dict[tuple[tuple[int, ...], ...], int] = {}
    first: list[int] = []
    index: list[int] = []
    for at, (prompt, new, told) in enumerate(zip(prompts, tokens.tolist(), given, strict=True)):
        number = found.setdefault((read[id(prompt)], tuple(new), tuple(told)), len(found))
        if number == len(first):
            first.append(at)
        index.append(number)
    return torch.tensor(first), torch.tensor(index)
