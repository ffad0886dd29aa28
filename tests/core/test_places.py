"""Places in stores, against real ones: fsspec's own in memory, and a server of S3 (moto) that s3fs talks to."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import fsspec
import pytest

from tests.core.test_leases import until
from twistlm.cli import main
from twistlm.core import leases
from twistlm.core.errors import ConfigError, LeaseLostError, RunError, StorageError
from twistlm.core.folders import writing, writing_file
from twistlm.core.mirrors import Mirror
from twistlm.core.places import opened, shown
from twistlm.core.storage import save_json, save_lines
from twistlm.core.stores import Store
from twistlm.runs.run import Run

TRAIN = ["train", "sentiment", "--preset", "smoke", "--num-tokens", "3", "--num-updates", "6", "--method", "ctl"]


SERVER = """
import logging, time
from moto.server import ThreadedMotoServer
logging.getLogger("werkzeug").setLevel(logging.ERROR)
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
time.sleep(3600)
"""


@pytest.fixture(scope="module")
def server() -> Iterator[dict[str, str]]:
    """What the environment says where there is an S3 server with a bucket."""
    process = subprocess.Popen([sys.executable, "-c", SERVER], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    said = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{int(process.stdout.readline())}",
        "AWS_ACCESS_KEY_ID": "somebody",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in said.items():
            patch.setenv(name, value)
        fsspec.filesystem("s3", skip_instance_cache=True).mkdir("bucket")
        yield said
    process.kill()
    process.communicate()


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Working copies of this machine."""
    monkeypatch.setenv("TWISTLM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(params=["memory", "s3"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A place that is not there yet."""
    if request.param == "s3":
        request.getfixturevalue("server")
    return f"{request.param}://bucket/{tmp_path.name}/run"


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """From here on this is another machine."""

    def move(name: str = "other") -> None:
        monkeypatch.setenv("TWISTLM_CACHE", str(tmp_path / name))

    return move


def objects(url: str) -> dict[str, bytes]:
    """What the store has beside a place, by names from there."""
    fs, path = fsspec.url_to_fs(url, use_listings_cache=False)
    fs.invalidate_cache()
    root = path.rpartition("/")[0]
    found = {}
    for name in fs.find(root):
        # Leases come and go.
        with suppress(FileNotFoundError):
            found[name[len(root) + 1 :]] = fs.cat_file(name)
    return found


def contents(url: str) -> dict[str, str]:
    """What a reader finds in a place."""
    with opened(url, write=False) as path:
        return {str(p.relative_to(path)): p.read_text() for p in path.rglob("*") if p.is_file()}


def test_what_is_written_is_there_before_anything_else_happens(url: str, elsewhere: Any) -> None:
    with opened(url, write=True) as path:
        with writing(path) as draft:
            save_json(draft.path / "config.json", 1)
            assert set(objects(url)) >= {"run/config.json"}
            with (path / "metrics.jsonl").open("a") as lines:
                lines.write("{}\n")
            assert "run/metrics.jsonl" not in objects(url)
            save_json(draft.path / "deep" / "checkpoint.json", 1)
            save_json(draft.path / "checkpoint.json", 1)
            # What grows goes before what counts its lines.
            assert objects(url)["run/metrics.jsonl"] == b"{}\n"
            assert shown(path / "x.json") == f"{url}/x.json"
        (path / "picture.png").write_bytes(b"not by us")
        (path / ".hidden").touch()
    names = {"config.json", "metrics.jsonl", "checkpoint.json", "deep/checkpoint.json", "picture.png"}
    assert set(objects(url)) == {f"run/{name}" for name in names}
    elsewhere()
    assert contents(url).keys() == names


def test_only_what_differs_is_fetched(url: str, elsewhere: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    fetched: list[str] = []
    get = Store.get
    monkeypatch.setattr(Store, "get", lambda self, name, file: (fetched.append(name), get(self, name, file))[1])
    with opened(url, write=True) as path:
        for name in "ab":
            save_json(path / f"{name}.json", name)
    assert not fetched
    elsewhere()
    for _ in range(2):
        assert contents(url) == {"a.json": '"a"\n', "b.json": '"b"\n'}
        assert sorted(fetched) == ["run/a.json", "run/b.json"]
    with opened(url, write=True) as path:
        save_json(path / "b.json", "other")
        (path / "a.json").unlink()
    # Nothing is deleted there because it is missing here.
    assert sorted(objects(url)) == ["run/a.json", "run/b.json"]
    elsewhere("cache")
    fetched.clear()
    assert contents(url) == {"a.json": '"a"\n', "b.json": '"other"\n'}
    assert fetched == ["run/b.json"]


def test_what_could_not_be_published_is_kept(
    url: str, elsewhere: Any, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    put = Store.put

    def write(value: int, *, fails: bool) -> None:
        def refuse(*_: Any) -> None:
            raise StorageError("no route")

        with opened(url, write=True) as path:
            save_json(path / "config.json", value)
            with monkeypatch.context() as broken:
                if fails:
                    broken.setattr(Store, "put", refuse)
                save_json(path / "result.json", value)

    write(1, fails=False)
    with pytest.raises(StorageError, match="no route"):
        write(2, fails=True)
    # Here `_save` has published it at the end; so the store is cut off for longer.
    monkeypatch.setattr(Store, "put", lambda *_: (_ for _ in ()).throw(StorageError("no route")))
    with pytest.raises(StorageError, match="no route"):
        write(3, fails=False)
    assert "What is not published is in" in caplog.text
    monkeypatch.setattr(Store, "put", put)
    assert contents(url)["config.json"] == "3\n", "nobody else has written: what is here is ahead"
    with opened(url, write=True):
        pass
    assert objects(url)["run/config.json"] == b"3\n"
    # Once somebody else has written, that is what counts.
    monkeypatch.setattr(Store, "put", lambda *_: (_ for _ in ()).throw(StorageError("no route")))
    with pytest.raises(StorageError):
        write(4, fails=False)
    monkeypatch.setattr(Store, "put", put)
    elsewhere()
    write(5, fails=False)
    elsewhere("cache")
    assert contents(url) == {"config.json": "5\n", "result.json": "5\n"}
    assert "is dropped (config.json)" in caplog.text


class Killed(BaseException):
    """This process, as far as the store can tell."""


def test_replacing_is_all_or_nothing_wherever_it_is_killed(
    elsewhere: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Who opens it next has waited for the one that was killed.
    monkeypatch.setattr("twistlm.core.stores.unchanged", lambda *_: True)
    old, new = {"a.json": "0\n", "b.json": "0\n"}, {"b.json": "1\n", "deep/c.json": "1\n"}
    seen, number = [], 0
    while True:
        url = f"memory://kills/{tmp_path.name}/{number}/run"
        elsewhere(f"{number}-one")
        with opened(url, write=True) as path, writing(path) as draft:
            for name in old:
                save_json(draft.path / name, 0)
        left = number

        def count(method: Any) -> Any:
            def maybe(*arguments: Any) -> Any:
                nonlocal left
                left -= 1
                if left < 0:
                    raise Killed
                return method(*arguments)

            return maybe

        killed = False
        with pytest.MonkeyPatch.context() as patch:
            for name in ("put", "write", "copy", "remove"):
                patch.setattr(Store, name, count(getattr(Store, name)))
            try:
                with opened(url, write=True) as path, writing(path, replace=True) as draft:
                    for name in new:
                        save_json(draft.path / name, 1)
            except Killed:
                killed = True
        for name in ("reader", "writer", "one"):
            elsewhere(f"{number}-{name}")
            found = contents(url)
            assert found in (old, new), (number, name)
            seen.append(found == new)
            if name == "writer":
                with opened(url, write=True) as path:
                    assert {str(p.relative_to(path)): p.read_text() for p in path.rglob("*.json")} == found
                rest = {each for each in objects(url) if not each.startswith(".run.new/")}
                assert rest == {f"run/{each}" for each in found}
        number += 1
        if not killed:
            break
    assert number > 10
    assert seen[0] is False
    assert seen[-1] is True
    assert seen == sorted(seen), "once it counts, it counts for everyone"
    assert set(objects(url)) == {f"run/{each}" for each in new}


def test_a_file_is_a_place_too(url: str, elsewhere: Any) -> None:
    for value in (1, 2):
        with opened(url, write=True) as path, writing_file(path, replace=True) as file:
            save_json(file, value)
    assert objects(url) == {"run": b"2\n"}
    elsewhere()
    with opened(url, write=False) as path:
        assert path.read_text() == "2\n"


def test_nothing_is_left_by_what_is_refused(url: str) -> None:
    def refuse() -> None:
        with opened(url, write=True) as path, writing(path) as draft:
            save_json(draft.path / "config.json", 1)
            raise RunError(f"{path} is refused")

    with pytest.raises(RunError, match=f"{url} is refused"):
        refuse()
    assert objects(url) == {}


def test_what_moves_or_goes_does_so_there(url: str) -> None:
    from twistlm.runs.folder.place import Place

    with opened(url, write=True) as path:
        save_lines(path / "samples.jsonl", [{}])
        Place(path).move(path / "samples.jsonl", "samples/earlier.jsonl")
        assert "run/samples.jsonl" not in objects(url)
    assert set(objects(url)) == {"run/samples/earlier.jsonl"}


# --- Two machines ---

MACHINE = """
import os, sys, time
from pathlib import Path
from twistlm.core import leases
leases.RENEW_SECONDS, leases.EXPIRE_SECONDS = 0.2, 4.0
from twistlm.core.errors import TwistError
from twistlm.core.places import opened
from twistlm.core.storage import save_json

machine, place, url = sys.argv[1], Path(sys.argv[2]), sys.argv[3]
os.environ["TWISTLM_CACHE"] = str(place / machine)
"""
WRITER = """
try:
    with opened(url, write=True) as path:
        for number in range(10_000):
            save_json(path / f"{machine}.json", number)
            time.sleep(0.01)
except TwistError as error:
    sys.exit(str(error))
"""
RACER = """
other = "b" if machine == "a" else "a"
for number in range(20):
    (place / f"{number}-{machine}").touch()
    while not (place / f"{number}-{other}").exists():
        time.sleep(0.001)
    try:
        with opened(f"{url}-{number}", write=True) as path:
            begun = time.monotonic()
            time.sleep(0.05)
            print(number, begun, time.monotonic(), flush=True)
    except TwistError as error:
        assert "is being written by process" in str(error), error
"""


def machine(name: str, place: Path, url: str, code: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", MACHINE + code, name, str(place), url], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True,
    )  # fmt: skip


# By day in a folder that machines share: tests/core/test_leases.py.
@pytest.mark.nightly
@pytest.mark.usefixtures("server")
def test_of_two_machines_never_both(tmp_path: Path) -> None:
    processes = [machine(name, tmp_path, "s3://bucket/races/to", RACER) for name in "ab"]
    said = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said
    held: dict[int, list[tuple[float, float]]] = {}
    for out, _ in said:
        for line in out.splitlines():
            number, begun, ended = line.split()
            held.setdefault(int(number), []).append((float(begun), float(ended)))
    assert len(held) == 20, "one of them gets it"
    for spans in held.values():
        first, *second = sorted(spans)
        assert all(first[1] <= begun for begun, _ in second)


# By day in a folder that machines share: tests/core/test_leases.py.
@pytest.mark.nightly
@pytest.mark.usefixtures("server")
def test_what_is_taken_from_a_stopped_one_it_never_writes_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "EXPIRE_SECONDS", 4.0)
    url = "s3://bucket/stopped/run"
    one = machine("a", tmp_path, url, WRITER)
    other = None
    try:
        until(lambda: "run/a.json" in objects(url))
        with pytest.raises(RunError, match=f"{url} is being written by process {one.pid} on "), opened(url, write=True):
            pass
        one.send_signal(signal.SIGSTOP)
        time.sleep(0.2)
        before = objects(url)["run/a.json"]
        other = machine("b", tmp_path, url, WRITER)
        until(lambda: "run/b.json" in objects(url))
        one.send_signal(signal.SIGCONT)
        _, errors = one.communicate(timeout=30)
        *warned, error = errors.strip().splitlines()
        assert not warned, errors
        assert f"{url} was taken over by process {other.pid} on " in error
        after = objects(url)
        # The upload that was under way when it was stopped may have landed, and no other.
        assert int(after["run/a.json"]) - int(before) in (0, 1)
        until(lambda: objects(url)["run/b.json"] != after["run/b.json"])
    finally:
        for process in (one, other):
            if process is not None:
                process.kill()
                process.communicate()


def test_late_is_lost_even_where_nobody_came(monkeypatch: pytest.MonkeyPatch) -> None:
    url = "memory://late/bucket/run"

    def write() -> None:
        with opened(url, write=True) as path:
            save_json(path / "before.json", 1)
            monkeypatch.setattr(leases, "now", lambda: time.monotonic() + 1e6)
            save_json(path / "after.json", 1)

    with pytest.raises(LeaseLostError, match="is not held any longer"):
        write()
    assert "run/after.json" not in objects(url)


# --- Commands ---


def timeless(url: str) -> dict[str, Any]:
    from tests.kills import timeless as without_times

    found: dict[str, Any] = {}
    for name, content in objects(url).items():
        if name.endswith(".jsonl"):
            found[name] = [without_times(json.loads(line)) for line in content.splitlines()]
        else:
            found[name] = without_times(json.loads(content)) if name.endswith(".json") else content
    return found


@pytest.mark.nightly
def test_killed_and_continued_on_another_machine(
    server: dict[str, str], elsewhere: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main([*TRAIN, "--out", "s3://bucket/whole/run"]) == 0
    assert "saved in s3://bucket/whole/run." in capsys.readouterr().out
    truth, url = timeless("s3://bucket/whole/run"), "s3://bucket/killed/run"
    code = "import sys, twistlm.training.trainer as t; t.CHECKPOINT_SECONDS = 0; from twistlm.cli import main;"
    process = subprocess.Popen(
        [sys.executable, "-c", f"{code} sys.exit(main())", *TRAIN, "--out", url], env={**os.environ, **server}
    )
    until(lambda: b"update" in objects(url).get("run/metrics.jsonl", b""), 120)
    process.kill()
    process.communicate()
    assert "run/twist.safetensors" not in objects(url)
    elsewhere()
    # Nothing was heard of it for a minute.
    monkeypatch.setattr(leases, "EXPIRE_SECONDS", 2.0)
    with opened(url, write=True):
        pass
    monkeypatch.setattr(leases, "EXPIRE_SECONDS", 60.0)
    assert main([*TRAIN, "--out", url]) == 2
    assert f"{url} exists already" in capsys.readouterr().err
    assert main([*TRAIN, "--out", url, "--resume"]) == 0
    assert timeless(url) == truth
    elsewhere("third")
    assert main(["sample", url, "--num-samples", "2"]) == 0
    assert main(["evaluate", url, "--num-samples", "8", "--budget", "16"]) == 0
    assert main(["report", url]) == 0
    assert {"run/samples.jsonl", "run/certificate.json", "run/report.html"} <= objects(url).keys()
    elsewhere("fourth")
    assert len(Run.load(url).sample(2).texts) == 2


@pytest.mark.usefixtures("server")
def test_a_sweep_of_several_processes(tmp_path: Path, elsewhere: Any) -> None:
    url = "s3://bucket/sweeps/run"
    sweep = ["sweep", *TRAIN[1:6], "--num-updates", "1", "--methods", "ctl,rl", "--seeds", "1", "--jobs", "2"]
    assert main([*sweep, "--out", url]) == 0
    done = [name for name in objects(url) if name.endswith("done.json")]
    assert sorted(done) == ["run/ctl/seed-0/done.json", "run/rl/seed-0/done.json"]
    before = objects(url)
    elsewhere()
    assert main([*sweep, "--out", url]) == 0
    assert objects(url) == before
    assert main(["table", url]) == 0
    assert "run/table.md" in objects(url)


@pytest.mark.usefixtures("server")
def test_collected_draws_serve_from_there(elsewhere: Any, tmp_path: Path) -> None:
    url = "s3://bucket/collected/run"
    collect = ["collect", *TRAIN[1:6], "--max-draws", "512"]
    assert main([*collect, "--out", url]) == 0
    assert main([*collect, "--out", url, "--overwrite", "--seed", "1"]) == 0
    assert set(objects(url)) == {"run"}
    elsewhere()
    assert main([*TRAIN, "--draws", url, "--out", f"file://{tmp_path}/here"]) == 0
    assert (tmp_path / "here" / "draws.safetensors").read_bytes() == objects(url)["run"]


@pytest.mark.usefixtures("server")
@pytest.mark.parametrize(
    ("place", "code", "said"),
    [
        ("s3://nowhere/runs/run", 1, "The specified bucket does not exist"),
        ("s3://bucket", 2, "is a whole bucket; name a folder or a file in it, s3://bucket/run"),
        ("s4://bucket/run", 2, "Protocol not known: s4"),
        ("gs://bucket/run", 2, "install gcsfs"),
    ],
)
def test_what_is_wrong_with_a_place_is_one_line(place: str, code: int, said: str, capsys: Any) -> None:
    assert main([*TRAIN, "--out", place]) == code
    errors = capsys.readouterr().err
    assert errors.startswith(f"error: {place} ")
    assert said in errors
    assert errors.count("\n") == 1


@pytest.mark.usefixtures("server")
def test_without_credentials(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    fsspec.filesystem("s3").clear_instance_cache()
    assert main([*TRAIN, "--out", "s3://bucket/secret/run"]) == 1
    assert "credentials" in capsys.readouterr().err
    fsspec.filesystem("s3").clear_instance_cache()


def test_paths_stay_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    for place in ("run", "a:b", "c:/run"):
        with opened(place, write=True) as path:
            assert path == Path(place)
    with opened(Path(f"file://{tmp_path}/x"), write=True) as path:
        assert path == tmp_path / "x"
    assert Mirror("s3://bucket/run").local.name == "run"
    assert main([*TRAIN[:-2], "--prompts", "s3://bucket/prompts.txt", "--out", "run"]) == 2
    assert "must be a path on this machine, not s3://bucket/prompts.txt" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="whole bucket"):
        Store("s3://bucket/")


@pytest.mark.usefixtures("server")
def test_probabilities_and_certificates_too(elsewhere: Any, capsys: pytest.CaptureFixture[str]) -> None:
    url, event = "s3://bucket/searches/run", ["--regex", "a", "--num-tokens", "2", "--num-draws", "64"]
    search = ["probability", "Once", *event, "--max-rounds", "1", "--num-samples", "256", "--out", url]
    assert main(search) == 0
    assert f"Written to {url}; open {url}/probability.html" in capsys.readouterr().out
    assert set(objects(url)) == {f"run/{name}" for name in ("probability.json", "events.jsonl", "probability.html")}
    elsewhere()
    assert main(search) == 2
    assert main([*search, "--resume"]) == 0
    certify = [
        "certify",
        *TRAIN[1:6],
        "--num-draws",
        "64",
        "--num-samples",
        "8",
        "--budget",
        "16",
        "--num-particles",
        "4",
    ]
    assert main([*certify, "--out", "s3://bucket/certificates/one.json"]) == 0
    assert set(objects("s3://bucket/certificates/one.json")) == {"one.json"}
    assert main([*certify, "--out", "s3://bucket/certificates/one.json"]) == 2
    assert "s3://bucket/certificates/one.json exists already" in capsys.readouterr().err
