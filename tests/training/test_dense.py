"""Dense labels: with the exact value every loss stays where it was, and a fitted one is what the draws know."""

from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from tests.cases import Case, TablePotential, make_case
from twistlm.core.errors import ConfigError
from twistlm.core.rng import Rng
from twistlm.models.base import Prompts
from twistlm.sampling.mixture import Pool
from twistlm.sampling.sampler import Sampler
from twistlm.sampling.samples import Siblings
from twistlm.sampling.twisted import TwistedLM
from twistlm.training.config import TrainingConfig
from twistlm.training.criteria import negative_lower_bound
from twistlm.training.dense import Values, labelled
from twistlm.training.draws import Draws
from twistlm.training.losses import objective
from twistlm.training.scoring import score
from twistlm.training.sources import Batch, Setting
from twistlm.training.trainer import Trainer
from twistlm.twists.informed import FEWEST
from twistlm.twists.tabular import TabularHead

LOSSES = ("ctl", "gkl", "dpg", "sixo", "fudge", "mc_squared", "cd")


@dataclass(frozen=True)
class Telling(TablePotential):
    """Says of every prefix what its value is by the exact twist, less one nat."""

    case: Case | None = None
    exact: TwistedLM | None = None
    scores_prefixes = True

    def score_prefixes(self, prompts: Prompts, tokens: Tensor, conditions: Tensor | None = None) -> Tensor:
        assert self.case is not None
        assert self.exact is not None
        assert self.exact.twist is not None
        t = tokens.shape[1]
        missing = self.case.num_steps - t
        whole = torch.cat([tokens, torch.zeros((len(tokens), missing), dtype=torch.long)], -1)
        nodes = self.case.lm.features(prompts, whole)[:, t - 1]
        return self.exact.twist.head(nodes).gather(1, tokens[:, -1:]).squeeze(-1).double() - 1.0


def telling(case: Case, exact: TwistedLM) -> Telling:
    potential = Telling(case.potential.table, case.potential.vocab_size, case, exact)
    object.__setattr__(potential, "log_upper_bound", 0.0)
    return potential


def mean_log_phi(case: Case) -> TwistedLM:
    """With log ψ_t = E_p₀[log φ | s_1:t], which controlled decoding learns."""
    return TwistedLM(case.lm, TabularHead.twist(case.mean_log_phi), case.eos)


def whole(case: Case, optimum: TwistedLM) -> Batch:
    """Every sequence and every sibling, as a uniform draw, with the exact value of each prefix."""
    truth, model, vocab = case.truth, optimum, case.lm.vocab_size
    samples = truth.samples(model)
    shape = samples.tokens.shape
    logits = torch.log_softmax(model.lm.logits(model.lm.features(samples.prompts, samples.tokens)).double(), -1)
    log_p = logits.gather(-1, samples.tokens.unsqueeze(-1)).squeeze(-1) * samples.mask
    uniform = torch.log(torch.tensor(float(vocab))) * samples.mask
    tokens = torch.arange(vocab).expand(*shape, vocab)
    siblings = Siblings(tokens, logits + torch.log(torch.tensor(float(vocab))))
    samples = replace(samples, log_p=log_p, log_q=-uniform, siblings=siblings)
    exact = model.score(samples)
    assert exact.siblings is not None
    log_ratio = (log_p + uniform).cumsum(-1)
    # What begins with an end and goes on is no sequence.
    impossible = truth.log_p.isneginf().unsqueeze(-1)
    log_ratio = log_ratio.masked_fill(impossible, -torch.inf)
    values = Values(exact.log_psi.detach().double(), exact.siblings.detach().double())
    return Batch(samples, log_ratio[:, -1] + samples.log_phi, log_ratio, 1, values)


@pytest.mark.parametrize("loss", LOSSES)
def test_the_exact_value_leaves_the_optimum_where_it_was(loss: str) -> None:
    case = make_case()
    wanted = objective(loss)
    optimum = mean_log_phi(case) if wanted.labels == {"mean"} else case.optimal
    assert optimum.twist is not None
    batch, table = whole(case, optimum), optimum.twist.head.table.detach()  # type: ignore[attr-defined]
    if loss in ("gkl", "sixo"):
        # Of the ratio to p₀: the optimal twist over Z.
        table = table - case.truth.log_Z
    if wanted.probability:
        table = torch.logit(table.exp().clamp(1e-9, 1 - 1e-9))
    model = case.twisted_for(loss, table)
    assert model.twist is not None
    value = wanted(score(model, dict.fromkeys(wanted.roles, batch), normaliser=wanted.normaliser).scored)
    (gradient,) = torch.autograd.grad(value, list(model.twist.module.parameters()))
    assert float(gradient.abs().max()) < 1e-6
    other = case.twisted_for(loss, table + torch.randn(table.shape, dtype=table.dtype))
    assert other.twist is not None
    value = wanted(score(other, dict.fromkeys(wanted.roles, batch), normaliser=wanted.normaliser).scored)
    (gradient,) = torch.autograd.grad(value, list(other.twist.module.parameters()))
    assert float(gradient.abs().max()) > 1e-3


