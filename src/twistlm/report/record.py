"""What a run folder says, read without loading a model and without running anything of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from twistlm.certificates.certificate import Certificate
from twistlm.core.errors import RunError
from twistlm.core.storage import as_type, digest, load_json, shortened
from twistlm.runs.evaluations import Evaluation, during, others
from twistlm.runs.folder import RunFolder
from twistlm.sampling.diagnostics import Diagnostics
from twistlm.sampling.target import TargetFields

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
        evaluations: further ones, from other times or with other settings.
    """

    name: str
    config: Mapping[str, Any]
    history: Sequence[Mapping[str, Any]]
    certificates: Mapping[str, Certificate]
    samples: Mapping[str, Sequence[Mapping[str, Any]]]
    diagnostics: Diagnostics | None
    evaluations: Sequence[Evaluation] = ()

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
        if not RunFolder.is_one(path):
            raise RunError(
                f"{path} is not a run folder (it has no config.json); name one that `twistlm train` or `twistlm demo` "
                "has made"
            )
        folder = RunFolder.open(path)
        as_type(_Config, folder.config, str(path / "config.json"))
        if not folder.twist.exists():
            raise RunError(f"training of {path} has not finished; continue it with --resume")
        if not folder.certificate.exists():
            raise RunError(f"{path} has no certificate; make it with: twistlm evaluate {path}")
        found, history = Evaluation.read(folder.certificate), folder.metrics()
        if "after" not in found.certificates:
            raise RunError(f"{path} has no certificate of its twist; make it with: twistlm evaluate {path}")
        if found.twist not in (None, digest(folder.twist)):
            raise RunError(
                f"{path} has another twist than its certificate is of; make it with: twistlm evaluate {path}"
            )
        # What the charts will read is read here once, for errors that name the file.
        during(history, path / "metrics.jsonl")
        return Record(
            name, folder.config, history, found.certificates, _samples(folder), _diagnostics(folder), others(folder)
        )


@dataclass(frozen=True)
class _Training:
    loss: str


@dataclass(frozen=True)
class _Settings:
    training: _Training
    twist: str
    seed: int


@dataclass(frozen=True)
class _Config:
    """What a report says of config.json."""

    run: _Settings
    target: TargetFields | None
    versions: Mapping[str, str]


def _diagnostics(folder: RunFolder) -> Diagnostics | None:
    path = folder.diagnostics
    if not path.exists():
        return None
    found = load_json(path)
    try:
        return Diagnostics.from_dict(found)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, RuntimeError) as error:
        raise RunError(
            f"{path} is damaged or of another version ({shortened(error)}); make it again with: twistlm sample "
            f"{folder.path}"
        ) from error


def _samples(folder: RunFolder) -> dict[str, list[dict[str, Any]]]:
    """Rows by sampler, with weights and scores; those that were drawn last."""
    found: dict[str, list[dict[str, Any]]] = {}
    for sampler, rows in zip((TWISTED, BASE), folder.samples(), strict=True):
        for row in rows:
            found.setdefault(row.get("sampler") or sampler, []).append(row)
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
