"""Targets that differ by a condition: weights, bounds and training against enumeration, and what is refused."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.architectures import VOCAB, tiny_lm
from tests.cases import cases, make_case, samples_of
from twistlm import Run, Target, certify, train
from twistlm.certificates.bounds import log_Z_bounds
from twistlm.core.errors import ConfigError, PromptError
from twistlm.core.rng import Rng
from twistlm.core.storage import as_json
from twistlm.models.tabular import TabularLM, num_nodes
from twistlm.potentials import Classes, Classifier, Function, Infilling, evaluate
from twistlm.runs.config import EvaluationConfig, RunConfig
from twistlm.sampling.exact.budget import Budget
from twistlm.sampling.exact.collect import base_draws, collect
from twistlm.sampling.prompts import Prompts
from twistlm.sampling.proposals import twist_induced
from twistlm.sampling.sampler import Sampler, WorkerContext
from twistlm.sampling.twisted import TwistedLM
from twistlm.testing import assert_mean
from twistlm.training.config import TrainingConfig
from twistlm.training.scoring import score
from twistlm.training.sources import Setting, from_exact, from_proposal, get_source, serves
from twistlm.twists.tabular import TabularHead

PROMPT = "5"


def target(num_tokens: int = 1, num_condition: int = 1) -> Target:
    # Sharp enough that a token tells a nat and a half about the one before it.
    return Target(tiny_lm("llama", scale=20.0), Infilling(num_condition), PROMPT, num_tokens, eos="ignore")


CONFIG = RunConfig(
    twist="conditional",
    training=TrainingConfig(
        loss="ctl", target_source="exact", intermediate_source="proposal", num_particles=200, num_cases=50,
        num_updates=80, learning_rate=1e-2, weight_decay=0.0, evaluate_every=40, patience=None, shrinkages=(),
    ),
    num_draws=2048,
    chunk=2048,
    evaluation=EvaluationConfig((4, 16), 1024, 2048),
)  # fmt: skip


@pytest.fixture
def tabular():  # type: ignore[no-untyped-def]
    """A table of depth 3 + 2, its potential, and log p₀ of every sequence of 5 tokens."""
    case = make_case(num_steps=5)
    model = TwistedLM(case.lm, None, "ignore")
    potential = Infilling(2).bind(case.lm)
    truth = replace(case, num_steps=5).truth
    return case, model, potential, truth


def test_the_probability_of_what_follows_is_the_models_own(tabular) -> None:
    case, _, potential, truth = tabular
    tokens, conditions = truth.tokens[:, :3], truth.tokens[:, 3:]
    found = evaluate(potential, [case.prompt] * len(tokens), tokens, conditions)
    first = torch.stack([torch.logsumexp(truth.log_p[(tokens == row).all(-1)], 0) for row in tokens])
    torch.testing.assert_close(found, truth.log_p - first)


def test_joint_draws_hold_exact_samples_with_their_log_phi(tabular) -> None:
    case, model, potential, truth = tabular
    drawn = base_draws(Rng(0), Sampler(model, potential, 3), [case.at], 20_000)
    torch.testing.assert_close(
        drawn.log_phi, evaluate(potential, drawn.prompts, drawn.tokens, drawn.conditions), rtol=0, atol=1e-9
    )
    # Their joint law is p₀ of the whole: the condition is drawn too.
    whole = torch.cat([drawn.tokens, drawn.conditions], -1)
    for k in truth.log_p.topk(5).indices.tolist():
        hits = (whole == truth.tokens[k]).all(-1)
        assert_mean(hits.double(), float(truth.log_p[k].exp()))


@pytest.mark.parametrize("method", ["iwae", "smc"])
def test_every_run_is_unbiased_for_its_own_target(tabular, method: str) -> None:
    case, _, potential, truth = tabular
    conditions = torch.tensor([[0, 1], [2, 2], [1, 0]])
    twisted = TwistedLM(case.lm, TabularHead.twist(torch.randn(case.lm.table.shape, dtype=torch.float64)), "ignore")
    log_z = [torch.logsumexp(truth.log_p[(truth.tokens[:, 3:] == c).all(-1)], 0) for c in conditions]
    repeats = 1500
    result = Sampler(twisted, potential, 3, ess_threshold=1.0 if method == "smc" else 0.0).smc(
        Rng(3), cases([case.prompt] * (3 * repeats), conditions.repeat(repeats, 1)), 3
    )
    for k in range(3):
        assert_mean(result.log_Z_hat.view(repeats, 3)[:, k].exp(), float(log_z[k].exp()))


def test_bounds_hold_on_average_over_conditions(tabular) -> None:
    case, model, potential, truth = tabular
    found = collect(
        Rng(1), WorkerContext(Sampler(model, potential, 3), [case.at]), Budget(3000, chunk=3000), target="t"
    )
    exact = found.exact
    assert len(exact) == 3000
    sandwich = log_Z_bounds(Rng(2), Sampler(model, potential, 3), exact.cases, 4, exact=exact)
    each = torch.stack(
        [torch.logsumexp(truth.log_p[(truth.tokens[:, 3:] == c).all(-1)], 0) for c in exact.samples.conditions]
    )
    # Paired with the true log Z of the run's own condition.
    assert 0.0 < float((each - sandwich.lowers).mean()) < 0.3
    assert 0.0 < float((sandwich.uppers - each).mean()) < 0.3


def test_weights_are_normalised_among_the_sequences_of_one_target() -> None:
    goal = target(2, 1)
    model = goal.twisted(goal.build_twist(Rng(0), "conditional", {}))
    joint = base_draws(Rng(1), Sampler(model, goal.bound_potential, 2), goal.cases, 5)
    setting = Setting(Sampler(model, goal.bound_potential, 2), goal.cases, joint=joint, num_siblings=3)
    batch = from_proposal(Rng(2), setting, 20)
    assert batch.num_targets == 5
    assert torch.equal(batch.samples.conditions, joint.conditions.repeat_interleave(4, 0))
    scored = score(model, {"target": batch, "intermediate": batch, "base": batch}, normaliser=False).scored
    torch.testing.assert_close(scored["target"].weights.view(5, 4, 2).sum(1), torch.full((5, 2), 0.2))
    torch.testing.assert_close(scored["base"].weights.view(5, 4, 2).sum(1), torch.full((5, 2), 0.2))
    torch.testing.assert_close(scored["intermediate"].weights.view(5, 16, 2).sum(1), torch.full((5, 2), 0.2))
    # Self-normalised by hand for one target.
    torch.testing.assert_close(
        scored["target"].weights[4:8, 0].double(), batch.samples.log_phi[4:8].softmax(-1) / 5, rtol=1e-4, atol=1e-6
    )
    exact = from_exact(Rng(3), setting, 20)
    assert exact.samples is joint
    weights = score(model, {"target": exact}, normaliser=False).scored["target"].weights
    torch.testing.assert_close(weights, torch.full((5, 2), 0.2))


@pytest.mark.parametrize("options", [{}, {"own_network": True}, {"tied": True}])
def test_sampling_and_scoring_agree_through_resampling(options: dict[str, Any]) -> None:
    goal = target(4, 2)
    twist = goal.build_twist(Rng(0), "conditional", options)
    generator = torch.Generator().manual_seed(3)
    # The last layer that is the twist's own: a tied one borrows the model's output matrix.
    last = twist.head.trunk[-1].weight if options.get("tied") else twist.head.weight
    with torch.no_grad():
        last.copy_(0.5 * torch.randn(last.shape, generator=generator))
    model = goal.twisted(twist)
    conditions = torch.tensor([[3, 4], [9, 250], [3, 4]])
    prompts = [goal.prompt_tokens] * 3
    result = Sampler(model, goal.bound_potential, 4, ess_threshold=1.0).smc(Rng(1), cases(prompts, conditions), 8)
    samples = samples_of(result, model, prompts, conditions)
    found = model.densities(samples, twist_induced)
    torch.testing.assert_close(found.log_q, samples.log_q, rtol=0, atol=2e-4)
    torch.testing.assert_close(found.log_p, samples.log_p, rtol=0, atol=2e-4)
    scores = model.score(samples, normaliser=True)
    torch.testing.assert_close(
        (found.log_p + scores.log_psi - scores.log_normaliser).double(), found.log_q, rtol=0, atol=2e-4
    )
    # The condition matters.
    other = replace(samples, conditions=samples.conditions.roll(16, 0))
    assert (model.densities(other, twist_induced).log_q - found.log_q)[:8].abs().max() > 0.1


def exact_divergences(run: Run) -> tuple[float, float]:
    """KL(q‖σ) and KL(σ‖q) for one token before one, averaged over conditions, by enumeration."""
    lm, prompt = run.target.lm, run.target.prompt_tokens
    every = torch.arange(VOCAB).unsqueeze(-1)
    first = lm.logits(lm.features([prompt], torch.zeros(1, 1, dtype=torch.long)))[0, 0].double().log_softmax(-1)
    after = lm.logits(lm.features([prompt] * VOCAB, torch.cat([every, every], -1))[:, 1]).double().log_softmax(-1)
    joint = first.unsqueeze(-1) + after  # [s, c]
    log_z = joint.logsumexp(0)
    log_sigma = joint - log_z
    log_q = torch.stack([
        run.model.densities(
            replace(
                Sampler(run.target.twisted(), None, 1).draw(Rng(0), cases([prompt]), VOCAB),
                tokens=every, conditions=torch.full((VOCAB, 1), c), features=None,
            ), twist_induced,
        ).log_q[:, 0] for c in range(VOCAB)
    ], -1)  # fmt: skip
    kl_q = ((log_q.exp() * (log_q - log_sigma)).sum(0) * log_z.exp()).sum()
    kl_target = ((log_sigma.exp() * (log_sigma - log_q)).sum(0) * log_z.exp()).sum()
    return float(kl_q), float(kl_target)


@pytest.mark.parametrize(
    "loss", ["ctl", *(pytest.param(name, marks=pytest.mark.nightly) for name in ("dpg", "sixo", "gkl"))]
)
def test_training_approaches_the_exact_target_and_the_certificate_agrees(loss: str) -> None:
    sources = {"intermediate_source": "base"} if loss in ("sixo", "gkl") else {}
    start = train(target(), config=CONFIG, method=loss, num_updates=1, learning_rate=1e-9, **sources)
    run = train(target(), config=CONFIG, method=loss, **sources)
    (q_before, target_before), (q_after, target_after) = exact_divergences(start), exact_divergences(run)
    assert target_after < 0.8 * target_before
    if loss != "sixo":
        assert q_after < q_before
    found = run.evaluate()
    assert found.divergences.kl_q_target.low - 0.05 < q_after < found.divergences.kl_q_target.high + 0.05
    assert found.divergences.kl_target_q.low - 0.05 < target_after < found.divergences.kl_target_q.high + 0.05
    assert found.log_Z_lower.value < found.log_Z_upper.value
    assert found.ess_fraction is None


def test_a_run_saves_loads_and_samples_for_a_condition(tmp_path) -> None:
    config = replace(CONFIG, evaluation=EvaluationConfig((2, 4), 64, 32, during_training=True))
    run = train(target(2, 2), config=config, num_updates=3, out=tmp_path / "run")
    rows = [row for row in run.history if row["kind"] == "certificate"]
    assert [row["update"] for row in rows] == [0, 1, 2, 3]
    loaded = Run.load(tmp_path / "run", target=target(2, 2))
    assert loaded.sample(5, condition="8 9").rows() == run.sample(5, condition="8 9").rows()
    assert loaded.sample(2, num_particles=4, condition=torch.tensor([8, 9])).texts
    first, second = (as_json(each.evaluate()) for each in (run, loaded))
    assert {**first, "seconds": 0} == {**second, "seconds": 0}


def test_another_run_may_propose() -> None:
    config = replace(CONFIG, num_draws=256, chunk=256)
    weighs = train(target(2, 2), config=config, num_updates=5)
    proposes = train(target(2, 2), config=config, method="dpg", num_updates=30)
    found = weighs.evaluate((4,), num_samples=200, budget=400, proposal_run=proposes)
    own = proposes.evaluate((4,), num_samples=200, budget=400)
    # F and G see the proposal alone; the sandwich is of the same log Z.
    assert found.divergences.f == own.divergences.f
    assert found.divergences.g == own.divergences.g
    assert found.divergences.f != weighs.evaluate((4,), num_samples=200, budget=400).divergences.f
    other = train(Target("stories", Infilling(2), "Once", 2, eos="ignore"), config=config, num_updates=1)
    with pytest.raises(ConfigError, match="proposal_run is on 'stories' and this target on 'llama'"):
        weighs.sample(2, condition="8 9", proposal_run=other)


def test_what_cannot_be_is_refused(tmp_path: Path) -> None:
    goal = target(2, 2)
    with pytest.raises(ConfigError, match="num_condition must be at least 1, not 0"):
        Infilling(0)
    run = train(goal, config=replace(CONFIG, num_draws=64, chunk=64), num_updates=1)
    with pytest.raises(ConfigError, match="condition = '8' has 1 tokens and the target takes 2"):
        run.sample(2, condition="8")
    with pytest.raises(ConfigError, match="give condition, 2 tokens"):
        run.sample(2)
    with pytest.raises(ConfigError, match="num_draws is 0, and the twist of a target that differs"):
        train(target(2, 1), config=replace(CONFIG, num_draws=0), out=tmp_path / "new")
    assert not (tmp_path / "new").exists()
    plain = Target(tiny_lm(), Function(lambda texts: [0.0] * len(texts), log_upper_bound=0.0), PROMPT, 2, eos="ignore")
    with pytest.raises(ConfigError, match="this target has none; leave it out"):
        plain.case("8")
    with pytest.raises(ConfigError, match="twist 'conditional' reads what each sequence is given"):
        train(plain, config=CONFIG, target_source="proposal", num_updates=1)
    with pytest.raises(ConfigError, match="takes no conditions"):
        evaluate(plain.bound_potential, [goal.prompt_tokens], torch.zeros(1, 2).long(), torch.zeros(1, 2).long())
    with pytest.raises(ConfigError, match="pass conditions"):
        evaluate(goal.bound_potential, [goal.prompt_tokens], torch.zeros(1, 2).long())
    with pytest.raises(ConfigError, match="conditions have 3 tokens and Infilling takes 2"):
        evaluate(goal.bound_potential, [goal.prompt_tokens], torch.zeros(1, 2).long(), torch.zeros(1, 3).long())
    with pytest.raises(ConfigError, match="set eos='ignore'"):
        train(Target(tiny_lm(), Infilling(2), PROMPT, 2), config=CONFIG)
    with pytest.raises(PromptError, match="the model reads 64"):
        evaluate(goal.bound_potential, [goal.prompt_tokens], torch.zeros(1, 62).long(), torch.zeros(1, 2).long())


def test_a_mixture_shares_the_sequences_and_keeps_targets_apart() -> None:
    goal = target(2, 1)
    model = goal.twisted(goal.build_twist(Rng(0), "conditional", {}))
    joint = base_draws(Rng(1), Sampler(model, goal.bound_potential, 2), goal.cases, 4)
    setting = Setting(Sampler(model, goal.bound_potential, 2), goal.cases, joint=joint)
    batch = get_source("proposal+exact")(Rng(2), setting, 24)
    # Three draws of each target, then its exact sample.
    assert len(batch.samples) == 16
    assert torch.equal(batch.samples.conditions, joint.conditions.repeat_interleave(4, 0))
    assert torch.equal(batch.samples.tokens[3::4], joint.tokens)
    weights = score(model, {"target": batch}, normaliser=False).scored["target"].weights[:, 0].view(4, 4)
    torch.testing.assert_close(weights[:, 3], torch.full((4,), 1 / 16))
    torch.testing.assert_close(weights.sum(-1), torch.full((4,), 0.25))
    drawn = from_proposal(Rng(2).fork(0), setting, 12)
    torch.testing.assert_close(weights[1, :3].double(), drawn.log_w.view(4, 3)[1].softmax(-1) * 3 / 16)
    assert batch.log_ratio is None
    assert get_source("proposal + base")(Rng(2), setting, 24).log_ratio is not None
    assert serves("proposal+base", "intermediate")
    assert not serves("proposal+exact", "intermediate")
    assert serves("proposal+exact", "drawn")


def test_completions_label_every_prefix_by_an_end_of_its_own() -> None:
    goal = target(2, 1)
    model = goal.twisted()
    joint = base_draws(Rng(1), Sampler(model, goal.bound_potential, 2), goal.cases, 6)
    # Many ends of the same few prefixes.
    index = torch.arange(6).repeat_interleave(400)
    setting = Setting(Sampler(model, goal.bound_potential, 2), goal.cases, joint=joint.select(index))
    batch = get_source("completions")(Rng(2), setting, 1)
    assert batch.samples.log_phi.shape == (2400, 2)
    torch.testing.assert_close(batch.samples.log_phi[:, 1], joint.log_phi[index])
    every = torch.arange(VOCAB).unsqueeze(-1)
    for k in range(6):
        first = joint.tokens[k, :1]
        whole = torch.cat([first.expand(VOCAB, 1), every], -1)
        log_phi = evaluate(
            goal.bound_potential, [goal.prompt_tokens] * VOCAB, whole, joint.conditions[k].expand(VOCAB, 1)
        )
        features = goal.lm.features([torch.cat([goal.prompt_tokens, first])], torch.zeros(1, 1).long())
        p = goal.lm.logits(features)[0, 0].double().softmax(-1)
        assert_mean(batch.samples.log_phi[index == k, 0].exp(), float((p * log_phi.exp()).sum()))


@pytest.mark.nightly
def test_fudge_learns_an_infilling_from_completions() -> None:
    run = train(
        target(), config=CONFIG, method="fudge", num_cases=200, intermediate_source="completions",
        num_updates=150, learning_rate=0.03,
    )  # fmt: skip
    before = train(target(), config=CONFIG, method="ctl", num_updates=1, learning_rate=1e-9)
    # Slowly, as in the paper: what is not seen stays where it was.
    assert exact_divergences(run)[1] < 0.95 * exact_divergences(before)[1]


def test_one_twist_for_every_class(tmp_path) -> None:
    labels = ("negative", "neutral", "positive")
    target = Target("stories", Classes("sentiment", labels), "I saw the new film today. It was", 4, eos="ignore")
    joint = base_draws(Rng(0), Sampler(target.twisted(), target.bound_potential, 4), target.cases, 1500)
    texts = ["I saw the new film today. It was" + text for text in target.texts(joint)]
    for number, label in enumerate(labels):
        p = Classifier("sentiment", label).log_score(texts).exp()
        hit = joint.conditions[:, 0] == number
        # Each class is drawn as often as the classifier thinks, and log φ is its log probability.
        assert_mean(hit.double() - p, 0.0)
        torch.testing.assert_close(joint.log_phi[hit].exp(), p[hit], rtol=1e-4, atol=1e-6)
    config = replace(CONFIG, num_draws=512, chunk=512, evaluation=EvaluationConfig((4,), 128, 256))
    run = train(target, config=config, num_updates=10, learning_rate=1e-3, out=tmp_path / "run")
    for label in labels:
        found, base = run.sample(64, condition=label), run.base_samples(64, condition=label)
        # By weight, SMC's samples are of the class that was asked for; base draws are of what class they like.
        likely = (found.weights * found.log_phi).sum()
        assert likely > base.log_phi.mean() + 0.1, label
    with pytest.raises(ConfigError, match="'happy' is no label; choose one of: negative, neutral, positive"):
        run.sample(2, condition="happy")
    with pytest.raises(ConfigError, match="at least two classes"):
        Classes("sentiment", ("negative",))


class Sides(TabularLM):
    """After 0 tokens tell nothing of the next; after 1 the next is what was said, mostly."""

    def __init__(self) -> None:
        table = torch.zeros((num_nodes(2, 4), 2), dtype=torch.float64)
        super().__init__(table, 4)
        said = self.start([torch.tensor([1, v]) for v in (0, 1)]).features
        table[said, [0, 1]] = 5.0


@pytest.mark.parametrize(
    ("entries", "weights", "share"), [("01", (1, 1), 0.5), ("10", (1, 1), 0.5), ("01", (1, 9), 0.9)]
)
def test_prompts_count_by_their_weights(entries: str, weights: tuple[float, ...], share: float) -> None:
    """All of the conditions were those of the first prompt, whatever the weights."""
    goal = Target(Sides(), Infilling(1), prompts=Prompts(tuple(entries), weights=weights), num_tokens=1, eos="ignore")
    found = certify(goal, num_draws=4096, num_samples=1024, num_particles=(4, 16), budget=4096).divergences
    # KL(σ‖p₀) is 0 after 0, and what the condition tells of the token after 1.
    p = 1 / (1 + math.exp(-5.0))
    told = math.log(2) + p * math.log(p) + (1 - p) * math.log(1 - p)
    assert found.kl_target_q is not None
    assert found.kl_target_q.low <= share * told <= found.kl_target_q.high
    assert found.kl_target_q.high - found.kl_target_q.low < 0.3
