"""What a run folder says, read without loading a model and without running anything of it."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from twistlm.certificate import Certificate
from twistlm.diagnostics import Diagnostics
from twistlm.errors import RunError
from twistlm.runs import RunFolder
from twistlm.storage import load_json

BASE, TWISTED = "base model p₀", "twisted SMC"


@dataclass(frozen=True)
class Record:
    """A finished run.

    Attributes:
        name: what tells it from the others.
        config: what was asked, and the versions that did it.
        history: the rows of metrics.jsonl.
        certificates: by what they are of: "before" training, "after", …
        samples: rows by sampler.
        diagnostics: what SMC recorded; None if no samples were drawn.
    """

    name: str
    config: Mapping[str, Any]
    history: Sequence[Mapping[str, Any]]
    certificates: Mapping[str, Certificate]
    samples: Mapping[str, Sequence[Mapping[str, Any]]]
    diagnostics: Diagnostics | None

    @property
    def after(self) -> Certificate:
        """The certificate that counts."""
        return self.certificates["after"]

    @property
    def before(self) -> Certificate | None:
        """The base model's."""
        return self.certificates.get("before")

    @property
    def seconds(self) -> dict[str, float]:
        """Time by what it was spent on."""
        training = [row["seconds"] for row in self.history if row["kind"] == "update"]
        return {
            f"{len(training)} updates": sum(training),
            **{f"certificate {name}": each.seconds for name, each in self.certificates.items()},
        }

    @staticmethod
    def read(path: Path, name: str) -> "Record":
        """The run in a folder.

        Raises:
            RunError: it is no run, has not finished, has no certificate, or is damaged.
        """
        if not (path / "config.json").exists():
            raise RunError(
                f"{path} is not a run folder (it has no config.json); name one that `twistlm train` or `twistlm demo` "
                "has made"
            )
        folder = RunFolder.open(path)
        if not (path / "twist.safetensors").exists():
            raise RunError(f"training of {path} has not finished; continue it with --resume")
        if not (path / "certificate.json").exists():
            raise RunError(f"{path} has no certificate; make it with: twistlm evaluate {path}")
        try:
            found = load_json(path / "certificate.json")
            certificates = {
                key: Certificate.from_dict(fields)
                for key, fields in found.items()
                if isinstance(fields, dict) and "bounds" in fields
            }
            recorded = path / "diagnostics.json"
            diagnostics = Diagnostics.from_dict(load_json(recorded)) if recorded.exists() else None
            samples = _samples(path)
        except (KeyError, TypeError, ValueError) as error:
            if isinstance(error, RunError):
                raise
            raise RunError(
                f"{path} is damaged or of another version ({error!r}); make its files again with: twistlm evaluate "
                f"{path}, twistlm sample {path}"
            ) from error
        if "after" not in certificates:
            raise RunError(f"{path} has no certificate of its twist; make it with: twistlm evaluate {path}")
        return Record(name, folder.config, folder.metrics(), certificates, samples, diagnostics)


def _samples(path: Path) -> dict[str, list[dict[str, Any]]]:
    """Rows by sampler, with weights and scores; those that were drawn last."""
    found: dict[str, list[dict[str, Any]]] = {}
    for name, sampler in (("samples.jsonl", TWISTED), ("base_samples.jsonl", BASE)):
        if (path / name).exists():
            for line in (path / name).read_text(encoding="utf-8").splitlines():
                row = json.loads(line)
                found.setdefault(row.get("sampler", sampler), []).append(row)
    # What the others are compared with comes last.
    return dict(sorted(found.items(), key=lambda item: item[0] == BASE))


def read_all(paths: Sequence[Path]) -> list[Record]:
    """Several runs, each by the shortest end of its path that no other has.

    Raises:
        RunError: one cannot be read, or is named twice.
    """
    parts = [path.resolve().parts for path in paths]
    if len(set(parts)) < len(parts):
        raise RunError(f"a run is named twice among {', '.join(map(str, paths))}; name each once")
    length = 1
    while len({each[-length:] for each in parts}) < len(parts):
        length += 1
    return [Record.read(path, "/".join(each[-length:])) for path, each in zip(paths, parts, strict=True)]
