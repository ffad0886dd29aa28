"""`twistlm serve`: OpenAI's own client against the real server on the bundled model."""

import json
import re
import shutil
import signal
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest

import twistlm
from tests.forked import Command
from tests.serving import serving
from twistlm import Run, Target
from twistlm.cli import main
from twistlm.core.errors import ConfigError
from twistlm.core.remote import opened
from twistlm.integrations.server.app import application
from twistlm.integrations.server.limits import Limits
from twistlm.potentials import Function

PROMPTS = ["Once upon a time, there was a", "The old man saw a big", "Lily and her dog", "Tom wanted to"]
KEY = "sesame"
SMALL: dict[str, Any] = {"twist": "low_rank", "num_updates": 2, "num_draws": 64, "num_particles": 8, "seed": 0}


def same_letter(prompts: list[str], texts: list[str]) -> list[float]:
    """log φ: three letters of the continuation should be the prompt's first."""
    return [-0.5 * abs(3 - text.lower().count(prompt[0].lower())) for prompt, text in zip(prompts, texts, strict=True)]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    target = Target("stories", Function(same_letter, on="pair", log_upper_bound=0.0), prompts=PROMPTS[:2], num_tokens=6)
    return twistlm.train(target, out=tmp_path_factory.mktemp("serve") / "letters", **SMALL)


@pytest.fixture(scope="module")
def address(run: Run) -> Iterator[str]:
    limits = Limits(num_particles=4, most_particles=16, most_samples=8, most_waiting=60, most_bytes=10_000, timeout=60)
    with serving(application(run, "letters", limits=limits, api_key=KEY)) as at:
        yield at


