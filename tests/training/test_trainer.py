"""The training loop: it improves, it does no harm, and a seed means the same run."""

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.architectures import tiny_lm
from tests.cases import TablePotential, make_case
from twistlm import Run, Target, train
from twistlm.certificates.certify import improvement
from twistlm.certificates.log_Z import decide
from twistlm.core.errors import ConfigError, DeadParticlesError, ModelError, PromptError, RunError, TrainingError
from twistlm.core.registry import available, lookup
from twistlm.core.rng import Rng
from twistlm.core.storage import as_json
from twistlm.potentials import Function, Infilling, Regex
from twistlm.runs.config import RunConfig
from twistlm.sampling.exact.budget import Budget
from twistlm.sampling.exact.collect import collect
from twistlm.sampling.sampler import Sampler, WorkerContext
from twistlm.sampling.smc import Keep
from twistlm.sampling.twisted import TwistedLM
from twistlm.training.config import TrainingConfig
from twistlm.training.criteria import held_out_divergence, negative_lower_bound
from twistlm.training.losses import objective
from twistlm.training.sources import Setting, serves
from twistlm.training.trainer import Trainer
from twistlm.training.value import fit_value
from twistlm.twists.tabular import TabularHead


def small_numbers(texts: list[str]) -> list[float]:
    """log φ: texts whose words after the prompt are small numbers are good."""
    return [-sum(int(word) for word in text.split()[1:]) / 150 for text in texts]


def tiny_target() -> Target:
    return Target(tiny_lm(), Function(small_numbers, log_upper_bound=0.0), "5", 4, eos="ignore")


CONFIG = RunConfig(
    twist="low_rank",
    training=TrainingConfig(
        target_source="draws", intermediate_source="draws", num_particles=256, num_updates=40, learning_rate=1e-2,
        evaluate_every=10, evaluation_samples=16, patience=None,
    ),
    num_draws=1536,
    num_siblings=4,
)  # fmt: skip


def comparable(rows: list[dict]) -> list[dict]:
    return [{k: v for k, v in row.items() if k != "seconds"} for row in rows]


def test_training_improves_both_divergences_and_the_certificate_says_so(tmp_path: Path) -> None:
    run = train(tiny_target(), config=replace(CONFIG, num_draws=8192), out=tmp_path / "run", num_updates=100)
    before = run.evaluate((2, 8), num_samples=512, budget=256, before=True)
    after = run.evaluate((2, 8), num_samples=512, budget=256)
    assert improvement(run.sampler(), run.fold("evaluation").exact).low > 0.1
    assert after.divergences.kl_target_q.value < before.divergences.kl_target_q.value
    assert after.divergences.kl_q_target.high < before.divergences.kl_q_target.low
    gap = {(b.method, b.num_particles): b.gap for b in before.bounds}
    assert all(b.gap < gap[b.method, b.num_particles] for b in after.bounds)
    loaded = Run.load(tmp_path / "run", target=tiny_target())
    assert loaded.sample(5, seed=3).texts == run.sample(5, seed=3).texts
    assert loaded.sample(5, num_particles=4, seed=3).rows() == run.sample(5, num_particles=4, seed=3).rows()
    assert run.sample(9, proposal="base", seed=3).texts != run.sample(9, seed=3).texts
    # φ is a probability: whatever the proposal and the scheme, the mean of Ẑ is the same Z.
    for options in ({"proposal": "tempered:0.5"}, {"resampler": "residual", "ess_threshold": 1.0}):
        other = run.evaluate((8,), num_samples=512, budget=512, **options)
        assert abs(other.log_Z_lower.value - after.log_Z_lower.value) < 0.3
    with pytest.raises(ConfigError, match="unknown resampler 'sistematic'; did you mean 'systematic'"):
        run.sample(2, resampler="sistematic")
    with pytest.raises(ConfigError, match="ess_threshold must be between 0"):
        run.sample(2, ess_threshold=2.0)
    again = as_json(loaded.evaluate((2, 8), num_samples=512, budget=256))
    assert {k: v for k, v in again.items() if k != "seconds"} == {
        k: v for k, v in as_json(after).items() if k != "seconds"
    }


