"""One twist for a set of prompts, on the bundled models: trained, resumed, loaded, sampled and certified elsewhere."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from twistlm import Prompts, Run, RunConfig, Target, fine_tune, train
from twistlm.core.errors import ConfigError, PromptError, UpperBoundError
from twistlm.core.storage import load_typed
from twistlm.potentials import Classifier, Function, Infilling
from twistlm.runs.config import EvaluationConfig
from twistlm.runs.folder import Evaluation
from twistlm.training.config import TrainingConfig
from twistlm.training.trainer import Trainer

OPENINGS = (
    "Once upon a time, there was a", "One day, a little girl", "The dog ran to the", "Tom was very angry and",
    "In the garden there was", "The old man said", "Lily wanted to", "It was raining and", "The big bear",
    "Mom and dad were", "A bird sat on", "Sam did not like",
)  # fmt: skip
CONFIG = RunConfig(
    twist="lexical",
    twist_options={"rank": 2},
    training=TrainingConfig(
        loss="gkl", target_source="draws", intermediate_source="draws", num_particles=160, num_cases=5, num_updates=6,
        evaluate_every=2, learning_rate=3e-3, weight_decay=0.3, patience=None, shrinkages=(),
    ),
    num_draws=12 * 40,
    num_siblings=0,
    chunk=160,
    evaluation=EvaluationConfig((2, 4), 8, 8),
)  # fmt: skip


def target(openings: tuple[str, ...] = OPENINGS) -> Target:
    scorer = Classifier("toxicity", "toxic")
    return Target("stories", scorer, num_tokens=4, prompts=openings, eos="ignore")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return train(target(), config=CONFIG, seed=3, out=tmp_path_factory.mktemp("set") / "run")


def test_training_and_held_out_prompts_are_apart(run: Run) -> None:
    hidden = [tuple(case.prompt.tolist()) for case in run.held_out_cases]
    assert len(hidden) == 2
    training, held_out, evaluation = (run.fold(name) for name in ("training", "held_out", "evaluation"))
    assert not {tuple(p.tolist()) for p in training.draws.prompts} & set(hidden)
    assert {tuple(p.tolist()) for p in held_out.draws.prompts} == set(hidden)
    assert len({tuple(p.tolist()) for p in evaluation.draws.prompts}) == 12
    # Nothing that judges is among what trains, nor among what chose.
    for one, other in ((training, evaluation), (held_out, evaluation)):
        rows = {(tuple(p.tolist()), tuple(t)) for p, t in zip(one.draws.prompts, one.draws.log_p.tolist(), strict=True)}
        again = {(tuple(p.tolist()), tuple(t)) for p, t in zip(other.draws.prompts, other.draws.log_p.tolist(),
                                                               strict=True)}  # fmt: skip
        assert len(rows & again) < 0.3 * len(again)


def test_published_with_the_prompts_that_it_was_certified_at(run: Run, tmp_path: Path) -> None:
    loaded = Run.load(run.folder.path)
    loaded.evaluate(2, num_samples=8, budget=8, save=False)
    folder = loaded.save_pretrained(tmp_path / "published")
    again = Run.from_pretrained(folder).save_pretrained(tmp_path / "again")
    one, other = (load_typed(place / "certificate.json", Evaluation) for place in (folder, again))
    assert [each.content for each in one.prompts] == [run.target.prompts.entries[r] for r in run.held_out]
    assert (one.settings, one.prompts) == (other.settings, other.prompts)


def test_a_run_that_was_cut_off_ends_as_one_that_was_not(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("twistlm.training.trainer.CHECKPOINT_SECONDS", 0.0)
    update, seen = Trainer._update, []

    def cut(self: Trainer) -> object:
        if len(seen) == 3:
            raise KeyboardInterrupt
        seen.append(1)
        return update(self)

    monkeypatch.setattr(Trainer, "_update", cut)
    with pytest.raises(KeyboardInterrupt):
        train(target(), config=CONFIG, seed=3, out=tmp_path / "run")
    monkeypatch.setattr(Trainer, "_update", update)
    again = train(target(), config=CONFIG, seed=3, out=tmp_path / "run", exists="resume")
    assert again.collection.draws.tokens.equal(run.collection.draws.tokens)
    for name, tensor in run.model.twist.module.state_dict().items():
        assert again.model.twist.module.state_dict()[name].equal(tensor), name


def test_it_opens_with_its_prompts_and_samples_at_new_ones(run: Run) -> None:
    opened = Run.load(run.folder.path)
    assert opened.target.prompts == run.target.prompts
    assert opened.target.fingerprint == target().fingerprint
    at_third = opened.sample(4, prompt="3", seed=1)
    assert at_third.texts == opened.sample(4, prompt=OPENINGS[2], seed=1).texts
    assert len(opened.sample(2, num_particles=4, prompt="Nobody had ever seen a").texts) == 2
    with pytest.raises(ConfigError, match="prompt is missing: this target has 12"):
        opened.sample(2)
    with pytest.raises(PromptError, match="prompt is empty"):
        opened.sample(2, prompt="")


def test_certificates_at_held_out_all_and_new_prompts(run: Run) -> None:
    found = run.evaluate(seed=2)
    assert [each.name for each in found.by_prompt] == [
        name for r, name in enumerate(run.target.prompts.names) if r in run.config.held_out(12)
    ]
    assert len(run.evaluate(prompts="all", methods=("iwae",)).by_prompt) == 12
    new = run.evaluate(prompts=["A cat saw", "The king was"], num_draws=32, methods=("iwae",), before=True)
    assert [each.name for each in new.by_prompt] == ["1", "2"]
    kls = new.divergences
    assert kls.kl_q_target.low <= kls.kl_q_target.value <= kls.kl_q_target.high
    assert kls.kl_q_prior.value == pytest.approx(0.0, abs=1e-9)


def test_fine_tuning_begins_where_the_shared_twist_ended(run: Run) -> None:
    config = replace(CONFIG, num_draws=64, training=replace(CONFIG.training, num_updates=2, learning_rate=1e-9,
                                                            weight_decay=0.0, num_particles=16))  # fmt: skip
    tuned = fine_tune(run, "Nobody had ever seen a", config=config)
    case = tuned.target.cases
    shared, own = (each.sampler().draw_at_once(_rng(), case, 8) for each in (run, tuned))
    torch.testing.assert_close(own.log_q, shared.log_q, atol=1e-3, rtol=0)
    with pytest.raises(ConfigError, match="twist of another kind"):
        fine_tune(run, "3", config=replace(config, twist="mlp", twist_options={}))


def _rng():  # type: ignore[no-untyped-def]
    from twistlm.core.rng import Rng

    return Rng(0)


def test_too_few_draws_for_so_many_prompts_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"num_draws = 64 is too few for 12 prompts.* at least 96"):
        train(target(), config=CONFIG, num_draws=64, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_draws_of_a_potential_without_bound_are_refused_before_a_folder_is_made(tmp_path: Path) -> None:
    unbounded = Target("stories", Function(lambda texts: [float(len(text) % 3) for text in texts]), OPENINGS[0], 3)
    with pytest.raises(UpperBoundError, match="needs an upper bound"):
        train(unbounded, config=CONFIG, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_prompt_whose_phi_is_never_met_ends_nothing() -> None:
    def log_phi(texts: list[str]) -> list[float]:
        return [-float("inf") if text.startswith("The dog") else -1.0 - len(text) % 3 for text in texts]

    never = Function(log_phi, log_upper_bound=0.0)
    run = train(Target("stories", never, num_tokens=3, prompts=OPENINGS, eos="ignore"), config=CONFIG)
    found = run.evaluate(prompts="all", methods=("iwae",))
    missing = [each for each in found.by_prompt if not each.is_met]
    assert [each.name for each in missing] == ["3"]
    assert missing[0].certificate.divergences.log_Z.high < 0
    assert found.divergences.kl_q_target.high < 5


def test_prompts_by_weight_are_trained_on_by_weight() -> None:
    prompts = Prompts(OPENINGS[:3], weights=(1.0, 1.0, 8.0))
    goal = Target("stories", Classifier("toxicity", "toxic"), num_tokens=3, prompts=prompts, eos="ignore")
    assert [case.weight for case in goal.cases] == [0.1, 0.1, 0.8]


def test_infilling_at_several_prompts_is_cases_like_any_other() -> None:
    goal = Target("stories", Infilling(1), num_tokens=2, prompts=OPENINGS[:3], eos="ignore")
    training = replace(CONFIG.training, loss="ctl", target_source="exact", intermediate_source="proposal",
                       num_particles=24, num_cases=6, num_updates=2)  # fmt: skip
    config = replace(CONFIG, twist="conditional", twist_options={}, num_draws=96, training=training,
                     evaluation=EvaluationConfig((2,), 16, 16))  # fmt: skip
    run = train(goal, config=config)
    prompts = {tuple(prompt.tolist()) for prompt in run.fold("evaluation").exact.samples.prompts}
    assert len(prompts) == 3
    found = run.evaluate()
    assert found.divergences.kl_target_q.low <= found.divergences.kl_target_q.value
    assert len(run.sample(2, prompt="2", condition=" dog").texts) == 2
