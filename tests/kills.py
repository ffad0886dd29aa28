"""Kill commands at random moments and give them again: what comes out must be what comes out of an undisturbed run.

    python -m tests.kills                   # a hundred kills over all of `COMMANDS`, at the default threads
    python -m tests.kills train sweep --kills 20 --signals KILL,TERM        # ten of each, by turns

This process only imports; every command is a fork of it, so that its seconds are spent on work. It is killed (with -9,
or told to end by another signal, which it has to obey) up to `ROUND` times on the way, each time at a random moment of
what is left, and then runs to its end.
"""

import argparse
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from twistlm.__main__ import WORDS, _leave

# Commands are killed so often before they may end.
ROUND = 5
# What tells nothing: when and for how long.
TIMES = {"seconds", "since"}
TINY = ["--preset", "smoke"]
COMMANDS: dict[str, list[str]] = {
    "train": [
        "train",
        "toxicity",
        *TINY,
        "--method",
        "rl",
        "--learning-rate",
        "0.003",
        "--num-updates",
        "6",
        "--num-draws",
        "512",
    ],
    "collect": ["collect", "toxicity", *TINY, "--max-draws", "4096"],
    # Twelve prompts, of which two are held out, and a pool.
    "prompts": [
        *("train", "toxicity", *TINY, "--prompts", str(Path(__file__).with_name("prompts.txt"))),
        *("--method", "gkl", "--num-updates", "6", "--num-draws", "512"),
    ],
    "probability": [
        "probability",
        "Once upon a time, there was a",
        *("--potential", "classifier:model=toxicity,label=toxic", "--thresholds", "0.02", "0.05"),
        *("--num-draws", "512", "--max-rounds", "2", "--num-samples", "2048"),
    ],
    "certify": [
        *("certify", "toxicity", *TINY),
        *("--num-draws", "4096", "--num-samples", "64", "--num-particles", "4", "16"),
    ],
    "sweep": ["sweep", "toxicity", *TINY, "--methods", "rl,ctl", "--seeds", "1", "--jobs", "2"],
}
# Few tokens: half a second for 2,048 draws.
OPTIONS = ["--num-tokens", "5"]
# What they write, where it is no folder.
FILES = {"collect": "draws.safetensors", "certify": "certificate.json"}
RESUME = {
    "train": ["--resume"],
    "prompts": ["--resume"],
    "collect": ["--resume"],
    "probability": ["--resume"],
    # Nothing is there until its end.
    "certify": [],
    "sweep": [],
}


