"""`twistlm evaluate` and `sample` on a run over a set of prompts: what is printed, and what is kept for a report."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.runs.test_prompt_sets import CONFIG, OPENINGS, target
from twistlm import Prompts, Run, train
from twistlm.certificates.certificate import Certificate
from twistlm.cli import main
from twistlm.report.tables import MOST_ROWS, prompts_table
from twistlm.runs.certification import BASE, TWIST, samples_at_prompts
from twistlm.runs.folder import RunFolder

SMALL = ["--num-particles", "2", "--num-samples", "8", "--budget", "4"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("cli-set") / "run"
    train(target(), config=replace(CONFIG, training=replace(CONFIG.training, num_updates=2)), seed=3, out=path)
    return path


def evaluated(run: Path, *options: str) -> dict[str, Any]:
    assert main(["evaluate", str(run), *SMALL, *options]) == 0
    found: dict[str, Any] = json.loads((run / "certificate.json").read_text(encoding="utf-8"))
    return found


def test_held_out_prompts_by_default_or_all(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hidden = Run.load(run).held_out_cases
    found = evaluated(run)
    assert len(found["prompts"]) == len(found["certificates"]["after"]["by_prompt"]) == len(hidden) == 2
    found = evaluated(run, "--prompts", "all")
    assert [each["content"] for each in found["prompts"]] == list(OPENINGS)
    printed = capsys.readouterr().out
    assert "Prompts, the worst first" in printed
    assert "The worst prompts are" in printed
    rows = RunFolder(run).load_prompt_samples()
    assert Counter((row.sampler, row.prompt) for row in rows) == {
        (name, text): 8 for name in (TWIST, BASE) for text in OPENINGS
    }


def test_a_file_of_prompts_that_training_never_saw(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "other.jsonl"
    file.write_text('{"prompt": "The cat", "name": "[bold]cat"}\n{"prompt": "My aunt", "name": "1"}\n')
    found = evaluated(run, "--prompts", str(file), "--num-draws", "32")
    names = [each["name"] for each in found["prompts"]]
    assert names == [each["name"] for each in found["certificates"]["after"]["by_prompt"]] == ["[bold]cat", "1"]
    assert found["settings"]["prompts"] == str(file)
    assert "[bold]cat" in capsys.readouterr().out
    evaluation = RunFolder(run).evaluations.current()
    assert evaluation is not None
    assert [each.name for each in evaluation.prompts] == ["[bold]cat", "1"]
    # "1" is the name of one of the run's own too, and its samples are told from those.
    assert {(row.prompt_name, row.prompt) for row in RunFolder(run).load_prompt_samples()} == {
        ("[bold]cat", "The cat"), ("1", "My aunt"),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--system", "Be kind."], "are of a file of --prompts"),
        (["--num-draws", "8", "--prompts", "all"], "--num-draws is for a file of --prompts"),
        (["--prompts", "FILE", "--chat"], "a chat was given for a target of plain texts"),
        (["--prompts", "nowhere.txt"], "cannot be read"),
    ],
)
def test_what_does_not_go_together_is_one_line(
    run: Path, tmp_path: Path, options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file.txt").write_text("The cat\n")
    # Another test may have made one, in this process or in none.
    if not (run / "certificate.json").exists():
        evaluated(run)
        capsys.readouterr()
    before = (run / "certificate.json").read_bytes()
    given = [str(tmp_path / "file.txt") if each == "FILE" else each for each in options]
    assert main(["evaluate", str(run), *given]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
    assert (run / "certificate.json").read_bytes() == before


def test_samples_say_which_prompt_they_are_of(run: Path) -> None:
    opened = Run.load(run)
    rows = opened.sample(4, prompt="3").rows()
    assert {(row["prompt_name"], row["prompt"]) for row in rows} == {("3", OPENINGS[2])}
    rows = opened.base_samples(4, prompt="A new one").rows()
    assert {(row["prompt_name"], row["prompt"]) for row in rows} == {("", "A new one")}


def test_samples_at_prompts_are_chosen_by_weight(run: Path) -> None:
    """Weighted draws have more of φ than plain ones, and their log w is that of their densities."""
    opened = Run.load(run)
    found = samples_at_prompts(opened, "all", 64, seed=0)
    scores = {name: torch.stack([each.log_phi.exp().mean() for each in found[name]]).mean() for name in found}
    assert scores[TWIST] > 3 * scores[BASE]
    for name in found:
        for each in found[name]:
            moved = each.log_psi_moves.sum(-1)
            torch.testing.assert_close(moved, each.log_phi, rtol=0, atol=1e-4)
            torch.testing.assert_close(each.weights.sum(), torch.tensor(1.0, dtype=torch.float64))


def test_the_table_ends_after_so_many_prompts_and_says_how_many_more(run: Path) -> None:
    evaluation = RunFolder(run).evaluations.current()
    assert evaluation is not None
    after: Certificate = evaluation.certificates["after"]
    several = 3 * MOST_ROWS
    by_prompt = tuple(replace(after.by_prompt[0], name=f"n{k}") for k in range(several))
    table = prompts_table(
        {"after": replace(after, by_prompt=by_prompt)},
        Prompts(tuple(f"text {k}" for k in range(several)), tuple(f"n{k}" for k in range(several))),
    )
    assert table.row_count == MOST_ROWS
    assert f"{several - MOST_ROWS} more" in str(table.caption)


def test_a_prompt_that_could_not_be_certified_before_is_missing_beside(run: Path) -> None:
    evaluation = RunFolder(run).evaluations.current()
    assert evaluation is not None
    after: Certificate = evaluation.certificates["after"]
    names = tuple(each.name for each in after.by_prompt)
    before = replace(after, by_prompt=after.by_prompt[1:])
    table = prompts_table({"before": before, "after": after}, Prompts(names, names))
    cells = {str(name): str(kl) for name, kl in zip(table.columns[0].cells, table.columns[3].cells, strict=True)}
    assert cells.pop(f"{names[0]}: {names[0]}") == "—"
    assert "—" not in cells.values()
