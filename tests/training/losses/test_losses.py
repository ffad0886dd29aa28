"""Each loss has zero gradient at its optimum under exact weights, and training on the table reaches it."""

import re
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from tests.cases import Case, samples_of
from twistlm.core.errors import ConfigError
from twistlm.core.registry import available, lookup
from twistlm.core.rng import Rng
from twistlm.sampling.exact.budget import Budget
from twistlm.sampling.exact.collect import collect
from twistlm.sampling.proposals import Proposal, base, twist_induced
from twistlm.sampling.sampler import Sampler, WorkerContext
from twistlm.sampling.samples import Samples
from twistlm.sampling.smc import Keep
from twistlm.sampling.twisted import TwistedLM
from twistlm.testing import check_loss
from twistlm.testing.laws.loss import expectation, expected_log_phi, ratio
from twistlm.training.losses import objective
from twistlm.training.losses.dpg import dpg
from twistlm.training.scoring import score
from twistlm.training.sources import Batch, Setting, get_source, independent
from twistlm.twists.tabular import TabularHead

LOSSES = list(available("loss"))
# These learn σ(s_1:t) / p₀(s_1:t), the optimal twist divided by Z.
RATIO = ("gkl", "sixo")
# These fix the scale of every ψ_t; CTL leaves one constant per step open, DPG a function of the prefix.
SCALED = (*RATIO, "cd", "fudge", "mc_squared", "pcl", "rl")
# These need whole-batch steps: plain gradient descent on them is slow.
BY_LBFGS = ("dpg", "mc_squared")
SUM = "0.7*ctl + 0.3*rl"


def optimum(case: Case, name: str) -> TwistedLM:
    log_psi = case.mean_log_phi if name == "cd" else case.optimal.twist.head.table.detach()
    if name in RATIO:
        log_psi = log_psi - float(case.truth.log_Z)
    if name == "fudge":
        # Where φ = 1 for certain, the logit is infinite.
        log_psi = (log_psi - torch.log(-torch.expm1(log_psi))).clamp(-30, 30)
    return case.twisted_for(name, log_psi)


def enumerated(case: Case) -> Batch:
    """All sequences weighted by their exact probabilities: a Monte Carlo batch without noise.

    Draws with log p₀/q = 0 and multiplicity p₀ are the same as each sequence once with q uniform.
    """
    truth = case.truth
    possible = ~truth.log_p.isneginf()
    tokens = truth.tokens[possible]
    count, num_steps = tokens.shape
    samples = Samples(
        [case.prompt] * count,
        tokens,
        case.base.mask(tokens),
        torch.zeros(count, num_steps),
        torch.zeros(count, num_steps),
        truth.log_phi[possible],
    )
    # Every prefix's weights sum to p₀(prefix) over its continuations.
    log_p = truth.log_p[possible]
    return Batch(samples, log_p + samples.log_phi, log_p.unsqueeze(-1).expand(-1, num_steps))


def loss_of(model: TwistedLM, name: str, batch: Batch) -> torch.Tensor:
    wanted = objective(name)
    scored = score(model, dict.fromkeys(wanted.roles, batch), normaliser=wanted.normaliser).scored
    if wanted.on_policy:
        # As if drawn from the proposal as it is: every sequence once, weighted by q.
        found = model.densities(batch.samples, twist_induced)
        weights = found.log_q.sum(-1).exp().unsqueeze(-1).expand_as(found.log_q)
        scored["drawn"] = replace(scored["drawn"], weights=weights, log_p=found.log_p, log_q=found.log_q)
    return wanted(scored)


def gradient(model: TwistedLM, name: str, batch: Batch) -> torch.Tensor:
    (result,) = torch.autograd.grad(loss_of(model, name, batch), model.twist.module.table)
    return result


@pytest.mark.parametrize("name", [*LOSSES, SUM])
def test_laws(name: str) -> None:
    check_loss(name, optimum=expected_log_phi if name == "cd" else ratio if name in RATIO else expectation)