def start(arguments: list[str], log: Path) -> int:
    """A process that runs the command line."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, WORDS)
    pid = os.fork()
    if pid:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return pid
    code = 70
    try:
        os.setsid()
        # As where a process begins (`twistlm.__main__`).
        for number in WORDS:
            signal.signal(number, _leave)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        for descriptor in (1, 2):
            os.dup2(output, descriptor)
        from twistlm.cli import main

        code = main(arguments)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def wait(pid: int, seconds: float | None = None) -> int | None:
    """The exit code; None if it is still running after so many seconds."""
    end = None if seconds is None else time.monotonic() + seconds
    while end is None or time.monotonic() < end:
        found, status = os.waitpid(pid, 0 if end is None else os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.001)
    return None


def to_the_end(arguments: list[str], log: Path) -> float:
    """Run it; seconds that it took. A worker of what was killed may hold its folder for a moment longer."""
    for _ in range(50):
        begun = time.monotonic()
        code = wait(start(arguments, log))
        if code == 0:
            return time.monotonic() - begun
        if "is being written by" not in log.read_text():
            break
        log.write_text("")
        time.sleep(0.2)
    raise SystemExit(f"{' '.join(arguments)} ended with code {code}:\n{log.read_text()[-3000:]}")


def content(path: Path) -> dict[str, Any]:
    """Every file in a folder, or the one at `path`, without times, locks and what a kill left half-written."""
    files = [path] if path.is_file() else [each for each in path.rglob("*") if each.is_file()]
    found: dict[str, Any] = {}
    for file in files:
        if file.name.startswith("."):
            continue
        name = str(file.relative_to(path)) if path.is_dir() else "file"
        if file.suffix == ".json":
            found[name] = timeless(json.loads(file.read_text()))
        elif file.suffix == ".jsonl":
            found[name] = [timeless(json.loads(line)) for line in file.read_text().splitlines()]
        else:
            found[name] = file.read_bytes()
    return found


def timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: timeless(each) for name, each in value.items() if name not in TIMES}
    return [timeless(each) for each in value] if isinstance(value, list) else value


def differences(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    return sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))


def trial(command: str, kills: int, seed: int, place: Path, by: Sequence[signal.Signals]) -> list[str]:
    """Kill a command so often and compare; the names of files that differ, each with its round."""
    from twistlm.core.rng import Rng

    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    log, name = place / "log", FILES.get(command, "out")
    whole = place / f"whole-{name}"
    arguments = [*COMMANDS[command], *OPTIONS, "--out"]
    seconds = to_the_end([*arguments, str(whole)], log)
    truth, wrong, done = content(whole), [], 0
    rng = Rng(seed, ("kills", command))
    for number in range(-(-kills // ROUND)):
        out = place / f"{number}-{name}"
        # Killed after a while that gets shorter on average: what is left gets shorter too.
        for share in (rng.fork(number).uniform((1, min(ROUND, kills - done)))[0] * 0.8).tolist():
            resume = RESUME[command] if out.exists() else []
            pid = start([*arguments, str(out), *resume], log)
            if wait(pid, share * seconds) is None:
                told = by[done % len(by)]
                os.kill(pid, told)
                code = wait(pid)
                if told != signal.SIGKILL and code not in (0, 128 + told):
                    wrong.append(f"{command} ended with code {code} by {told.name}: {log.read_text()[-1000:]}")
            done += 1
        if command != "certify" or not out.exists():
            resume = RESUME[command] if out.exists() else []
            to_the_end([*arguments, str(out), *resume], log)
        wrong += [f"{command}, folder {number}: {each}" for each in differences(truth, content(out))]
    return wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--kills", type=int, default=100, help="in all, spread over the commands")
    parser.add_argument("--signals", default="KILL", help="what kills, by turns: KILL,TERM,INT")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("commands", nargs="*", default=list(COMMANDS))
    asked = parser.parse_args()
    by = [signal.Signals[f"SIG{name}"] for name in asked.signals.split(",")]
    os.environ |= {"TWISTLM_PROGRESS": "0", "TOKENIZERS_PARALLELISM": "false"}
    # Imports, and nothing that starts a thread: a fork would be without it.
    import torch

    import twistlm.certificates.fresh
    import twistlm.models.huggingface
    import twistlm.report.probability_page
    import twistlm.runs.certify
    import twistlm.runs.probability
    import twistlm.runs.sweeps.sweep
    import twistlm.sampling.exact.collect
    import twistlm.training.trainer

    # More than the smoke preset would see of them otherwise.
    twistlm.training.trainer.CHECKPOINT_SECONDS = twistlm.sampling.exact.collect.SAVE_SECONDS = 0.1
    twistlm.certificates.fresh.CHUNK = 512
    wrong: list[str] = []
    print(f"{torch.get_num_threads()} threads", flush=True)
    with tempfile.TemporaryDirectory() as place:
        for number, command in enumerate(asked.commands):
            begun, (each, more) = time.monotonic(), divmod(asked.kills, len(asked.commands))
            kills = each + (number < more)
            found = trial(command, kills, asked.seed, Path(place) / command, by)
            print(
                f"{command}: {kills} kills, {len(found)} files differ, {time.monotonic() - begun:.0f} s",
                flush=True,
            )
            wrong += found
    print(*wrong, sep="\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
