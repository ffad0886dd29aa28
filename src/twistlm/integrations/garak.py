"""garak: a run behind `twistlm serve` as the target of garak's `function` generator::

    twistlm serve runs/toxic
    python -m garak --target_type function.Multiple --target_name twistlm.integrations.garak#text --spec probes.lmrc

garak has an environment of its own, since its requirements exclude ours. There this file needs the standard library
alone: `pip install --no-deps twistlm`.
"""

import functools
import json
import logging
import os
import time
import urllib.error
import urllib.request
from typing import Any

from twistlm.core.advice import coded
from twistlm.core.errors import ConfigError, ModelError

# The variables of the environment that say where the server is, and with which key it is asked.
URL, KEY = "TWISTLM_URL", "TWISTLM_API_KEY"
# Seconds to wait for a server that is asked too much: about as many tries, since it says "try again in a second".
PATIENCE = 300


def text(prompt: str, generations: int = 1, **fields: Any) -> list[str]:
    """What a run writes after a plain text.

    Args:
        prompt: the text; garak hands over the last message of its conversation.
        generations: how many are wanted.
        **fields: of the request, `num_particles` say (garak's option `kwargs`).

    Returns:
        So many posterior samples; none where the run has none after this prompt (it is empty, or too long, or every
        particle has weight zero), which garak counts as "nones".

    Raises:
        ModelError: there is no such server.
        ConfigError: it refuses what is asked for; the message is its own.
    """
    return [choice["text"] for choice in _choices("completions", generations, prompt=prompt, **fields)]


def chat(prompt: str, generations: int = 1, **fields: Any) -> list[str]:
    """What a run answers to a user's message, for models with a chat template; all else as for `text`."""
    messages = [{"role": "user", "content": prompt}]
    choices = _choices("chat/completions", generations, messages=messages, **fields)
    return [choice["message"]["content"] for choice in choices]


def _choices(path: str, n: int, **fields: Any) -> list[dict[str, Any]]:
    """The choices of an answer; none where the prompt is what is refused."""
    for _ in range(PATIENCE):
        try:
            found: list[dict[str, Any]] = _answer(path, {"model": _model(_address()), "n": n, **fields})["choices"]
            return found
        except urllib.error.HTTPError as error:
            said = _said(error)
            if error.code == 429:
                time.sleep(1)
            elif said.get("param") in ("prompt", "messages"):
                logging.warning(coded("TW508", "no sample: %s"), said["message"])
                return []
            else:
                raise ConfigError(f"{_address()} refuses what it is asked ({error.code}): {said['message']}") from error
    raise ConfigError(f"{_address()} was asked too much for {PATIENCE} s; lower parallel_attempts")


@functools.cache
def _model(address: str) -> str:
    """What the server at this address calls its run."""
    name: str = _answer("models")["data"][0]["id"]
    return name


def _address() -> str:
    return os.environ.get(URL, "http://127.0.0.1:8000/v1").rstrip("/")


def _answer(path: str, body: dict[str, Any] | None = None) -> Any:
    headers = {"Authorization": f"Bearer {os.environ.get(KEY, '')}", "Content-Type": "application/json"}
    request = urllib.request.Request(
        f"{_address()}/{path}", None if body is None else json.dumps(body).encode(), headers
    )
    try:
        with urllib.request.urlopen(request) as answered:
            return json.load(answered)
    except urllib.error.HTTPError:
        raise
    except (OSError, ValueError) as error:
        raise ModelError(
            f"{_address()} does not answer as `twistlm serve` does ({error}); start it, or say by {URL} where it is"
        ) from error


def _said(error: urllib.error.HTTPError) -> dict[str, Any]:
    """What the server says is wrong."""
    try:
        said: dict[str, Any] = json.load(error)["error"]
        return said if "message" in said else {"message": error.reason}
    except (ValueError, TypeError, KeyError):
        return {"message": error.reason}