@pytest.mark.parametrize("name", [*LOSSES, SUM])
def test_gradient_descent_reaches_the_optimum(case: Case, name: str) -> None:
    batch = enumerated(case)
    model = case.twisted_for(name, torch.zeros_like(case.lm.table))
    before = case.truth.kl_target_q(model)
    optimiser = (
        torch.optim.LBFGS([model.twist.module.table], max_iter=300, line_search_fn="strong_wolfe")
        if name in BY_LBFGS
        else torch.optim.Adam([model.twist.module.table], lr=0.1)
    )

    def closure() -> torch.Tensor:
        optimiser.zero_grad()
        value = loss_of(model, name, batch)
        value.backward()
        return value

    for _ in range(5 if name in BY_LBFGS else 700):
        optimiser.step(closure)
    if name in (*SCALED, SUM):
        found = model.score(batch.samples).log_psi
        expected = optimum(case, name).score(batch.samples).log_psi
        if name == "mc_squared":
            # Its errors count in units of ψ.
            found, expected = found.exp(), expected.exp()
        torch.testing.assert_close(found, expected, rtol=0, atol=0.05)
    if name == "cd":
        # Its optimum is not the twist of SMC: E[log φ] ≤ log E[φ].
        assert 0.001 < case.truth.kl_target_q(model) < before
        return
    assert before > 0.05
    assert case.truth.kl_target_q(model) < 1e-4
    assert case.truth.kl_q_target(model) < 1e-4
    if name not in ("dpg", "mc_squared", "ppo"):
        # The optimum fixes the weights too, up to one constant per step: SMC with it has no variance.
        result = Sampler(model, case.potential, 3).smc(Rng(0), [case.at] * 50, 4)
        assert (result.log_Z_hat - case.truth.log_Z).abs().max() < 0.05


def test_ctl_gradient_is_that_of_the_summed_divergence(case: Case) -> None:
    # Σ_t KL(σ(s_1:t) ‖ π_t) / T by enumeration, differentiated, against the loss.
    model, truth = case.twisted, case.truth
    batch = enumerated(case)
    possible = ~truth.log_p.isneginf()
    table = model.twist.head.table
    scores = model.score(batch.samples)
    log_p, sigma = truth.log_p[possible], truth.log_sigma[possible].exp()
    total = torch.zeros((), dtype=torch.float64)
    for t in range(3):
        log_z_t = torch.logsumexp(log_p + scores.log_psi[:, t], 0)
        total = total - (sigma * (scores.log_psi[:, t] - log_z_t)).sum() / 3
    (expected,) = torch.autograd.grad(total, table)
    torch.testing.assert_close(gradient(model, "ctl", batch), expected, rtol=0, atol=1e-12)


def by_differences(case: Case, divergence: Callable[[TwistedLM], float], index: tuple[int, int]) -> float:
    shifted = []
    for sign in (1, -1):
        moved = case.twisted.twist.head.table.detach().clone()
        moved[index] += sign * 1e-5
        shifted.append(divergence(TwistedLM(case.lm, TabularHead.twist(moved), case.eos)))
    return (shifted[0] - shifted[1]) / 2e-5


def test_dpg_gradient_is_that_of_the_divergence(case: Case) -> None:
    found = gradient(case.twisted, "dpg", enumerated(case))
    for index in [(0, 1), (3, 2), (7, 0)]:
        expected = by_differences(case, case.truth.kl_target_q, index) / 3
        assert found[index] == pytest.approx(expected, abs=1e-7)


def test_a_baseline_leaves_no_noise_where_q_is_the_target(case: Case) -> None:
    model = optimum(case, "dpg")
    batch = independent(Sampler(model, case.potential, 3).draw(Rng(0), [case.at], 50))
    without, with_one = (gradient(model, "dpg", replace(batch, baseline=b)).abs().max() for b in (False, True))
    assert with_one < 1e-9
    assert without > 1e-3


def test_a_target_that_no_draw_hits_teaches_nothing_by_its_baseline(case: Case) -> None:
    model = case.twisted_for("dpg", torch.randn(case.lm.table.shape, dtype=torch.float64))
    samples, some = Sampler(model, case.potential, 3).draw(Rng(0), [case.at], 50), torch.arange(25)
    batch = independent(samples, num_targets=2)
    missed = replace(batch, log_w=batch.log_w.index_fill(0, some + 25, -torch.inf), baseline=True).truncated(0.05)
    hit = replace(independent(samples.select(some)), baseline=True).truncated(0.05)
    torch.testing.assert_close(gradient(model, "dpg", missed), gradient(model, "dpg", hit) / 2)