@pytest.fixture(scope="module")
def client(address: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{address}/v1", api_key=KEY, max_retries=0, timeout=60)


def test_completions(client: openai.OpenAI, run: Run) -> None:
    found = client.completions.create(model="letters", prompt=PROMPTS[:2], n=3, extra_body={"num_particles": 8})
    assert [choice.index for choice in found.choices] == list(range(6))
    assert found.usage is not None
    lengths = [len(run.target.lm.encode(prompt)) for prompt in PROMPTS[:2]]
    assert found.usage.prompt_tokens == sum(lengths)
    assert found.usage.completion_tokens <= 6 * 6
    for choice in found.choices:
        own: Any = choice.model_extra
        expected = same_letter([PROMPTS[choice.index // 3]], [choice.text])[0]
        assert own["twistlm"]["log_phi"] == pytest.approx(expected)
        assert own["twistlm"]["log_weight"] < 5
        assert own["twistlm"]["log_p"] < 0
        assert choice.finish_reason in ("stop", "length")
    assert [model.id for model in client.models.list()] == ["letters"]


def test_what_changes_nothing_may_be_said(client: openai.OpenAI) -> None:
    neutral = {"top_k": -1, "repetition_penalty": 1.0, "response_format": {"type": "text"}, "metadata": {"a": "b"}}
    found = client.completions.create(
        model="letters", prompt=PROMPTS[0], user="me", temperature=1, max_tokens=6, extra_body=neutral
    )
    assert len(found.choices) == 1


def test_a_seed_gives_the_same_whoever_else_asks(client: openai.OpenAI) -> None:
    def asked(seed: int | None) -> Any:
        return client.completions.create(model="letters", prompt=PROMPTS[2], n=2, seed=seed)

    alone = [choice.text for choice in asked(7).choices]
    with ThreadPoolExecutor(8) as pool:
        crowd = list(pool.map(asked, [None, 7, None, None, 7, None, 3, None]))
    for number in (1, 4):
        assert [choice.text for choice in crowd[number].choices] == alone
    assert len({choice.text for answer in crowd for choice in answer.choices}) > 4


def test_fifty_clients_at_once(client: openai.OpenAI, address: str) -> None:
    """Each has an answer of its own prompt: φ, which the server says, knows the prompt by its first letter."""

    def asked(number: int) -> tuple[int, Any]:
        return number, client.completions.create(
            model="letters", prompt=PROMPTS[number % len(PROMPTS)], n=1 + number % 2
        )

    with ThreadPoolExecutor(50) as pool:
        answers = list(pool.map(asked, range(50)))
    for number, answer in answers:
        assert len(answer.choices) == 1 + number % 2
        for choice in answer.choices:
            expected = same_letter([PROMPTS[number % len(PROMPTS)]], [choice.text])[0]
            assert choice.model_extra["twistlm"]["log_phi"] == pytest.approx(expected), (number, choice.text)
    metrics = _read(f"{address}/metrics", KEY)
    served = float(re.search(r'twistlm_requests_total\{status="200"\} (\S+)', metrics).group(1))  # type: ignore[union-attr]
    batches = float(re.search(r"(?m)^twistlm_batches (\S+)", metrics).group(1))  # type: ignore[union-attr]
    assert served >= 50
    # They were answered together.
    assert batches < served / 2


@pytest.mark.parametrize(
    ("asked", "status", "message"),
    [
        ({"temperature": 0.7}, 400, "temperature = 0.7 is of another way of decoding"),
        ({"stop": ["."]}, 400, "stop = "),
        ({"stream": True}, 400, "stream = True"),
        ({"max_tokens": 99}, 400, "max_tokens = 99, and this target's texts have 6"),
        ({"extra_body": {"response_format": {"type": "json_object"}}}, 400, "response_format = {'type': 'json_obj"),
        ({"extra_body": {"top_k": 5}}, 400, "top_k = 5 is of another way of decoding"),
        ({"extra_body": {"guided_json": {}}}, 400, "guided_json = {} is not known here and may change what is sampled"),
        ({"n": 0}, 400, "n: Input should be greater than or equal to 1"),
        ({"n": 9}, 400, "at most 8 sequences"),
        ({"prompt": []}, 400, "prompt"),
        ({"prompt": ""}, 400, "empty"),
        ({"model": "gpt"}, 404, "there is no model 'gpt' here; this is 'letters'"),
        ({"extra_body": {"num_particles": 17}}, 400, "num_particles is at most 16"),
        ({"prompt": "a" * 20_000}, 413, "more than 10,000 bytes"),
    ],
)
def test_what_is_not_to_be_had_is_refused(
    client: openai.OpenAI, asked: dict[str, Any], status: int, message: str
) -> None:
    with pytest.raises(openai.APIStatusError, match=re.escape(message)) as refused:
        client.completions.create(**{"model": "letters", "prompt": PROMPTS[0], **asked})
    assert refused.value.status_code == status


def test_keys_and_addresses(client: openai.OpenAI, address: str) -> None:
    with pytest.raises(openai.AuthenticationError):
        client.with_options(api_key="another").models.list()
    with pytest.raises(urllib.error.HTTPError, match="401"):
        _read(f"{address}/metrics", "")
    # Whether it is alive, anybody may know.
    assert '"status":"ok"' in _read(f"{address}/health", "")
    # What is wrong with a prompt is told from what is wrong with a request.
    with pytest.raises(openai.BadRequestError) as refused:
        client.completions.create(model="letters", prompt="a " * 3000)
    assert refused.value.param == "prompt"
    # A model without a chat template reads no chats; a single message is a prompt like others.
    asked: Any = {"role": "user", "content": PROMPTS[0]}
    with pytest.raises(openai.BadRequestError, match="no chat template"):
        client.chat.completions.create(model="letters", messages=[asked, asked])
    answered = client.chat.completions.create(model="letters", messages=[asked], n=4, seed=3)
    texts = client.completions.create(model="letters", prompt=PROMPTS[0], n=4, seed=3)
    assert [each.message.content for each in answered.choices] == [each.text for each in texts.choices]


def _read(url: str, key: str) -> str:
    asked = urllib.request.Request(url, headers={"Authorization": f"Bearer {key}"})
    with urllib.request.urlopen(asked, timeout=60) as answered:
        text: str = answered.read().decode()
        return text


def test_the_command(run: Run, tmp_path: Path) -> None:
    """It starts, answers, and ends when it is told to, with what was asked before answered."""
    assert run.folder is not None
    trusted, address = f"{same_letter.__module__}:same_letter", re.compile(r"running on (http://127\.0\.0\.1:\d+)")
    said = tmp_path / "said"
    started = Command(
        ["serve", str(run.folder.path), "--port", "0", "--trust-function", trusted], path=[Path.cwd()], stderr=said
    )
    started.wait_for(lambda: bool(address.search(said.read_text() if said.exists() else "")))
    found = address.search(said.read_text())
    assert found is not None, said.read_text()
    client = openai.OpenAI(base_url=f"{found.group(1)}/v1", api_key="none needed", max_retries=0, timeout=60)
    answers: list[Any] = []
    asking = threading.Thread(
        target=lambda: answers.append(client.completions.create(model="letters", prompt=PROMPTS[0], n=64))
    )
    asking.start()
    time.sleep(0.3)
    started.send_signal(signal.SIGTERM)
    asking.join(60)
    assert started.wait(60) == 128 + signal.SIGTERM
    assert len(answers[0].choices) == 64


def test_a_run_in_a_store_is_written_by_others_while_it_is_served(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run.folder is not None
    monkeypatch.setenv("TWISTLM_CACHE", str(tmp_path / "cache"))
    url, trusted = f"memory://bucket/{tmp_path.name}/stored", ["--trust-function", f"{__name__}:same_letter"]
    with opened(url, write=True) as place:
        shutil.copytree(run.folder.path, place, dirs_exist_ok=True)
    codes = []

    def serve_until_written(*_: Any, **__: Any) -> None:
        codes.append(main(["sample", url, "--num-samples", "2", "--prompt", PROMPTS[0], *trusted]))

    monkeypatch.setattr("uvicorn.run", serve_until_written)
    assert main(["serve", url, *trusted]) == 0, capsys.readouterr().err
    assert codes == [0], capsys.readouterr().err
    assert "stored: texts of 6 tokens" in capsys.readouterr().out
    with opened(url, write=False) as place:
        assert len((place / "samples.jsonl").read_text().splitlines()) == 2


@pytest.mark.parametrize(("given", "name"), [(".", "letters"), ("..", "letters"), ("../../link", "link")])
def test_a_run_is_called_as_its_folder(
    given: str, name: str, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run.folder is not None
    place = Path(shutil.copytree(run.folder.path, tmp_path / "letters"))
    (place / "inner").mkdir()
    (tmp_path / "link").symlink_to("letters")
    monkeypatch.chdir(place if given == "." else place / "inner")
    monkeypatch.setattr("uvicorn.run", lambda *_, **__: None)
    assert main(["serve", given, "--trust-function", f"{__name__}:same_letter"]) == 0, capsys.readouterr().err
    assert capsys.readouterr().out.startswith(f"{name}: texts of 6 tokens")


def test_nobody_else_gets_in_without_a_key(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TWISTLM_API_KEY", raising=False)
    assert main(["serve", "somewhere", "--host", "0.0.0.0"]) == 2
    assert "give --api-key" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="raise the latter"):
        Limits(num_particles=64, most_particles=32)


@pytest.fixture(scope="module")
def impatient(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server that gives up after two seconds, of texts that take half a minute if many are wanted at once."""
    target = Target(
        "stories", Function(same_letter, on="pair", log_upper_bound=0.0), prompts=PROMPTS[:2], num_tokens=48
    )
    run = twistlm.train(target, out=tmp_path_factory.mktemp("serve") / "long", **SMALL)
    with serving(application(run, "long", limits=Limits(num_particles=4, timeout=2.0))) as at:
        yield at


def _body(**asked: Any) -> bytes:
    return json.dumps({"model": "long", "prompt": PROMPTS[0], **asked}).encode()


LARGE = {"n": 16, "num_particles": 1024}


def test_work_that_nobody_waits_for_is_stopped(impatient: str) -> None:
    """The next request is answered: half a minute of work would outlast its own two seconds."""
    client = openai.OpenAI(base_url=f"{impatient}/v1", api_key="none", max_retries=0, timeout=60)
    with pytest.raises(openai.APIStatusError, match=r"not answered within 2 s"):
        client.completions.create(model="long", prompt=PROMPTS[0], n=16, extra_body={"num_particles": 1024})
    assert len(client.completions.create(model="long", prompt=PROMPTS[0]).choices) == 1
    # A client that goes without a word.
    host, port = impatient.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as gone:
        body = _body(**LARGE)
        gone.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
        time.sleep(0.3)
    assert len(client.completions.create(model="long", prompt=PROMPTS[0]).choices) == 1
    assert json.loads(_read(f"{impatient}/health", ""))["waiting"] == 0


def test_a_body_that_does_not_end_is_given_up(impatient: str) -> None:
    host, port = impatient.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=30) as slow:
        slow.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\n{")
        assert slow.recv(4096).startswith(b"HTTP/1.1 408")


def test_what_is_too_much_in_all_is_refused(impatient: str) -> None:
    client = openai.OpenAI(base_url=f"{impatient}/v1", api_key="none", max_retries=0, timeout=60)
    with pytest.raises(openai.BadRequestError, match=r"128 sequences × 1024 particles × 48 tokens are 6,291,456"):
        client.completions.create(model="long", prompt=PROMPTS[0], n=128, extra_body={"num_particles": 1024})
