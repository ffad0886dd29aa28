"""The draw over V is exact."""

import pytest
import torch
from scipy import stats

from twistlm.core.kernels.categorical import CategoricalTable
from twistlm.core.rng import Rng


def test_matches_probabilities_by_chi_square_at_gpt2_size() -> None:
    vocab, count = 50_257, 400_000
    logits = 3 * torch.randn(1, vocab, generator=torch.Generator().manual_seed(0))
    table = CategoricalTable.from_logits(logits)
    rows = torch.zeros(count // 40, dtype=torch.long)
    drawn = torch.cat([Rng(k).categorical(table, rows) for k in range(40)])
    p = torch.softmax(logits[0].double(), -1)
    order = p.argsort(descending=True)
    common = order[p[order] * count >= 20]
    observed = torch.bincount(drawn, minlength=vocab)
    rest = count - int(observed[common].sum())
    table_observed = [*observed[common].tolist(), rest]
    table_expected = [*(count * p[common]).tolist(), count * float(1 - p[common].sum())]
    assert stats.chisquare(table_observed, table_expected, sum_check=False).pvalue > 1e-3


@pytest.mark.parametrize("place", [0, 255, 256, 30_000, 50_256])
def test_a_tail_token_keeps_its_probability(place: int) -> None:
    # Count the uniforms on a fine grid around the token's cell instead of waiting for a draw of probability 1e-9.
    vocab = 50_257
    logits = torch.zeros(1, vocab)
    logits[0, place] = torch.tensor(1e-9 * vocab).log()
    table = CategoricalTable.from_logits(logits)
    before = place / (vocab - 1) * (1 - 1e-9)
    grid = before + 1e-9 * torch.linspace(-20.0, 21.0, 41_001, dtype=torch.float64)
    inside = grid[(grid >= 0) & (grid < 1)]
    hits = (table.invert(inside, torch.zeros(len(inside), dtype=torch.long)) == place).sum()
    assert int(hits) == pytest.approx(1000, abs=30)


def test_impossible_outcomes_are_never_drawn() -> None:
    logits = torch.full((2, 700), -torch.inf)
    logits[0, [3, 699]] = 0.0
    table = CategoricalTable.from_logits(logits)
    edge = torch.tensor([0.0, 0.4999999, 0.5, 1 - 2**-53], dtype=torch.float64)
    assert table.invert(edge, torch.zeros(4, dtype=torch.long)).tolist() == [3, 3, 699, 699]
    assert table.log_total[1] == -torch.inf
    assert table.log_total[0] == pytest.approx(torch.tensor(2.0).log().item())


def test_terms_add_and_half_precision_is_widened() -> None:
    a, b = torch.randn(3, 300), torch.randn(3, 300)
    both = CategoricalTable.from_logits(a, b).probabilities()
    torch.testing.assert_close(both, torch.softmax((a + b).double(), -1), rtol=1e-5, atol=1e-9)
    half = CategoricalTable.from_logits(a.bfloat16(), b.bfloat16()).probabilities()
    torch.testing.assert_close(
        half, torch.softmax(a.bfloat16().double() + b.bfloat16().double(), -1), rtol=1e-5, atol=1e-9
    )


def test_rows_are_drawn_from_their_own_distribution() -> None:
    logits = torch.full((3, 5), -torch.inf)
    logits[torch.arange(3), torch.tensor([4, 0, 2])] = 1.0
    table = CategoricalTable.from_logits(logits)
    assert Rng(1).categorical(table, torch.tensor([2, 0, 0, 1])).tolist() == [2, 4, 4, 0]


def test_the_mode_is_the_likeliest_outcome() -> None:
    logits = torch.randn(50, 700, generator=torch.Generator().manual_seed(0))
    logits[0] = -torch.inf
    logits[0, 699] = 0.0
    assert torch.equal(CategoricalTable.from_logits(logits).mode, logits.argmax(-1))
