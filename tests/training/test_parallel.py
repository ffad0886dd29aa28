"""Several processes train what one would: rows of a batch are divided, and nothing else changes."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file

from tests.training.together import TABULAR, everything
from twistlm import Run
from twistlm.cli import main
from twistlm.core.errors import ConfigError
from twistlm.core.processes import Processes, own_device

ROOT = Path(__file__).parents[2]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
ACCELERATE = [
    *(sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"),
    *("--main_process_port", "0", "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"),
]
TRAIN = [
    *("train", "--model", "stories", "--potential", "regex:pattern=a", "--prompt", "Once upon a time"),
    *("--num-tokens", "3", "--twist", "backbone", "--num-draws", "64", "--num-particles", "15", "--num-updates", "6"),
    # Own draws would differ by a token as soon as parameters do by rounding, and DPG's gradient does (docs/log.md).
    *("--learning-rate", "0.0003", "--method", "gkl", "--source", "draws"),
]
# The command, with a checkpoint after every update.
SCRIPT = """
import sys
import twistlm.training.trainer
from twistlm.cli import main
twistlm.training.trainer.CHECKPOINT_SECONDS = 0.0
sys.exit(main())
"""


def environment() -> dict[str, str]:
    given = {name: value for name, value in os.environ.items() if name != "TWISTLM_PROGRESS"}
    paths = [str(ROOT), str(ROOT / "src"), *filter(None, [given.get("PYTHONPATH")])]
    return given | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)}


def run(command: list[str], **options) -> "subprocess.CompletedProcess[str]":  # type: ignore[no-untyped-def]
    return subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=300, cwd=ROOT, **options)


def differences(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> dict[str, float]:
    """How far each tensor is from the other of its name, relative to its own size."""
    assert one.keys() == other.keys()
    return {
        name: float((one[name].double() - other[name].double()).norm() / one[name].double().norm().clamp_min(1e-2))
        for name in one
        if one[name].numel()
    }


@pytest.mark.parametrize(
    "losses", [("gkl",), pytest.param(tuple(TABULAR), marks=pytest.mark.nightly)], ids=["one", "all"]
)
def test_two_processes_train_what_one_does_to_summation_order(losses: tuple[str, ...], tmp_path: Path) -> None:
    made = run([*TORCHRUN, "-m", "tests.training.together", str(tmp_path / "out"), *losses])
    assert made.returncode == 0, made.stderr[-3000:]
    first, second = (load_file(tmp_path / f"out.{rank}") for rank in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    apart = differences(everything(losses), first)
    worst = sorted(apart.items(), key=lambda item: -item[1])[:5]
    assert max(value for name, value in apart.items() if name.endswith("table")) < 1e-9, worst
    # float32 sums in another order differ by 3e-6 to 1.0e-5, by machine. Attention is the same with any bias of its
    # keys: their gradient is rounding alone, which Adam makes a step of.
    assert max(value for name, value in apart.items() if not name.endswith("c_attn.bias")) < 3e-5, worst


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that two processes have trained; what they said is beside it."""
    out = tmp_path_factory.mktemp("together") / "run"
    made = run([*ACCELERATE, "-m", "twistlm", *TRAIN, "--out", str(out)])
    assert made.returncode == 0, made.stderr[-3000:]
    (out.parent / "stdout").write_text(made.stdout)
    (out.parent / "stderr").write_text(made.stderr)
    return out


def test_the_command_in_two_processes_writes_one_run_and_speaks_once(
    together: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main([*TRAIN, "--out", str(tmp_path / "run")]) == 0
    said = capfd.readouterr().out.replace(str(tmp_path), str(together.parent))
    assert (together.parent / "stdout").read_text() == said
    assert {path.name for path in together.iterdir()} == {path.name for path in (tmp_path / "run").iterdir()}
    one, other = (
        [json.loads(line) for line in (place / "metrics.jsonl").read_text().splitlines()]
        for place in (tmp_path / "run", together)
    )
    assert [row["kind"] for row in one] == [row["kind"] for row in other]
    warnings = [f"WARNING: {row['message']}" for row in other if row["kind"] == "warning"]
    assert (together.parent / "stderr").read_text().splitlines() == warnings
    for mine, theirs in zip(one, other, strict=True):
        for number in mine.keys() & {"loss", "grad_norm", "ess"}:
            assert theirs[number] == pytest.approx(mine[number], rel=1e-4, abs=1e-6)
    assert Run.load(together).sample(2).texts


def test_what_is_refused_is_said_once_by_all_processes(tmp_path: Path) -> None:
    refused = run([*TORCHRUN, "-m", "twistlm", *TRAIN, "--out", str(tmp_path / "run"), "--chat", "--column", "text"])
    assert refused.returncode != 0
    # The launcher then tells the other to end. Where the first has ended already, nobody can say that it spoke.
    said = [line.split()[0] for line in refused.stderr.splitlines() if line.startswith(("error:", "terminated"))]
    assert said.count("error:") == 1
    assert len(said) <= 2
    assert "error: --column is of a file of --prompts" in refused.stderr


def test_other_commands_are_refused_as_several_processes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr("twistlm.cli._join", lambda: None)
    assert main(["list"]) == 2
    assert "train alone runs as several processes" in capsys.readouterr().err


@pytest.mark.nightly
def test_a_process_killed_ends_all_and_the_run_goes_on(together: Path, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    out, command = tmp_path / "run", [*TORCHRUN, str(script), *TRAIN, "--out", str(tmp_path / "run")]
    # The one that holds the folder.
    killed(0, command, out, tmp_path / "log")
    made = run([*command, "--resume"])
    assert made.returncode == 0, made.stderr[-3000:]
    for name in ("twist.safetensors", "draws.safetensors", "checkpoint.safetensors"):
        assert (out / name).read_bytes() == (together / name).read_bytes(), name


def killed(victim: int, command: list[str], out: Path, log: Path) -> None:
    """Kill one of the processes after its first checkpoint: all end, and another says why if there is time."""

    def seen() -> int:
        return (out / "checkpoint.safetensors").stat().st_mtime_ns if (out / "checkpoint.safetensors").exists() else 0

    before, deadline = seen(), time.monotonic() + 120
    with log.open("w") as file:
        launcher = subprocess.Popen(command, env=environment(), stdout=file, stderr=file, cwd=ROOT)
        while seen() == before and time.monotonic() < deadline:
            time.sleep(0.005)
        ranks = {int(child.environ()["RANK"]): child for child in psutil.Process(launcher.pid).children()}
        ranks[victim].kill()
        assert launcher.wait(60) != 0
    assert not any(child.is_running() for child in ranks.values())
    assert not (out / "twist.safetensors").exists(), "nothing was interrupted"
    # The launcher may end the others before any has seen what happened; they never say it twice.
    lines = [line for line in log.read_text().splitlines() if line.startswith(("error:", "terminated"))]
    assert len(lines) <= 1
    assert all("--resume continues what was saved" in line for line in lines)


def test_a_launcher_that_starts_one_process_for_several_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"ACCELERATE_USE_CPU": "True", "MASTER_ADDR": "127.0.0.1"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match="starts one process, however many were asked for"):
        Processes.joined()


def test_each_process_has_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    assert own_device("cuda") == "cuda"
    for name, value in {"WORLD_SIZE": "4", "LOCAL_RANK": "3"}.items():
        monkeypatch.setenv(name, value)
    assert [own_device(name) for name in ("cuda", "cuda:1", "cpu")] == ["cuda:3", "cuda:1", "cpu"]
