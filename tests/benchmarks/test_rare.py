"""The probability that the benchmark of rare events takes for exact."""

import pytest
import torch

from benchmarks import rare
from twistlm.models.huggingface import load


def test_it_is_the_sum_over_every_way_to_begin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rare, "NUM_GIVEN", 2)
    lm, prompt = load("stories"), rare.PROMPT
    allowed = [int(lm.encode(word)[-1]) for word in rare.WORDS[:3]]
    total, alone = 0.0, 0.0
    for first in allowed:
        # One way at a time, token by token as draws are read: at once, in float32, the same text has another log p.
        state = lm.start([lm.encode(prompt)])
        log_p = lm.logits(state.features).double().log_softmax(-1)[0, first]
        state = lm.advance(state, torch.tensor([0]), torch.tensor([first]))
        following = lm.logits(state.features).double().log_softmax(-1)[0]
        alone += float(log_p.exp())
        total += sum(float((log_p + following[second]).exp()) for second in allowed)
    assert rare.exact(lm, allowed) == pytest.approx(total, rel=1e-3)
    monkeypatch.setattr(rare, "NUM_GIVEN", 1)
    assert rare.exact(lm, allowed) == pytest.approx(alone, rel=1e-3)