@pytest.mark.parametrize("twist", list(available("twist")))
@pytest.mark.parametrize(("method", "source"), [("ctl", "proposal"), ("dpg", "draws")])
def test_every_twist_trains_saves_and_loads(twist: str, method: str, source: str, tmp_path: Path) -> None:
    config = replace(CONFIG, twist=twist, num_draws=128, num_siblings=2)
    target, condition = tiny_target(), None
    if lookup("twist", twist).options.get("needs_conditions"):
        target, condition = Target(tiny_lm(), Infilling(2), "5", 4, eos="ignore"), "8 9"
        source = {"draws": "base"}.get(source, source)
    run = train(
        target, config=config, method=method, num_updates=6, num_particles=64, evaluate_every=2,
        out=tmp_path / "r", target_source=source, intermediate_source=source, learning_rate=1e-3, evaluation_samples=0,
    )  # fmt: skip
    norms = [row["grad_norm"] for row in run.history if row["kind"] == "update"]
    assert min(norms) > 0, "no parameter was trained"
    assert all(p.grad is None for p in run.model.twist.module.parameters()), "gradients outlive their update"
    loaded = Run.load(tmp_path / "r", target=target)
    assert loaded.sample(6, condition=condition).rows() == run.sample(6, condition=condition).rows()
    mine, theirs = run.model.twist.module.state_dict(), loaded.model.twist.module.state_dict()
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)


