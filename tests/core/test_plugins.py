"""Parts of others: from a distribution that pip installed, and from a file, through the real command line."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests import forked
from twistlm import TrainingConfig
from twistlm.core import plugins, registry
from twistlm.core.errors import ConfigError

pytestmark = pytest.mark.usefixtures("forks")

PARTS = '''
"""Parts of somebody's own: one of nearly every kind."""

from dataclasses import dataclass, replace

from twistlm.core.registry import lookup, register
from twistlm.potentials import BasePotential
from twistlm.runs.config import EvaluationConfig
from twistlm.runs.experiments import Preset, experiment
from twistlm.runs.experiments.common import PAPER_LIKE, smoke
from twistlm.sampling.proposals import twist_induced
from twistlm.sampling.target import Target
from twistlm.training.losses import loss
from twistlm.training.sources import from_proposal


@loss("mine_loss", sources=("target", "intermediate"))
def mine(target, intermediate):
    """The loss of a plugin."""
    return lookup("loss", "ctl").value(target, intermediate)


@register("potential", "mine_potential")
@dataclass(frozen=True)
class Mine(BasePotential):
    """The potential of a plugin."""

    weight: float = 1.0
    log_upper_bound = 0.0

    def log_phi(self, prompts, tokens):
        """log φ."""
        return -self.weight * (tokens % 2).sum(-1).double()


@register("twist", "mine_twist")
def linear(lm):
    """The twist of a plugin."""
    return lookup("twist", "linear").value(lm)


@register("model", "mine_model")
def model():
    """The model of a plugin."""
    return lookup("model", "stories").value()


register("source", "mine_source")(from_proposal)
register("proposal", "mine_proposal", summary="The proposal of a plugin.")(twist_induced)


@experiment("mine_experiment")
def mine_experiment(beta: float = 1.0):
    """The experiment of a plugin."""

    training = replace(PAPER_LIKE.training, loss="mine_loss")
    return {
        "smoke": Preset(
            "seconds",
            lambda: Target("mine_model", Mine(beta), "Once upon a time", 3, eos="ignore"),
            replace(
                smoke(replace(PAPER_LIKE, twist="mine_twist", training=training), 128),
                evaluation=EvaluationConfig((2,), 8, 4),
            ),
        )
    }
'''

PROJECT = """
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"

[project]
name = "twistlm-mine"
version = "1.2.3"

[project.entry-points."twistlm.plugins"]
mine = "twistlm_mine.parts"

[tool.setuptools]
packages = ["twistlm_mine"]
"""
KINDS = ("loss", "potential", "twist", "source", "proposal", "model", "experiment")
TRAIN = ("train", "mine_experiment", "--preset", "smoke")


def done(*arguments: str, path: Path | None = None) -> str:
    """What a command that must succeed has printed; with a folder of installed packages in front."""
    ended = forked.twistlm(*arguments, path=[path] if path else [])
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def refused(*arguments: str, path: Path | None = None) -> str:
    """The one line of a command that must be refused."""
    ended = forked.twistlm(*arguments, path=[path] if path else [])
    assert ended.returncode == 2, ended.stderr
    assert ended.stderr.count("\n") == 1
    return ended.stderr


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which pip has installed a distribution with parts, without a network."""
    project = tmp_path_factory.mktemp("project")
    (project / "pyproject.toml").write_text(PROJECT)
    package = project / "twistlm_mine"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "parts.py").write_text(PARTS)
    place = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index",
               "--no-cache-dir", "--disable-pip-version-check", "--target", str(place), str(project)]  # fmt: skip
    subprocess.run(command, check=True, capture_output=True)
    return place


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """The same parts in a file."""
    path = tmp_path / "mine.py"
    path.write_text(PARTS)
    return path


def test_a_distributions_parts_are_listed_and_train(installed: Path, tmp_path: Path) -> None:
    listed = done("list", path=installed)
    for kind in KINDS:
        assert f"mine_{kind} " in listed
    assert "--preset smoke" in listed.split("mine_experiment")[1]
    out = tmp_path / "run"
    done(*TRAIN, "--source", "mine_source", "--out", str(out), path=installed)
    config = json.loads((out / "config.json").read_text())
    assert config["run"]["training"]["loss"] == "mine_loss"
    assert config["versions"]["twistlm-mine"] == "1.2.3"
    assert config["plugins"].keys() == {"loss mine_loss", "twist mine_twist", "potential mine_potential"}


def test_without_the_distribution_its_parts_are_unknown(tmp_path: Path) -> None:
    assert "mine" not in done("list")
    assert "unknown experiment 'mine_experiment'" in refused(*TRAIN, "--out", str(tmp_path / "run"))


def test_a_file_is_loaded_only_when_it_is_named(file: Path) -> None:
    for arguments in (("list", "loss", "--plugin", str(file)), (f"--plugin={file}", "list", "loss")):
        assert "The loss of a plugin." in done(*arguments)
    assert "mine_loss" not in done("list", "loss")
    assert not (file.parent / "__pycache__").exists()


def test_a_run_with_parts_of_a_file_resumes_only_with_the_same(file: Path, tmp_path: Path) -> None:
    out, plugin = tmp_path / "run", ("--plugin", str(file))
    done(*TRAIN, "--out", str(out), *plugin)
    twist = (out / "twist.safetensors").read_bytes()
    done(*TRAIN, "--out", str(out), "--resume", *plugin)
    assert (out / "twist.safetensors").read_bytes() == twist
    sizes = ("--num-particles", "2", "--num-samples", "4", "--budget", "4")
    assert "KL" in done("evaluate", str(out), *sizes, *plugin)
    said = refused("evaluate", str(out), *sizes)
    assert "unknown loss 'mine_loss'" in said
    assert "load the plugin that has it: install it, or name its file with --plugin" in said
    file.write_text(PARTS.replace('lookup("loss", "ctl").value(', '2 * lookup("loss", "ctl").value('))
    assert "holds a run with another plugins" in refused(*TRAIN, "--out", str(out), "--resume", *plugin)


@pytest.mark.parametrize("kind", ["file", "distribution"])
def test_the_processes_of_a_sweep_know_the_plugins(kind: str, file: Path, installed: Path, tmp_path: Path) -> None:
    out, path = tmp_path / "sweep", installed if kind == "distribution" else None
    plugin = ("--plugin", str(file)) if kind == "file" else ()
    asked = ("sweep", "mine_experiment", "--preset", "smoke", "--methods", "mine_loss", "--seeds", "2", "--jobs", "2",
             "--out", str(out), *plugin)  # fmt: skip
    assert "all 2 runs are done" in done(*asked, path=path)
    if kind == "file":
        assert "all 2 runs are done" in done(*asked)
        file.write_text(PARTS + "\n# Changed.\n")
        assert "another plugins" in refused(*asked)


def test_errors_name_the_distribution_or_the_line(installed: Path, tmp_path: Path) -> None:
    broken = tmp_path / "site"
    (broken / "broken-0.1.dist-info").mkdir(parents=True)
    (broken / "broken-0.1.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 0.1\n")
    (broken / "broken-0.1.dist-info" / "entry_points.txt").write_text("[twistlm.plugins]\nall = no_such_module\n")
    said = refused("list", path=broken)
    assert "plugin 'all' of the distribution 'broken' cannot be loaded (ModuleNotFoundError: No module named" in said
    assert "pip uninstall broken" in said
    assert "broken" in refused("train", "mine_experiment", "--out", str(tmp_path / "run"), path=broken)


UNWRITTEN = '''
from twistlm import Target
from twistlm.models.tabular import TabularLM
from twistlm.runs.config import RunConfig
from twistlm.runs.experiments import Preset, experiment