@pytest.mark.parametrize("eos", ["ignore", "absorb"])
def test_labels_are_values_where_the_potential_tells_them(eos: str) -> None:
    case = make_case(eos=eos)
    sampler = Sampler(case.twisted, telling(case, case.optimal), case.num_steps)
    pool = Pool.begun(Rng(1), sampler, [case.at], 3000).grown(Rng(2), sampler, [case.at], 3000)
    dense = labelled(Rng(3), sampler, pool, [case.at], 100_000)
    with torch.no_grad():
        exact = case.optimal.score(dense.samples)
    assert exact.siblings is not None
    going = dense.samples.mask
    assert float((dense.values.own - exact.log_psi)[going].abs().max()) < 0.25
    assert float((dense.values.siblings - exact.siblings)[going].abs().max()) < 0.25
    # At the end, and where a text ends, it is φ itself.
    assert torch.equal(dense.values.own[:, -1], dense.samples.log_phi)
    assert dense.samples.siblings is not None
    assert bool((dense.values.own <= 0).all())


def test_a_few_draws_that_outweigh_the_rest_do_not_silence_the_fit() -> None:
    """As where a target is rare: two draws are effective, of which no fit is made, and what the others know is."""
    case = make_case()
    sampler = Sampler(case.twisted, telling(case, case.optimal), case.num_steps)
    pool = Pool.begun(Rng(1), sampler, [case.at], 3000)
    log_phi = pool.samples.log_phi.clone()
    log_phi[log_phi.argsort()[-3:]] += 12.0
    pool = replace(pool, samples=replace(pool.samples, log_phi=log_phi))
    assert Draws.of(pool, [case.at]).effective < FEWEST
    dense = labelled(Rng(3), sampler, pool, [case.at], 100_000)
    assert min(dense.record["gains"]) > 0.3


@pytest.mark.parametrize("eos", ["ignore", "absorb"])
def test_labels_of_controlled_decoding_are_means_of_log_phi(eos: str) -> None:
    case = make_case(eos=eos)
    exact = mean_log_phi(case)
    sampler = Sampler(case.twisted, telling(case, exact), case.num_steps)
    pool = Pool.begun(Rng(1), sampler, [case.at], 3000).grown(Rng(2), sampler, [case.at], 3000)
    dense = labelled(Rng(3), sampler, pool, [case.at], 100_000, mean_log=True)
    with torch.no_grad():
        found = exact.score(dense.samples)
    assert found.siblings is not None
    going = dense.samples.mask
    assert float((dense.values.own - found.log_psi)[going].abs().max()) < 0.25
    assert float((dense.values.siblings - found.siblings)[going].abs().max()) < 0.25
    assert torch.equal(dense.values.own[:, -1], dense.samples.log_phi)


@pytest.mark.nightly
def test_controlled_decoding_learns() -> None:
    case = make_case()
    model, exact = TwistedLM(case.lm, TabularHead.twist(torch.zeros_like(case.lm.table)), "ignore"), mean_log_phi(case)
    setting = Setting(Sampler(model, telling(case, exact), case.num_steps), [case.at])
    config = TrainingConfig(
        "cd", "dense", "dense", num_updates=400, learning_rate=0.05, weight_decay=0.0, informed="off", patience=None
    )
    Trainer(Rng(0), setting, config, negative_lower_bound([case.at], num_runs=512)).train()
    everything, p = case.truth.samples(case.base), case.truth.log_p.exp()
    with torch.no_grad():
        found, wanted = model.score(everything).log_psi, exact.score(everything).log_psi
    assert float((p @ (found - wanted).square()).max()) < 0.02
    assert float((p @ wanted.square()).min()) > 0.5


@pytest.mark.parametrize("loss", ["dpg", *(pytest.param(name, marks=pytest.mark.nightly) for name in ("gkl", "ctl"))])
def test_it_learns(loss: str) -> None:
    case = make_case()
    model = TwistedLM(case.lm, TabularHead.twist(torch.zeros_like(case.lm.table)), "ignore")
    setting = Setting(Sampler(model, telling(case, case.optimal), case.num_steps), [case.at])
    config = TrainingConfig(
        loss, "dense", "dense", num_updates=120, learning_rate=0.05, weight_decay=0.0, informed="off", patience=None
    )
    Trainer(Rng(0), setting, config, negative_lower_bound([case.at], num_runs=512)).train()
    before, after = case.truth.kl_target_q(case.base), case.truth.kl_target_q(model)
    assert after < 0.2 * before


def test_losses_that_compare_steps_are_refused() -> None:
    for loss in ("pcl", "rl", "nvi"):
        with pytest.raises(ConfigError, match=r"labels prefixes by themselves|cannot serve"):
            TrainingConfig(loss, "dense", "dense")
    with pytest.raises(ConfigError, match="labels of two kinds"):
        TrainingConfig("ctl + cd", "dense", "dense")
    with pytest.raises(ConfigError, match="name it alone"):
        TrainingConfig("dpg", "dense+base")
