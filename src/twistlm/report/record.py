"""What a run folder says, read without loading a model and without running anything of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from twistlm.certificates.certificate import Certificate
from twistlm.core.errors import RunError
from twistlm.runs.folder import Evaluation, History, Outline, RunFolder, SampleRow
from twistlm.sampling.diagnostics import Diagnostics

BASE, TWISTED = "base model p₀", "twisted SMC"


@dataclass(frozen=True)
class Record:
    """A finished run.

    Attributes:
        name: what tells it from the others.
        outline: what was asked, and the versions that did it.
        history: what happened during training.
        certificates: by what they are of: "before" training, "after", …
        samples: by sampler.
        diagnostics: what SMC recorded; None if no samples were drawn.
        evaluations: further ones, from other times or with other settings.
    """

    name: str
    outline: Outline
    history: History
    certificates: Mapping[str, Certificate]
    samples: Mapping[str, Sequence[SampleRow]]
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
        return {
            f"{len(self.history.seconds)} updates": sum(self.history.seconds),
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
        outline, evaluations = folder.load_outline(), folder.evaluations
        if not folder.is_trained:
            raise RunError(f"training of {path} has not finished; continue it with --resume")
        evaluation = evaluations.current()
        if evaluation is None:
            raise RunError(f"{path} has no certificate; make it with: twistlm evaluate {path}")
        history = folder.load_history()
        if "after" not in evaluation.certificates:
            raise RunError(f"{path} has no certificate of its twist; make it with: twistlm evaluate {path}")
        if not evaluations.is_of_this_twist(evaluation):
            raise RunError(
                f"{path} has another twist than its certificate is of; make it with: twistlm evaluate {path}"
            )
        return Record(
            name,
            outline,
            history,
            evaluation.certificates,
            _by_sampler(*folder.load_samples()),
            folder.load_diagnostics(),
            evaluations.others(),
        )


def _by_sampler(samples: Sequence[SampleRow], base: Sequence[SampleRow]) -> dict[str, list[SampleRow]]:
    """Those that were drawn last, by the names in their files or else by the files."""
    by_sampler: dict[str, list[SampleRow]] = {}
    for sampler, rows in ((TWISTED, samples), (BASE, base)):
        for row in rows:
            by_sampler.setdefault(row.sampler or sampler, []).append(row)
    # What the others are compared with comes last.
    return dict(sorted(by_sampler.items(), key=lambda item: item[0] == BASE))


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
