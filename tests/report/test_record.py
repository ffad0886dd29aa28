"""Run folders as a report reads them: what is not there or damaged is said in one line, with what to do."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from matplotlib import pyplot as plt

from tests.architectures import tiny_lm
from tests.runs.test_certify import CONFIG, tiny_target
from twistlm import Run, train
from twistlm.cli import main
from twistlm.core.errors import RunError
from twistlm.report.record import Record, read_all
from twistlm.report.style import save


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "run"
    run = train(tiny_target(tiny_lm()), config=CONFIG, out=path)
    assert run.folder is not None
    certificate = run.evaluate((2,), num_samples=32, budget=16, save=False)
    # As `twistlm demo` writes it: certificates beside other things.
    run.folder.evaluations.add({"after": certificate}, {}, notes={"improvement_kl_target_q": None, "cost": {"a": 1}})
    run.folder.save_samples(run.sample(8))
    return path


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


def refused(run: Path, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(run)]) == 2
    printed = capsys.readouterr().err
    assert printed.count("\n") == 1
    assert str(run) in printed
    assert message in printed
    assert not (run / "report.html").exists()


def test_an_empty_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    refused(tmp_path, "is not a run folder", capsys)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("config.json", "is not a run folder"),
        ("twist.safetensors", "has not finished; continue it with --resume"),
        ("certificate.json", "has no certificate; make it with: twistlm evaluate"),
    ],
)
def test_what_is_missing(run: Path, name: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    (run / name).unlink()
    refused(run, message, capsys)


def test_a_target_that_no_file_tells_is_certified_in_python(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`twistlm evaluate` was named, and said to use Python."""
    said = json.loads((run / "config.json").read_text())
    for target, message in (
        (said["target"] or {"model": "x"}, f"twistlm evaluate {run}"),
        (None, f"Run.load('{run}', target).evaluate() in Python"),
    ):
        (run / "config.json").write_text(json.dumps(said | {"target": target}))
        (run / "certificate.json").unlink(missing_ok=True)
        refused(run, f"has no certificate; make it with: {message}\n", capsys)


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("config.json", "restore it, or delete the folder and start over"),
        ("certificate.json", "restore it, or delete it and make it again with: twistlm evaluate {run}"),
        ("diagnostics.json", "restore it, or make it again with: twistlm sample {run}"),
        ("samples.jsonl", "restore it, or make it again with: twistlm sample {run}"),
    ],
)
def test_what_is_half_written(run: Path, name: str, remedy: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = (run / name).read_text()
    # Half of the lines of samples may well be whole ones, which is a shorter file and no broken one.
    (run / name).write_text(text[: len(text) // 2].rstrip("}\n"))
    refused(run, f"; {remedy.format(run=run)}\n", capsys)


@pytest.mark.parametrize(
    ("name", "field", "remedy"),
    [
        ("certificate.json", "after", "twistlm evaluate"),
        ("diagnostics.json", "ess", "twistlm sample"),
        ("certificate.json", "bounds", "twistlm evaluate"),
    ],
)
def test_what_lacks_a_part(run: Path, name: str, field: str, remedy: str, capsys: pytest.CaptureFixture[str]) -> None:
    values = json.loads((run / name).read_text())
    certificates = values.get("certificates", {})
    del {"after": certificates, "bounds": certificates.get("after")}.get(field, values)[field]
    (run / name).write_text(json.dumps(values))
    refused(run, remedy, capsys)


def test_nothing_in_place_of_a_number(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [json.loads(line) for line in (run / "samples.jsonl").read_text().splitlines()]
    rows[1]["log_p"] = None
    (run / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    refused(run, "samples.jsonl at line 2 is damaged or of another version: log_p", capsys)


def test_it_is_read_as_it_was_written(run: Path) -> None:
    record = Record.read(run, "run")
    assert list(record.certificates) == ["after"]
    assert len(record.samples["twisted SMC"]) == 8
    assert record.diagnostics is not None
    assert record.diagnostics.num_particles == 8
    assert record.seconds["20 updates"] > 0


def test_a_report_without_samples_says_how_to_draw_some(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("samples.jsonl", "diagnostics.json"):
        (run / name).unlink()
    assert main(["report", str(run)]) == 0
    assert f"draw some with: twistlm sample {run}" in capsys.readouterr().out
    assert (run / "report.html").exists()
    assert not (run / "report" / "ess.pdf").exists()


def test_names_are_as_short_as_tells_them_apart(run: Path, tmp_path: Path) -> None:
    for method in ("ctl", "rl"):
        shutil.copytree(run, tmp_path / method / "seed-0")
    assert [each.name for each in read_all([tmp_path / "ctl" / "seed-0"])] == ["seed-0"]
    both = read_all([tmp_path / "ctl" / "seed-0", tmp_path / "rl" / "seed-0"])
    assert [each.name for each in both] == ["ctl/seed-0", "rl/seed-0"]
    with pytest.raises(RunError, match="named twice"):
        read_all([run, tmp_path / "." / "run"])


@pytest.mark.parametrize("name", ["report", "samples", "evaluations"])
def test_nothing_is_written_through_a_link(run: Path, tmp_path: Path, name: str) -> None:
    """Somebody else's run might have one, and replace what is somewhere else."""
    elsewhere = tmp_path / "thesis"
    elsewhere.mkdir()
    (elsewhere / "log_Z.png").write_text("mine")
    shutil.rmtree(run / name, ignore_errors=True)
    (run / name).symlink_to(elsewhere)
    loaded = Run.load(run, tiny_target(tiny_lm()))
    folder = loaded.folder
    assert folder is not None
    certificate = json.loads((run / "certificate.json").read_text())
    work: dict[str, Callable[[], object]] = {
        "report": loaded.report,
        "samples": lambda: folder.save_samples(loaded.sample(2)),
        "evaluations": lambda: loaded.evaluate((2,), num_samples=8, budget=4),
    }
    with pytest.raises(RunError, match=f"{run / name} is a link, and files where it leads would be replaced; delete"):
        work[name]()
    assert [each.name for each in elsewhere.iterdir()] == ["log_Z.png"]
    assert (elsewhere / "log_Z.png").read_text() == "mine"
    assert json.loads((run / "certificate.json").read_text()) == certificate
    assert (run / "samples.jsonl").exists()


def test_a_chart_that_is_a_link_is_replaced_itself(tmp_path: Path) -> None:
    (mine := tmp_path / "mine.png").write_text("mine")
    (chart := tmp_path / "chart.png").symlink_to(mine)
    save(plt.figure(), chart)
    assert mine.read_text() == "mine"
    assert not chart.is_symlink()