def test_a_baseline_changes_no_expectation_after_a_step_either(case: Case) -> None:
    # All sequences as one proposal draws them, while another one learns.
    new, batch = optimum(case, "dpg"), enumerated(case)
    (scored,) = score(new, {"target": batch}, normaliser=True).scored.values()
    found = case.twisted.densities(batch.samples, twist_induced)
    scored = replace(scored, log_p=found.log_p, log_q=found.log_q)
    equal = found.log_q.sum(-1, keepdim=True).exp()
    change = dpg(replace(scored, baseline=equal)) - dpg(scored)
    (gradient,) = torch.autograd.grad(change, new.twist.module.table, retain_graph=True)
    assert gradient.abs().max() < 1e-12
    # Unlike what a step away from the proposal, which no baseline is meant for, would bring.
    away = (equal * (scored.log_psi - scored.log_normaliser) * scored.mask).sum()
    assert torch.autograd.grad(away, new.twist.module.table)[0].abs().max() > 0.01


def test_nvi_gradient_is_that_of_the_summed_divergence(case: Case) -> None:
    truth = case.truth
    possible = ~truth.log_p.isneginf()
    tokens, log_p = truth.tokens[possible], truth.log_p[possible]

    def divergence(model: TwistedLM) -> float:
        # Σ_t KL(π_t q_{t+1} ‖ π_{t+1}) over whole sequences, whose rest is drawn from p₀ on both sides.
        samples = enumerated(case).samples
        found = model.densities(samples, twist_induced)
        log_psi = model.score(samples).log_psi.detach()
        total = 0.0
        for t in range(3):
            after = torch.cat([log_psi[:, t + 1 : t + 2], truth.log_phi[possible].unsqueeze(-1)], -1)[:, 0]
            log_pi, log_next = (log_p + x - torch.logsumexp(log_p + x, 0) for x in (log_psi[:, t], after))
            log_step = found.log_q[:, t + 1] - found.log_p[:, t + 1] if t < 2 else torch.zeros(len(tokens))
            moved = log_pi + log_step
            total += float((moved.exp() * (moved - log_next)).sum())
        return total

    found = gradient(case.twisted, "nvi", enumerated(case))
    for index in [(1, 1), (4, 0), (4, 2), (13, 1)]:
        assert found[index] == pytest.approx(by_differences(case, divergence, index) / 3, abs=1e-7)


def test_ppo_first_step_is_the_policy_gradient_of_the_divergence(case: Case) -> None:
    # Before the policy has moved nothing is clipped: the direction is that of −∇ KL(q‖σ), in units of the deviation.
    found = gradient(case.twisted, "ppo", enumerated(case))
    indices = [index for index in [(a, b) for a in range(len(found)) for b in range(3)] if found[index].abs() > 1e-4]
    ratios = [float(found[i]) / by_differences(case, case.truth.kl_q_target, i) for i in indices]
    assert len(ratios) > 5
    assert max(ratios) - min(ratios) < 1e-4 * max(ratios)
    assert min(ratios) > 0


def test_siblings_reduce_the_noise_and_leave_the_expectation(case: Case) -> None:
    model, exact = case.twisted, gradient(case.twisted, "ctl", enumerated(case))

    def estimated(num_siblings: int, proposal: Proposal) -> torch.Tensor:
        found = []
        for seed in range(30):
            drawn = Sampler(model, case.potential, 3, proposal=proposal).draw(
                Rng(seed), [case.at], 1000, keep=Keep(siblings=num_siblings)
            )
            # The noise of the positives is not at stake: give them their exact weights.
            negatives = score(model, {"intermediate": independent(drawn)}, normaliser=False).scored["intermediate"]
            positives = score(model, {"target": enumerated(case)}, normaliser=False).scored["target"]
            loss = lookup("loss", "ctl").value(positives, negatives)
            found.append(torch.autograd.grad(loss, model.twist.head.table)[0])
        return torch.stack(found)

    for proposal in (base, twist_induced):
        without, with_siblings = estimated(0, proposal), estimated(8, proposal)
        # Self-normalised weights are biased by O(1/B); at B = 1000 that is far below one standard error of 30 means.
        z = (with_siblings.mean(0) - exact) / (with_siblings.std(0) / 30**0.5).clamp_min(1e-9)
        assert z[with_siblings.std(0) > 1e-6].abs().max() < 4.5
        if proposal is base:
            assert with_siblings.var(0).sum() < 0.8 * without.var(0).sum()