@experiment("by_hand")
def by_hand():
    """A model made here, and a function that no file could name."""
    lm = TabularLM.random(3, 4, 0)
    return {"only": Preset("as it comes", lambda: Target(lm, lambda texts: [0.0] * len(texts), "1", 2), RunConfig())}
'''


def test_an_experiment_that_no_run_folder_could_describe_is_listed(tmp_path: Path) -> None:
    path = tmp_path / "by_hand.py"
    path.write_text(UNWRITTEN)
    listed = done("list", "experiment", "--plugin", str(path)).split("by_hand")[1]
    assert "--preset only" in listed
    assert "TabularLM" not in listed.split("infilling")[0]


def test_an_experiment_that_raises_does_not_hide_the_others(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text(
        "from twistlm.runs.experiments import experiment\n\n\n"
        '@experiment("broken")\ndef broken():\n    """Never made."""\n    raise RuntimeError("no data here")\n'
    )
    listed = " ".join(done("list", "experiment", "--plugin", str(tmp_path / "broken.py")).split())
    assert "cannot be shown: it raised RuntimeError (no data here)" in listed
    assert "infilling" in listed


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("import math\n\nmath.no_such_thing\n", r"AttributeError: .*no_such_thing.*, line 3\): mend it"),
        ("x = 1\nif x\n", r"SyntaxError: expected ':', line 2"),
        ("from twistlm.training.losses import loss\n\n\n@loss('ctl', sources=('target',))\ndef ctl(target): ...\n",
         r"loss 'ctl' is registered twice, in twistlm.training.losses.ctl and in twistlm_plugins.bad; choose another"),
        (None, "is no file; give the path of a Python file"),
    ],
)  # fmt: skip
def test_a_file_that_cannot_be_loaded_says_why(text: str | None, message: str, tmp_path: Path) -> None:
    registry.available("loss")
    path = tmp_path / "bad.py"
    if text is not None:
        path.write_text(text)
    for _ in range(2):
        with pytest.raises(ConfigError, match=message):
            plugins.load_file(path)
    assert path not in plugins.files()
    assert "twistlm_plugins.bad" not in sys.modules


def test_a_cell_may_be_run_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry._ENTRIES, "loss", {**registry.available("loss")})
    for summary in ("first", "second"):

        def cell(target):  # type: ignore[no-untyped-def]
            return target

        registry.register("loss", "cell", summary=summary, sources=("target",))(cell)
    assert registry.lookup("loss", "cell").summary == "second"
    with pytest.raises(ConfigError, match="registered twice"):
        registry.register("loss", "cell")(lambda target: target)


def test_own_settings_name_no_plugin() -> None:
    assert plugins.hashes(TrainingConfig().parts.items()) == {}
    assert set(TrainingConfig(loss="0.5*ctl+0.5*dpg", target_source="proposal+exact").parts) == {
        "loss ctl", "loss dpg", "optimiser adamw", "source proposal", "source exact",
    }  # fmt: skip
