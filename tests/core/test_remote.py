"""Places that are URLs: fsspec's store in memory; and, for several processes, one whose objects are files."""

import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.local import LocalFileSystem

from tests.forked import Command, twistlm
from twistlm.cli import main
from twistlm.core.errors import ConfigError, LeaseLostError, RunError, StorageError
from twistlm.core.folders import writing
from twistlm.core.remote import opened, publish, shown
from twistlm.core.storage import save_json
from twistlm.runs.run import Run

pytestmark = pytest.mark.usefixtures("forks")

TRAIN = ["train", "sentiment", "--preset", "smoke", "--num-tokens", "3", "--method", "ctl"]
# What makes `shelf:///folder/NAME` a URL in another process: a plugin.
PLUGIN = "import fsspec\nfrom tests.core.test_remote import Shelf\nfsspec.register_implementation('shelf', Shelf)\n"


class Shelf(LocalFileSystem):
    """A store whose objects are files."""

    protocol = "shelf"

    def __init__(self, **options: Any) -> None:
        super().__init__(**{**options, "auto_mkdir": True})

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        if isinstance(path, list):
            return [cls._strip_protocol(each) for each in path]
        return "/" + str(path).removeprefix("shelf:").strip("/")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Working copies of this machine."""
    fsspec.register_implementation("shelf", Shelf, clobber=True)
    monkeypatch.setenv("TWISTLM_CACHE", str(tmp_path / "cache"))
    yield tmp_path / "cache"
    fsspec.filesystem("memory").store.clear()


@pytest.fixture(params=["memory", "shelf"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A place that is not there yet."""
    return f"memory://bucket/{tmp_path.name}/run" if request.param == "memory" else f"shelf:/{tmp_path}/store/run"


def objects(url: str) -> dict[str, bytes]:
    """What the store has in a folder of places."""
    fs, path = fsspec.url_to_fs(url.rpartition("/")[0], use_listings_cache=False)
    return {name.removeprefix(f"{path}/"): fs.cat_file(name) for name in fs.find(path)}