def test_siblings_are_weighted_by_their_own_last_factor(case: Case) -> None:
    # w ∝ p₀(s_<t)/q(s_<t) · p₀(v)/q(v) · ψ_t(s_<t, v), by hand.
    model = case.twisted
    drawn = Sampler(model, case.potential, 3).draw(Rng(4), [case.at], 5, keep=Keep(siblings=2))
    scored = score(model, {"intermediate": independent(drawn)}, normaliser=False).scored["intermediate"]
    table = model.twist.head.table.detach()
    nodes = case.lm.features(drawn.prompts, drawn.tokens)
    for t in range(3):
        expected = []
        for i in range(5):
            before = float((drawn.log_p - drawn.log_q)[i, :t].sum())
            own = before + float((drawn.log_p - drawn.log_q)[i, t] + scored.log_psi.detach()[3 * i, t])
            expected.append(own)
            for k in range(2):
                log_psi = float(table[nodes[i, t], drawn.siblings.tokens[i, t, k]])
                sibling = before + float(drawn.siblings.log_ratio[i, t, k]) + log_psi
                expected.append(sibling if drawn.mask[i, t] else own)
        weights = torch.softmax(torch.tensor(expected, dtype=torch.float64), 0)
        torch.testing.assert_close(scored.weights[:, t].double(), weights, rtol=0, atol=1e-6)


def test_independent_weights_are_those_of_smc_without_resampling(case: Case) -> None:
    result = Sampler(case.twisted, case.potential, 3, ess_threshold=0.0).smc(Rng(0), [case.at], 40)
    batch = independent(samples_of(result, case.twisted, [case.prompt]))
    torch.testing.assert_close(batch.log_w, result.particles.log_w[0])


def test_a_mixture_has_as_many_siblings_as_the_part_with_the_fewest(case: Case) -> None:
    sampler = Sampler(case.twisted, case.potential, 3)
    few, many = (sampler.draw(Rng(k), [case.at], 5, keep=Keep(siblings=k)) for k in (2, 4))
    both = Samples.concatenate([few, many]).siblings
    assert both is not None
    for name in ("tokens", "log_ratio"):
        expected = torch.cat([getattr(few.siblings, name), getattr(many.siblings, name)[..., :2]])
        torch.testing.assert_close(getattr(both, name), expected, rtol=0, atol=0)
    place = WorkerContext(Sampler(case.base, case.potential, 3), [case.at])
    collected = collect(Rng(7), place, Budget(64, chunk=64), target="t", keep=Keep(siblings=2))
    setting = Setting(sampler, [case.at], collected, num_siblings=4)
    batch = get_source("proposal+draws")(Rng(0), setting, 8)
    assert batch.samples.siblings is not None
    assert batch.samples.siblings.tokens.shape == (8, 3, 2)
    assert bool(loss_of(case.twisted, "ctl", batch).isfinite())


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("ctll", "did you mean 'ctl'"),
        ("0*ctl", "weight '0' is not a positive number"),
        ("x*ctl", "weight 'x' is not a positive number"),
        ("-1*ctl + rl", "weight '-1'"),
        ("ctl + fudge", "mixes losses for which ψ is a probability"),
        ("", "unknown loss ''"),
    ],
)
def test_a_sum_that_makes_no_sense_is_refused(expression: str, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        objective(expression)


def test_a_sum_is_the_sum(case: Case) -> None:
    batch, model = enumerated(case), case.twisted
    parts = 0.7 * loss_of(model, "ctl", batch) + 0.3 * loss_of(model, "rl", batch)
    torch.testing.assert_close(loss_of(model, SUM, batch), parts)


def test_nvi_is_the_mean_over_targets(case: Case) -> None:
    """At one twist's own optimum for each prompt, whose constants differ, it was 1.2, with a gradient of 0.3."""
    model = case.twisted
    one, other = (enumerated(replace(case, prompt=torch.tensor([prompt]))) for prompt in (1, 2))
    both = replace(
        one,
        samples=Samples.concatenate([one.samples, other.samples]),
        log_w=torch.cat([one.log_w, other.log_w]),
        log_ratio=torch.cat([one.log_ratio, other.log_ratio]),
        num_targets=2,
    )
    first, second, together = (gradient(model, "nvi", batch) for batch in (one, other, both))
    assert float((first - second).abs().max()) > 0.01
    torch.testing.assert_close(together, (first + second) / 2)
