"""Damaged run and sweep folders, from a seed: edited, cut off, foreign and missing files, and what is read from them.

What must hold: no traceback; exit code 0, or 1 or 2 with one line on standard error and every file as it was. After
code 0 no result that was there is gone.
"""

import io
import itertools
import json
import random
import shutil
import sys
import traceback
from collections.abc import Iterator
from contextlib import chdir, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from tests.fuzz.harness import SECONDS, contents, limit
from twistlm.cli import main
from twistlm.core.errors import TwistError
from twistlm.report.page import save_page
from twistlm.report.record import read_all

TARGET = ["sentiment", "--preset", "smoke", "--num-tokens", "2"]
TRAIN = [
    "train",
    *TARGET,
    "--num-updates",
    "1",
    "--num-draws",
    "512",
    "--num-particles",
    "8",
    "--method",
    "ctl",
    "--out",
    "run",
]
SWEEP = ["sweep", *TARGET, "--methods", "ctl", "--seeds", "1", "--num-updates", "1", "--out", "sweep"]
CHEAP = ["--num-particles", "2", "--num-samples", "8", "--budget", "4"]
# What reads a file, by the beginning of its name; "page" is what a report is without its charts, which take seconds.
READERS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("sweep/sweep.json", ("table", "sweep")),
    ("sweep/draws", ("sweep",)),
    ("sweep/ctl/seed-0/certificate", ("table", "page")),
    ("sweep/ctl/seed-0/metrics", ("table", "page", "sample")),
    ("sweep/ctl/seed-0/done", ("table", "sweep")),
    ("config", ("sample", "evaluate", "certify", "resume", "page")),
    ("metrics", ("sample", "resume", "page")),
    ("checkpoint", ("resume",)),
    ("twist", ("sample", "evaluate", "certify", "page")),
    ("draws", ("sample", "evaluate", "certify", "resume")),
    ("certificate", ("evaluate", "page")),
    ("evaluations", ("evaluate", "page")),
    ("samples", ("sample", "page")),
    ("base_samples", ("sample", "page")),
    ("diagnostics", ("sample", "page")),
)
# Commands replace these, for they make them anew from the others.
MADE_ANEW = ("metrics.jsonl", "checkpoint.safetensors", "twist.safetensors", "table.", "report", "plots",
             "failures.json", "reference.json", "done.json")  # fmt: skip
VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 3, 10**6, 10**30, -(10**30), 0.5, -0.5, 1e308, -1e308, 5e-324, "", "x", "nan",
    "inf", "-inf", "ctl", "../../x", "a\0b", "\ud800", "x" * 5000, [], {}, [[]], [None], [1, 2, 3], ["x"], {"x": 1},
    {"bounds": []}, {"value": 0, "low": 0, "high": 0, "n": 1}, {"import": "os:abort"}, float("nan"), float("inf"),
    -float("inf"),
)  # fmt: skip
TEXTS = (
    "", " ", "null", "[]", "{}", "0", '"x"', "{", "[" * 100_000, '{"a":' * 50_000, "[" * 900 + "]" * 900,
    "1" + "0" * 5000, "NaN", "1e999", "\ufeff{}", "{} {}", '{"format": 1}', '{"kind": "update"}',
    '{"kind": "update"}\n{"kind": 3}\n',
)  # fmt: skip


@dataclass(frozen=True)
class Case:
    """A file to damage, from which random numbers, and what is then to read it."""

    number: str
    file: str
    command: tuple[str, ...]


@dataclass(frozen=True)
class Outcome:
    """What came of a case: its exit code (None if an error escaped), and what is wrong with it."""

    code: int | None
    problems: list[str]
    said: str


def furnish(place: Path) -> None:
    """A finished run with everything in it that a run can have, and a finished sweep."""
    place.mkdir(parents=True)
    with chdir(place), redirect_stdout(io.StringIO()):
        for command in (
            TRAIN, ["evaluate", "run", *CHEAP], ["evaluate", "run", *CHEAP, "--seed", "2"],
            ["sample", "run", "--num-samples", "4"], SWEEP,
        ):  # fmt: skip
            assert main(command) == 0, command


def cases(seed: int, template: Path, charts: bool = False) -> Iterator[Case]:
    """Endless, and the same for the same seed. With `charts` some commands draw them, which takes seconds each."""
    files = sorted(str(path.relative_to(template)) for path in template.rglob("*") if path.is_file())
    for number in range(2**62):
        rng = random.Random(f"{seed} {number}")
        file = rng.choice(files)
        run = "run" if file.startswith("run/") else "sweep/ctl/seed-0"
        inner = file.removeprefix(f"{run}/")
        readers = next(names for start, names in READERS if file.startswith(start) or inner.startswith(start))
        # A run of a sweep goes on when the sweep does.
        name = rng.choice([name if run == "run" or name != "resume" else "sweep" for name in readers])
        if charts and rng.random() < 0.1:
            name = {"page": "report"}.get(name, name)
        yield Case(f"{seed} {number}", file, _command(name, run))


