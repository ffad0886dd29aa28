"""What was drawn last, and in `samples/` what before: samples.jsonl, base_samples.jsonl and diagnostics.json by
`twistlm sample`, prompt_samples.jsonl at every prompt that `twistlm evaluate` certified.
"""

import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from twistlm.core.errors import DamagedError
from twistlm.core.storage import (
    as_type,
    load_json,
    load_lines,
    parse_json,
    remedied,
    save_json,
    save_lines,
    shortened,
)
from twistlm.runs.folder.place import Place
from twistlm.runs.texts import TextSamples
from twistlm.sampling.diagnostics import Diagnostics

SAMPLES, BASE_SAMPLES, DIAGNOSTICS = NAMES = ("samples.jsonl", "base_samples.jsonl", "diagnostics.json")
PROMPT_SAMPLES = "prompt_samples.jsonl"
EVERY = (*NAMES, PROMPT_SAMPLES)
EARLIER = "samples"


@dataclass(frozen=True)
class SampleRow:
    """A sample; those of older versions say nothing of single tokens, and a number that is not there is NaN.

    Attributes:
        text: the continuation.
        sampler: what drew it; "" where the file has samples of one sampler only.
        weight, log_phi, log_p: its normalised weight, log φ and log p₀.
        pieces: what each token added to the text.
        log_psi_moves, log_w_moves: by how much each token moved log ψ and log w.
        prompt, prompt_name: as for `TextSamples`.
    """

    text: str
    sampler: str = ""
    weight: float = math.nan
    log_phi: float = math.nan
    log_p: float = math.nan
    pieces: Sequence[str] = ()
    log_psi_moves: Sequence[float] = ()
    log_w_moves: Sequence[float] = ()
    prompt: str = ""
    prompt_name: str = ""


def save(place: Place, samples: TextSamples | Mapping[str, TextSamples], base: TextSamples | None) -> Path:
    """Write samples, and what SMC recorded of the first that has a record; those that were there move to `samples/`.

    Args:
        place: the run folder.
        samples: those of one sampler, or of several by their names.
        base: draws of the base model to compare with, if they are not among the samples.
    """
    _make_room(place, NAMES)
    if isinstance(samples, TextSamples):
        samplers, rows = [samples], samples.rows()
    else:
        samplers = list(samples.values())
        rows = [{"sampler": sampler, **row} for sampler, drawn in samples.items() for row in drawn.rows()]
    save_lines(place.path / SAMPLES, rows)
    if base is not None:
        save_lines(place.path / BASE_SAMPLES, base.rows())
    recorded = next((drawn.diagnostics for drawn in samplers if drawn.diagnostics is not None), None)
    if recorded is not None:
        save_json(place.path / DIAGNOSTICS, recorded.as_dict())
    return place.path / SAMPLES


def save_at_prompts(place: Place, samples: Mapping[str, Sequence[TextSamples]]) -> Path:
    """Write samples at several prompts, by what drew them; those that were there move to `samples/`."""
    _make_room(place, [PROMPT_SAMPLES])
    rows = [{"sampler": name, **row} for name, drawn in samples.items() for each in drawn for row in each.rows()]
    save_lines(place.path / PROMPT_SAMPLES, rows)
    return place.path / PROMPT_SAMPLES


def _make_room(place: Place, names: Sequence[str]) -> None:
    place.check_there()
    if there := [path for name in names if (path := place.path / name).exists()]:
        moment = datetime.fromtimestamp(there[0].stat().st_mtime, UTC)
        # A clock that was set back may have been there before.
        stem = f"{EARLIER}/{moment:%Y%m%dT%H%M%S%f}"
        tried = (f"{stem}{more}" for more in ("", *(f"_{number}" for number in range(2, 10_000))))
        free = next(name for name in tried if not (place.path / name).exists())
        for path in there:
            place.move(path, f"{free}/{path.name}")


def load(path: Path) -> tuple[list[SampleRow], list[SampleRow]]:
    """Samples, and draws of the base model, of the run folder at `path`; none where there are none.

    Raises:
        RunError: a line is damaged.
    """
    samples, base = (_rows(path / name) for name in (SAMPLES, BASE_SAMPLES))
    return samples, base


def load_at_prompts(path: Path) -> list[SampleRow]:
    """What `save_at_prompts` wrote into the run folder at `path`; nothing where there is nothing.

    Raises:
        RunError: a line is damaged.
    """
    return _rows(path / PROMPT_SAMPLES, "evaluate")


def load_diagnostics(path: Path) -> Diagnostics | None:
    """What SMC recorded when it drew the samples of the run folder at `path`; None if there is nothing.

    Raises:
        RunError: it is damaged.
    """
    file = path / DIAGNOSTICS
    if not file.exists():
        return None
    with _remedied(path, "sample"):
        values = load_json(file)
        try:
            return Diagnostics.from_dict(values)
        except (KeyError, TypeError, ValueError, IndexError, AttributeError, RuntimeError) as error:
            raise DamagedError(f"{file} is damaged or of another version ({shortened(error)})") from error


def _remedied(path: Path, command: str) -> AbstractContextManager[None]:
    return remedied(f"restore it, or make it again with: twistlm {command} {path}")


def _rows(file: Path, command: str = "sample") -> list[SampleRow]:
    with _remedied(file.parent, command):
        lines = enumerate(load_lines(file) if file.exists() else [], 1)
        places = [(line, f"{file} at line {number}") for number, line in lines]
        return [_row(parse_json(line, where), where) for line, where in places]


def _row(row: Any, where: str) -> SampleRow:
    sample = as_type(SampleRow, row, where)
    counts = {len(getattr(sample, name)) for name in ("pieces", "log_psi_moves", "log_w_moves") if name in row}
    if len(counts) > 1:
        raise DamagedError(f"{where} is damaged: its tokens are {', '.join(map(str, sorted(counts)))} in number")
    return sample