def test_the_same_seed_gives_the_same_run_whatever_the_global_generator_does(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        target = tiny_target()
        torch.manual_seed(ord(name))
        before = torch.random.get_rng_state()
        config = replace(CONFIG, twist="mlp", num_draws=512)
        train(target, config=config, num_updates=10, seed=seed, out=tmp_path / name)
        assert torch.equal(torch.random.get_rng_state(), before), "the global generator was drawn from"
    a, b, c = (tmp_path / name / "twist.safetensors" for name in "abc")
    assert a.read_bytes() == b.read_bytes()
    assert a.read_bytes() != c.read_bytes()


def is_refused(loss: str, source: str) -> bool:
    """Whether a loss cannot learn from a source."""
    wanted = objective(loss)
    served = [role for role in wanted.roles if serves(source, role)]
    apart = lookup("source", source).options.get("by_prefix", False) and not wanted.by_prefix
    return not served or apart or (wanted.on_policy and source != "proposal")


PAIRS = [(loss, source) for loss in available("loss") for source in available("source")]


@pytest.mark.parametrize(("loss", "source"), [pair for pair in PAIRS if is_refused(*pair)])
def test_what_a_loss_cannot_learn_from_is_refused(loss: str, source: str) -> None:
    refused = "labels prefixes by themselves|learns from the current proposal's own draws|cannot serve as"
    with pytest.raises(ConfigError, match=refused):
        TrainingConfig(loss=loss, target_source=source, intermediate_source=source)


def trained() -> list[Any]:
    """Losses and sources: each loss with the proposal's own draws and each source with one loss stand for all pairs."""
    usual = {"exact": "ctl", "completions": "fudge"}
    return [
        pytest.param(
            loss,
            source,
            marks=() if source == "proposal" or loss == usual.get(source, "gkl") else pytest.mark.nightly,
        )
        for loss, source in PAIRS
        if not is_refused(loss, source)
    ]


@pytest.mark.parametrize(("loss", "source"), trained())
def test_every_source_and_loss_trains_the_table(loss: str, source: str) -> None:
    case, wanted = make_case(), objective(loss)
    served = [role for role in wanted.roles if serves(source, role)]
    others = set(wanted.roles) - {"target"}
    config = TrainingConfig(
        loss=loss, target_source=source if "target" in served else "proposal",
        intermediate_source=source if others <= set(served) else "proposal",
        num_particles=200, num_updates=150, learning_rate=0.03, weight_decay=0.0, evaluate_every=25, patience=None,
    )  # fmt: skip
    model = case.twisted_for(loss, torch.zeros_like(case.lm.table))
    collection = collect(
        Rng(7),
        WorkerContext(Sampler(case.base, case.potential, 3), [case.at]),
        Budget(4000, chunk=2000),
        target="t",
        keep=Keep(features=True),
    )
    training, held_out = collection.split([0.5, 0.5])
    setting = Setting(Sampler(model, case.potential, 3), [case.at], collection=training)
    criterion = held_out_divergence(Rng(8), held_out, [case.at], 1000)
    Trainer(Rng(0), setting, config, criterion).train()
    # Samples, learning rate and 150 updates leave a little; a wrong gradient leaves all of it.
    assert case.truth.kl_target_q(model) < 0.35 * case.truth.kl_target_q(case.base)
    assert case.truth.kl_q_target(model) < 0.5 * case.truth.kl_q_target(case.base)


def rare(texts: list[str]) -> list[float]:
    """log φ = −8, or −4 where the last word is a small number: far from where a twist would start by itself."""
    return [-4.0 - 4.0 * (int(text.split()[-1]) > 100) for text in texts]


def rarely(loss: str) -> tuple[Target, RunConfig]:
    """A target whose log Z is far from 0, and how to learn it."""
    target = Target(tiny_lm(), Function(rare, log_upper_bound=0.0), "5", 3, eos="ignore")
    config = replace(
        CONFIG, num_draws=2048, num_siblings=0, twist="mlp",
        training=replace(
            CONFIG.training, loss=loss, target_source="proposal", num_updates=12, evaluate_every=4, learning_rate=3e-3,
            intermediate_source="base" if loss == "fudge" else "proposal", shrinkages=(),
        ),
    )  # fmt: skip
    return target, config


@pytest.mark.parametrize(("loss", "scaled"), [("rl", True), ("fudge", True), ("ctl", False)])
def test_losses_that_ask_for_psi_itself_start_at_its_scale(loss: str, scaled: bool) -> None:
    target, config = rarely(loss)
    run = train(target, config=config)
    starts = [row["log_psi"] for row in run.history if row["kind"] == "start"]
    log_Z = decide(run.witnesses).log_Z
    assert starts == ([pytest.approx(log_Z.value, abs=0.4)] if scaled else [])
    # From ψ = 1 every update would be away from what was drawn: the held-out divergence only rises.
    values = [row["held_out"]["value"] for row in run.history if row["kind"] == "evaluation"]
    assert min(values) < values[0] - 0.02
    assert max(values) < values[0] + 0.5


def test_a_hopeless_learning_rate_does_no_harm_and_is_announced(caplog: pytest.LogCaptureFixture) -> None:
    case = make_case()
    model = TwistedLM(case.lm, TabularHead.twist(torch.zeros_like(case.lm.table)), case.eos)
    collection = collect(
        Rng(7), WorkerContext(Sampler(case.base, case.potential, 3), [case.at]), Budget(2000, chunk=1000), target="t"
    )
    setting = Setting(Sampler(model, case.potential, 3), [case.at], collection=collection)
    config = TrainingConfig(learning_rate=30.0, num_particles=4, num_updates=60, evaluate_every=5, patience=None)
    criterion = held_out_divergence(Rng(8), collection, [case.at], 500)
    with caplog.at_level(logging.WARNING, "twistlm"):
        history = Trainer(Rng(0), setting, config, criterion).train()
    # The smallest α on the grid is 0, the base model itself; 1e-9 is rounding.
    assert case.truth.kl_target_q(model) <= case.truth.kl_target_q(case.base) + 1e-2
    assert "nats above the start" in caplog.text
    assert "[TW201]" in caplog.text
    assert "learning_rate" in caplog.text
    # Once, however often it is looked at.
    assert sum("nats above the start" in row.get("message", "") for row in history) == 1


def test_collapse_onto_single_samples_is_announced(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("twistlm.training.trainer.COLLAPSE_UPDATES", 3)
    case = make_case()
    model = TwistedLM(case.lm, TabularHead.twist(torch.zeros_like(case.lm.table)), case.eos)
    steep = TablePotential(-30.0 * torch.arange(27.0), 3)
    setting = Setting(Sampler(model, steep, 3), [case.at])
    config = TrainingConfig(num_particles=6, num_updates=30, evaluate_every=10, learning_rate=1e-4, patience=None)
    with caplog.at_level(logging.WARNING, "twistlm"):
        Trainer(Rng(0), setting, config, negative_lower_bound(setting.targets)).train()
    assert "fewer than 2 of 6 sequences carried the target's weight" in caplog.text
    assert "more particles" in caplog.text


def test_early_stop_keeps_the_best() -> None:
    case = make_case()
    model = TwistedLM(case.lm, TabularHead.twist(torch.zeros_like(case.lm.table)), case.eos)
    setting = Setting(Sampler(model, case.potential, 3), [case.at])
    seen: list[float] = []

    def criterion(rng, sampler):  # type: ignore[no-untyped-def]
        from twistlm.core.estimates import Estimate

        value = abs(len(seen) - 3.0)
        seen.append(float(sampler.model.twist.head.table.detach().sum()))
        return Estimate(value, value, value, 2)

    config = TrainingConfig(num_particles=20, num_updates=500, evaluate_every=5, patience=20, shrinkages=())
    trainer = Trainer(Rng(0), setting, config, criterion)
    trainer.train()
    assert trainer.progress.best_update == 15
    assert trainer.progress.done == 35
    assert float(model.twist.head.table.detach().sum()) == pytest.approx(seen[3])


def test_value_fit_lowers_the_held_out_loss_and_leaves_the_proposal_alone() -> None:
    target = tiny_target()
    run = train(target, config=replace(CONFIG, num_draws=3072), num_updates=20)
    row = next(row for row in run.history if row["kind"] == "value")
    assert row["after"] < row["before"] - 0.002
    features = torch.randn(3, target.lm.feature_size)
    with torch.no_grad():
        log_psi = run.model.twist.head(features)
        run.model.twist.head.value.zero_()
        flat = run.model.twist.head(features)
    shift = log_psi - flat
    assert shift.std(-1).max() < 1e-5
    assert shift.abs().max() > 1e-3
    training, held_out = run.fold("training").draws, run.fold("held_out").draws
    assert fit_value(run.model, training, held_out)["after"] == pytest.approx(row["after"], abs=1e-4)


def test_without_an_upper_bound_the_lower_bound_judges(caplog: pytest.LogCaptureFixture) -> None:
    target = Target(tiny_lm(), small_numbers, "5", 3, eos="ignore")
    with caplog.at_level(logging.WARNING, "twistlm"):
        run = train(target, num_updates=3, num_particles=20)
    assert "lower bound on log Z decides" in caplog.text
    assert run.collection is None
    certificate = run.evaluate((2,), num_samples=32, budget=16)
    assert certificate.log_Z_upper is None
    assert certificate.divergences.kl_target_q is None
    assert certificate.log_Z_source == "lower bound only"


def test_run_folder_policies(tmp_path: Path) -> None:
    out = tmp_path / "run"
    config = replace(CONFIG, num_draws=256)
    train(tiny_target(), config=config, num_updates=2, out=out)
    kept = (out / "twist.safetensors").read_bytes()
    with pytest.raises(RunError, match=r"--resume.*--overwrite"):
        train(tiny_target(), config=config, num_updates=2, out=out)
    with pytest.raises(RunError, match="another run"):
        train(tiny_target(), config=config, num_updates=3, out=out, exists="resume")
    assert (out / "twist.safetensors").read_bytes() == kept
    train(tiny_target(), config=config, num_updates=2, out=out, exists="resume")
    assert (out / "twist.safetensors").read_bytes() == kept
    draws = (out / "draws.safetensors").read_bytes()
    train(tiny_target(), config=config, num_updates=2, seed=5, out=out, exists="overwrite")
    assert (out / "draws.safetensors").read_bytes() != draws
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.tex").write_text("years of work")
    with pytest.raises(RunError, match="not a run folder"):
        train(tiny_target(), config=config, out=foreign, exists="overwrite")
    assert (foreign / "thesis.tex").exists()
    with pytest.raises(RunError, match="does not exist; is this a run folder"):
        Run.load(foreign)
    fields = json.loads((out / "config.json").read_text())
    (out / "config.json").write_text(json.dumps(fields | {"format": 99}))
    with pytest.raises(RunError, match="format 99"):
        Run.load(out)
    (out / "config.json").write_text("{")
    with pytest.raises(RunError, match="corrupt"):
        Run.load(out)
    (out / "config.json").write_text(json.dumps(fields))
    (out / "twist.safetensors").write_bytes(kept[:100])
    with pytest.raises(RunError, match="corrupt"):
        Run.load(out, target=tiny_target())


def test_what_is_refused_leaves_no_folder(tmp_path: Path) -> None:
    out = tmp_path / "run"
    with pytest.raises(PromptError, match="prompt is empty"):
        Target(tiny_lm(), small_numbers, "", 3)
    with pytest.raises(ConfigError, match="num_tokens must be at least 1"):
        Target(tiny_lm(), small_numbers, "5", 0)
    with pytest.raises(PromptError, match="context of 64; shorten the prompt or ask for at most 63"):
        train(Target(tiny_lm(), small_numbers, "5", 64), out=out)
    with pytest.raises(ModelError, match="cannot load model"):
        train(Target(str(tmp_path / "none"), small_numbers, "5", 3), out=out)
    with pytest.raises(ConfigError, match=r"twist 'low_rank': .*unexpected keyword argument 'depth'"):
        train(tiny_target(), config=replace(CONFIG, twist_options={"depth": 3}), out=out)
    assert not out.exists()


def test_a_potential_never_satisfied_says_what_it_implies(caplog: pytest.LogCaptureFixture) -> None:
    target = Target(tiny_lm(), Regex("never"), "5", 3, eos="ignore")
    with caplog.at_level(logging.WARNING, "twistlm"), pytest.raises(DeadParticlesError, match="φ = 0"):
        train(target, config=replace(CONFIG, num_draws=64), target_source="base", intermediate_source="base")
    assert "none of 64 draws was accepted: the acceptance rate is below 4.7e-02" in caplog.text


def test_draws_of_which_none_is_accepted_train_all_the_same(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    # φ is far below its bound, so that rejection accepts nothing; its weights say as much as ever.
    target = Target(tiny_lm(), Function(small_numbers, log_upper_bound=30.0), "5", 3, eos="ignore")
    with caplog.at_level(logging.WARNING, "twistlm"):
        run = train(target, config=replace(CONFIG, num_draws=64), num_updates=2, out=tmp_path / "run")
    assert "none of 64 draws was accepted" in caplog.text
    assert "no exact samples to judge by: the lower bound on log Z decides" in caplog.text
    assert run.collection is not None
    assert len(run.collection.draws) == 64
    # They bound log Z from above, now as when the run is opened again.
    found = run.evaluate((2,), num_samples=32, budget=16, save=False)
    again = Run.load(tmp_path / "run", target).evaluate((2,), num_samples=32, budget=16, save=False)
    assert found.log_Z == again.log_Z
    assert found.log_Z.high < 30


def test_settings_are_checked() -> None:
    with pytest.raises(ConfigError, match="unknown loss 'ctll'; did you mean 'ctl'"):
        TrainingConfig(loss="ctll")
    with pytest.raises(ConfigError, match="cannot serve as intermediate_source"):
        TrainingConfig(intermediate_source="exact")
    with pytest.raises(ConfigError, match="num_updates must be at least 1, not 0"):
        TrainingConfig(num_updates=0)
    with pytest.raises(ConfigError, match="must not be negative, not -1"):
        RunConfig(num_draws=-1)
    with pytest.raises(ConfigError, match="3 positive shares"):
        RunConfig(folds=(0.9, 0.9, 0.1))
    with pytest.raises(ConfigError, match="unknown setting learning_rat"):
        train(tiny_target(), learning_rat=1.0)
    with pytest.raises(
        ConfigError, match=r"source 'completions' cannot be joined .* as in 'completions\+base'; name it"
    ):
        TrainingConfig("fudge", intermediate_source="completions+base")
    with pytest.raises(ConfigError, match="unknown twist"):
        train(tiny_target(), twist="lstm")
    with pytest.raises(ConfigError, match="need collected draws"):
        train(
            Target(tiny_lm(), small_numbers, "5", 3), num_updates=1, target_source="draws", intermediate_source="draws"
        )


def test_infinite_loss_is_refused() -> None:
    case = make_case()
    model = TwistedLM(case.lm, TabularHead.twist(torch.full_like(case.lm.table, float("nan"))), case.eos)
    setting = Setting(Sampler(model, case.potential, 3), [case.at])
    config = TrainingConfig(target_source="base", intermediate_source="base", num_updates=1, evaluate_every=5)
    trainer = Trainer(Rng(0), setting, config, negative_lower_bound(setting.targets))
    trainer.progress.done = 1
    trainer.config = replace(config, num_updates=2)
    with pytest.raises(TrainingError, match="lower learning_rate"):
        trainer.train()


def test_a_run_that_found_nothing_is_no_beginning_that_cannot_learn() -> None:
    """Its α is 0, times which every gradient is zero."""
    begun = train(tiny_target(), config=CONFIG, num_updates=1)
    begun.model.twist.head.shrinkage.fill_(0.0)
    run, fresh = (train(tiny_target(), config=CONFIG, num_updates=10, **start) for start in ({"start": begun}, {}))
    assert comparable(run.history) == comparable(fresh.history)
    assert all(row["grad_norm"] > 0 for row in run.history if row["kind"] == "update")


def test_the_alpha_that_a_run_began_with_is_one_to_choose() -> None:
    begun = train(tiny_target(), config=CONFIG, shrinkages=())
    begun.model.twist.head.shrinkage.fill_(0.25)
    run = train(tiny_target(), config=CONFIG, start=begun, num_updates=4, shrinkages=())
    (chosen,) = [row for row in run.history if row["kind"] == "shrinkage"]
    assert set(chosen["held_out"]) == {0.25, 1.0}


@pytest.mark.parametrize("loss", ["rl", "fudge"])
def test_a_twist_that_goes_on_keeps_its_scale(loss: str) -> None:
    """log Z was added again, so that the first loss was that of a constant."""
    target, config = rarely(loss)
    first = train(target, config=config)
    then = train(target, config=replace(config, seed=1), start=first, num_updates=2)
    assert not [row for row in then.history if row["kind"] == "start"]
    losses = [[row["loss"] for row in run.history if row["kind"] == "update"] for run in (first, then)]
    assert losses[1][0] < 1.5 * max(losses[0])