def _command(name: str, run: str) -> tuple[str, ...]:
    cheap = CHEAP if name in ("evaluate", "certify") else ["--num-samples", "2"] if name == "sample" else []
    if name in ("sweep", "table"):
        return tuple(SWEEP) if name == "sweep" else ("report", "sweep")
    return (*TRAIN, "--resume") if name == "resume" else (name, run, *cheap)


def attempt(case: Case, template: Path, place: Path) -> Outcome:
    """Damage a copy of the template, run the command, and see what it did."""
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(template, place)
    how = damage(random.Random(f"{case.number} damage"), place / case.file)
    before, problems, out, err = contents(place), [], io.StringIO(), io.StringIO()
    code: int | None = None
    with chdir(place), limit(SECONDS), redirect_stdout(out), redirect_stderr(err):
        try:
            code = _page(case.command[1]) if case.command[0] == "page" else main(list(case.command))
        except SystemExit as stopped:
            code = stopped.code if isinstance(stopped.code, int) else 1
        except BaseException:
            problems.append(f"an error escaped: {traceback.format_exc(limit=-4)}")
    after, said = contents(place), err.getvalue()
    if code is not None:
        problems += _wrong_words(code, said)
    if code != 0 and after != before:
        changed = sorted(name for name in {*before, *after} if before.get(name) != after.get(name))
        problems.append(f"refused, and yet these are not as they were: {', '.join(changed)}")
    if code == 0:
        kept = set(after.values())
        # A sweep that makes a certificate once more gets the same, but for the seconds that it took.
        again = ("certificate.json",) if case.command[0] == "sweep" else ()
        gone = [name for name, what in before.items() if what not in kept and not _is_made_anew(name)]
        lost = [name for name in gone if not name.endswith(again or "\0")]
        problems += [f"gone: {name}" for name in lost]
    problems += [f"left behind: {name}" for name in after if name not in before and Path(name).name.startswith(".")]
    return Outcome(code, [f"{each} ({how})" for each in problems], said)


def _page(run: str) -> int:
    """What `twistlm report` does, but for charts as files."""
    try:
        save_page(read_all([Path(run)]), Path(run) / "report.html")
    except TwistError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def _is_made_anew(name: str) -> bool:
    return any(part.startswith(MADE_ANEW) for part in Path(name).parts)


def _wrong_words(code: int, said: str) -> list[str]:
    problems = ["a traceback was printed"] if "Traceback" in said else []
    if code not in (0, 1, 2):
        problems.append(f"exit code {code}")
    # Warnings are said on the way.
    lines = [line for line in said.splitlines() if not line.startswith("WARNING: ")]
    if code and (len(lines) != 1 or not lines[0].startswith("error: ") or len(lines[0]) < len("error: ") + 8):
        problems.append(f"{len(lines)} lines in place of one error: {said[-300:]!a}")
    return problems


# --- Damage ---


def damage(rng: random.Random, path: Path) -> str:
    """Do something to a file; returns what."""
    edits = [_edit_tensors] if path.suffix == ".safetensors" else [_edit_json]
    edit = rng.choices(
        [*edits, _cut, _flip, _foreign, _gone, _folder, _text, _bytes], [8, 1.5, 1, 1, 0.7, 0.5, 1.5, 0.5]
    )[0]
    return f"{path.name}: {edit.__name__.removeprefix('_')} {edit(rng, path)}"


def _cut(rng: random.Random, path: Path) -> str:
    data = path.read_bytes()
    at = rng.randrange(len(data) + 1)
    path.write_bytes(data[:at])
    return f"at {at} of {len(data)}"


def _flip(rng: random.Random, path: Path) -> str:
    data = bytearray(path.read_bytes())
    for _ in range(rng.choice((1, 3, 30))):
        if data:
            data[rng.randrange(min(len(data), rng.choice((64, 1024, len(data)))))] = rng.randrange(256)
    path.write_bytes(bytes(data))
    return ""


def _foreign(rng: random.Random, path: Path) -> str:
    others = sorted(each for each in path.parent.parent.rglob("*") if each.is_file() and each != path)
    other = rng.choice(others)
    path.write_bytes(other.read_bytes())
    return f"is {other.name}"


def _gone(rng: random.Random, path: Path) -> str:
    path.unlink()
    return ""


