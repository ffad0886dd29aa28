"""The probability that the benchmark of rare events takes for exact."""

import pytest
import torch
from torch.nn.functional import pad

from benchmarks import rare
from twistlm.models.huggingface import load


def test_it_is_the_sum_over_every_way_to_begin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rare, "NUM_GIVEN", 2)
    lm, prompt = load("stories"), rare.PROMPT
    allowed = [int(lm.encode(word)[-1]) for word in rare.WORDS[:3]]
    total = 0.0
    for first in allowed:
        for second in allowed:
            tokens = torch.tensor([[first, second]])
            logits = lm.logits(lm.features([lm.encode(prompt)], tokens)).double().log_softmax(-1)[0]
            total += float((logits[0, first] + logits[1, second]).exp())
    # This reads the text at once, in float32; draws, and the sum, may be read by products of lower precision.
    assert rare.exact(lm, allowed) == pytest.approx(total, rel=0.06)
    one = lm.logits(lm.features([lm.encode(prompt)], pad(torch.zeros(1, 0).long(), (0, 1)))[:, -1]).double().softmax(-1)
    monkeypatch.setattr(rare, "NUM_GIVEN", 1)
    assert rare.exact(lm, allowed) == pytest.approx(float(one[0, allowed].sum()), rel=0.06)
