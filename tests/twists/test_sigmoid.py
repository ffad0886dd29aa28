import pytest
import torch

from tests.cases import Case
from twistlm.core.errors import ConfigError
from twistlm.core.rng import Rng
from twistlm.potentials import Function
from twistlm.sampling.target import Target
from twistlm.sampling.twisted import TwistedLM
from twistlm.twists.sigmoid import probability
from twistlm.twists.tabular import TabularHead


def test_it_starts_as_one_half_everywhere_which_is_the_base_model(case: Case) -> None:
    twist = probability(TabularHead.twist(torch.zeros_like(case.lm.table)))
    assert torch.equal(twist.head(torch.arange(3)).exp(), torch.full((3, 3), 0.5, dtype=torch.float64))
    assert case.truth.kl_target_q(TwistedLM(case.lm, twist, case.eos)) == pytest.approx(
        case.truth.kl_target_q(case.base)
    )


def test_parts_agree_and_shrinkage_reaches_the_inner_head(case: Case) -> None:
    table = 3 * torch.randn(case.lm.table.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    head = probability(TabularHead.twist(table)).head
    rows = torch.arange(5)
    whole = head(rows)
    assert (whole < 0).all()
    torch.testing.assert_close(head.gather(rows, rows % 3), whole[rows, rows % 3])
    logits = case.lm.table[rows]
    found = head.log_normaliser(rows, lambda part: logits[part], 2)
    torch.testing.assert_close(found, torch.logsumexp(logits.log_softmax(-1) + whole, -1))
    head.shrinkage.fill_(0.0)
    assert (head(rows) == head(rows)[0, 0]).all()


def test_a_potential_that_may_exceed_one_is_refused() -> None:
    target = Target("stories", Function(lambda texts: [1.0] * len(texts)), "Once", 2)
    with pytest.raises(ConfigError, match="needs φ ≤ 1"):
        target.build_twist(Rng(0), "linear", {}, is_probability=True)