def test_what_is_written_is_there_by_the_end(url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with opened(url, write=True) as here:
        with writing(here):
            save_json(here / "config.json", 1)
            save_json(here / "gone.json", 1)
            (here / "lines.jsonl").write_text("{}\n")
        assert shown(here / "config.json") == f"{url}/config.json"
        # Not before it is asked for.
        assert objects(url).keys() == {".run.writer"}
        publish(here)
        assert objects(url).keys() == {".run.writer", "run/config.json", "run/gone.json", "run/lines.jsonl"}
        (here / "gone.json").unlink()
        save_json(here / "config.json", 2)
    assert objects(url) == {"run/config.json": b"2\n", "run/lines.jsonl": b"{}\n"}
    # Another machine.
    monkeypatch.setenv("TWISTLM_CACHE", str(tmp_path / "other"))
    with opened(url, write=False) as there:
        assert (there / "config.json").read_text() == "2\n"
        assert there.is_relative_to(tmp_path / "other")


def test_what_others_have_put_there_stays(url: str) -> None:
    with opened(url, write=True) as here:
        here.mkdir()
        save_json(here / "mine.json", 1)
        fs, path = fsspec.url_to_fs(url)
        fs.makedirs(path, exist_ok=True)
        fs.pipe_file(f"{path}/theirs.json", b"2")
    assert objects(url) == {"run/mine.json": b"1\n", "run/theirs.json": b"2"}


def test_a_second_writer_is_refused(url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with opened(url, write=True) as here:
        here.mkdir()
        save_json(here / "config.json", 1)
        publish(here)
        with pytest.raises(RunError, match=f"{url} is being written by process"), opened(url, write=True):
            pass
        # Readers have what is newest here, and what was published elsewhere.
        save_json(here / "config.json", 2)
        with opened(url, write=False) as reader:
            assert (reader / "config.json").read_text() == "2\n"
        with monkeypatch.context() as patch:
            patch.setenv("TWISTLM_CACHE", str(tmp_path / "other"))
            with (
                pytest.raises(RunError, match=r"by process .* since 20.*delete \.run\.writer"),
                opened(url, write=True),
            ):
                pass
            with opened(url, write=False) as reader:
                assert (reader / "config.json").read_text() == "1\n"
    with opened(url, write=True) as here:
        assert (here / "config.json").read_text() == "2\n"


def test_what_a_store_refused_is_published_by_the_next(
    url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: Any) -> None:
        raise PermissionError("not today")

    fs, _ = fsspec.url_to_fs(url)
    refused = pytest.raises(StorageError, match=r"cannot be reached.*not today")
    with monkeypatch.context() as patch, refused, opened(url, write=True) as here:
        here.mkdir()
        save_json(here / "config.json", 1)
        patch.setattr(type(fs), "put_file", refuse)
    assert "TW503" in caplog.text
    with opened(url, write=False) as reader:
        assert (reader / "config.json").exists()
    with opened(url, write=True):
        pass
    assert objects(url) == {"run/config.json": b"1\n"}


def test_who_has_lost_the_working_copy_publishes_nothing(url: str) -> None:
    with pytest.raises(LeaseLostError), opened(url, write=True) as here:  # noqa: PT012
        here.mkdir()
        save_json(here / "config.json", 1)
        here.parent.with_name(f".{here.parent.name}.lock").unlink()
    assert objects(url).keys() == {".run.writer"}


def test_urls_that_name_no_place() -> None:
    for url, message in (
        ("memory://", "whole bucket"), ("nowhere://a/b", "cannot be opened.*Protocol not known: nowhere"),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=message), opened(url, write=False):
            pass


def test_commands_and_python(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*TRAIN, "--num-updates", "2", "--out", url]) == 0
    assert url in capsys.readouterr().out
    assert {"run/config.json", "run/twist.safetensors", "run/draws.safetensors"} <= objects(url).keys()
    run = Run.load(url)
    certificate = run.evaluate(num_particles=4, num_samples=4)
    assert Run.load(url).certificate == certificate
    assert main(["certify", url, "--num-particles", "4"]) == 0
    assert main([*TRAIN, "--num-updates", "2", "--out", url]) == 2
    assert f"{url} exists already" in capsys.readouterr().err
    assert main([*TRAIN, "--num-updates", "3", "--out", url, "--overwrite"]) == 0
    assert Run.load(url).config.training.num_updates == 3
    draws = f"{url}-draws.safetensors"
    assert main(["collect", "sentiment", "--preset", "smoke", "--num-tokens", "3", "--max-draws", "512", "--out", draws]) == 0  # fmt: skip  # noqa: E501
    assert main([*TRAIN, "--num-updates", "2", "--draws", draws, "--out", f"{url}-2"]) == 0


def test_a_kill_is_resumed_from_the_working_copy_and_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url, plugin = f"shelf:/{tmp_path}/store/run", tmp_path / "shelf.py"
    plugin.write_text(PLUGIN)
    arguments = [*TRAIN, "--num-updates", "60", "--plugin", str(plugin)]
    assert twistlm(*arguments, "--out", f"shelf:/{tmp_path}/store/whole").returncode == 0
    command = Command([*arguments, "--out", url])
    lines = tmp_path / "cache" / "places"
    command.wait_for(lambda: any(lines.glob("*/run/metrics.jsonl")), timeout=120)
    command.send_signal(signal.SIGKILL)
    command.communicate()
    assert ".run.writer" in objects(url)
    # Another machine is refused until somebody says that the writer has ended, and has what was published.
    with monkeypatch.context() as patch:
        patch.setenv("TWISTLM_CACHE", str(tmp_path / "other"))
        found = twistlm(*arguments, "--out", url, "--resume")
        assert found.returncode == 2
        assert "is being written by process" in found.stderr
        shutil.copytree(tmp_path / "store", tmp_path / "shelf")
        (tmp_path / "shelf" / ".run.writer").unlink()
        assert twistlm(*arguments, "--out", f"shelf:/{tmp_path}/shelf/run", "--resume").returncode == 0
    assert twistlm(*arguments, "--out", url, "--resume").returncode == 0
    whole = (tmp_path / "store" / "whole" / "twist.safetensors").read_bytes()
    assert (tmp_path / "store" / "run" / "twist.safetensors").read_bytes() == whole
    assert (tmp_path / "shelf" / "run" / "twist.safetensors").read_bytes() == whole