def _folder(rng: random.Random, path: Path) -> str:
    path.unlink()
    path.mkdir()
    return ""


def _text(rng: random.Random, path: Path) -> str:
    text = rng.choice(TEXTS)
    path.write_text(text, encoding="utf-8")
    return f"{text[:20]!r} of {len(text)}"


def _bytes(rng: random.Random, path: Path) -> str:
    path.write_bytes(rng.randbytes(rng.choice((1, 7, 8, 9, 100, 5000))))
    return ""


def _edit_json(rng: random.Random, path: Path) -> str:
    if path.suffix == ".jsonl":
        lines = path.read_text(encoding="utf-8").splitlines()
        at = rng.randrange(len(lines))
        lines[at], how = _edited(rng, lines[at])
        path.write_text("\n".join(lines) + "\n", encoding="utf-8", errors="surrogatepass")
        return f"line {at + 1}: {how}"
    text, how = _edited(rng, path.read_text(encoding="utf-8"))
    path.write_text(text, encoding="utf-8", errors="surrogatepass")
    return how


def _edited(rng: random.Random, text: str) -> tuple[str, str]:
    """JSON with one value replaced or gone, or one key more; whatever is no JSON comes back as it is."""
    try:
        value = json.loads(text)
    except ValueError:
        return text, "not at all"
    places = list(_places(value))
    if not places:
        return json.dumps(rng.choice(VALUES)), "all"
    holder, key = rng.choice(places)
    match rng.choices(("replace", "remove", "add"), (6, 2, 1))[0]:
        case "replace":
            holder[key] = rng.choice(VALUES)
            how = f"{key!r} is {str(holder[key])[:30]!a}"
        case "remove":
            del holder[key]
            how = f"without {key!r}"
        case _:
            how = "one more"
            if isinstance(holder, list):
                holder.insert(key, rng.choice(VALUES))
            else:
                holder["more"] = rng.choice(VALUES)
    return json.dumps(value), how


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, each in items:
        yield value, key
        yield from _places(each)


def _edit_tensors(rng: random.Random, path: Path) -> str:
    """Safetensors with one tensor gone, short, of another shape or type, or with values that it cannot have."""
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
        metadata = dict(file.metadata() or {})
    name = rng.choice(sorted(tensors))
    how = rng.choice(_CHANGES)
    if how == "metadata":
        metadata["twistlm"], what = _edited(rng, metadata.get("twistlm", "{}"))
        metadata["twistlm"] = metadata["twistlm"].encode("utf-8", "replace").decode()
    else:
        what = name
        changed = _changed(rng, tensors.pop(name), how)
        tensors |= {} if changed is None else {name: changed}
        if how == "more":
            tensors["more"] = torch.zeros(3)
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, path, metadata)
    return f"{how} {what}"


_CHANGES = ("gone", "more", "short", "longer", "flat", "scalar", "type", "nan", "inf", "-inf", "huge", "negative",
            "zero", "shuffled", "metadata", "metadata", "metadata")  # fmt: skip


def _changed(rng: random.Random, tensor: torch.Tensor, how: str) -> torch.Tensor | None:
    """The tensor changed in this way; None if it is gone."""
    whole = {
        "gone": lambda: None,
        "short": lambda: tensor[: len(tensor) // 2] if tensor.dim() else tensor,
        "longer": lambda: torch.cat([tensor, tensor[:1]]) if tensor.dim() else tensor.expand(2),
        "flat": lambda: tensor.flatten(),
        "scalar": lambda: tensor.flatten()[0] if tensor.numel() else tensor,
        "type": lambda: tensor.to(rng.choice((torch.float16, torch.int64, torch.bool, torch.uint8, torch.float64))),
        "zero": lambda: torch.zeros_like(tensor),
        "shuffled": lambda: tensor.flip(0) if tensor.dim() else tensor,
    }  # fmt: skip
    if how in whole:
        return whole[how]()
    value = {"nan": float("nan"), "inf": float("inf"), "-inf": -float("inf"), "huge": 1e30, "negative": -1}.get(how)
    changed = tensor.clone()
    if value is not None and changed.numel():
        if not changed.is_floating_point():
            value = 2**31 - 1 if value > 0 else -1
        changed.view(-1)[rng.randrange(changed.numel())] = value
    return changed


def run(seed: int, numbers: range, template: Path, place: Path, charts: bool = False) -> Iterator[tuple[Case, Outcome]]:
    """Attempt the cases of these numbers, one after the other."""
    for case in itertools.islice(cases(seed, template, charts), numbers.start, numbers.stop):
        yield case, attempt(case, template, place)
