"""What a run folder says, read without loading a model and without running anything of it."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from twistlm.certificates.certificate import Certificate
from twistlm.core.errors import RunError
from twistlm.runs.folder import Evaluation, History, Outline, RunFolder, SampleRow
from twistlm.sampling.description import PromptFields
from twistlm.sampling.diagnostics import Diagnostics
from twistlm.sampling.prompts import quoted

BASE, TWISTED = "base model p₀", "twisted SMC"


@dataclass(frozen=True)
class PromptText:
    """A prompt as it is read: its text, or what the user said last, and what was said before, by whom."""

    text: str
    said: Sequence[tuple[str, str]] = ()

    @staticmethod
    def of(fields: PromptFields) -> "PromptText":
        """A prompt from its description."""
        if isinstance(fields.content, str):
            return PromptText(fields.content)
        *before, last = fields.content
        return PromptText(last.content, [(each.role, each.content) for each in before])


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
        prompts: where the certificates are of, by name, if they are of several prompts.
        prompt_samples: a few samples at each of those.
    """

    name: str
    outline: Outline
    history: History
    certificates: Mapping[str, Certificate]
    samples: Mapping[str, Sequence[SampleRow]]
    diagnostics: Diagnostics | None
    evaluations: Sequence[Evaluation] = ()
    prompts: Mapping[str, PromptText] = field(default_factory=dict)
    prompt_samples: Sequence[SampleRow] = ()

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
        # What has no JSON form has to be given, which a command cannot.
        make = f"twistlm evaluate {path}" if outline.target else f"Run.load({str(path)!r}, target).evaluate() in Python"
        if evaluation is None:
            raise RunError(f"{path} has no certificate; make it with: {make}")
        history = folder.load_history()
        if "after" not in evaluation.certificates:
            raise RunError(f"{path} has no certificate of its twist; make it with: {make}")
        if not evaluations.is_of_this_twist(evaluation):
            raise RunError(f"{path} has another twist than its certificate is of; make it with: {make}")
        return Record(
            name,
            outline,
            history,
            evaluation.certificates,
            _by_sampler(*folder.load_samples()),
            folder.load_diagnostics(),
            evaluations.others(),
            _prompts(outline, evaluation),
            folder.load_prompt_samples(),
        )


def _prompts(outline: Outline, evaluation: Evaluation) -> dict[str, PromptText]:
    """The prompts that were certified: as the evaluation says, else the run's own."""
    fields = evaluation.prompts or (() if outline.target is None else outline.target.prompts)
    return {each.name: PromptText.of(each) for each in fields}


def _by_sampler(samples: Sequence[SampleRow], base: Sequence[SampleRow]) -> dict[str, list[SampleRow]]:
    """Those that were drawn last, by the names in their files or else by the files."""
    by_sampler: dict[str, list[SampleRow]] = {}
    for sampler, rows in ((TWISTED, samples), (BASE, base)):
        for row in rows:
            # Of a set, only those at one prompt, which is not said anywhere else.
            at = f" at {row.prompt_name or quoted(row.prompt)}" if row.prompt else ""
            by_sampler.setdefault((row.sampler or sampler) + at, []).append(row)
    # What the others are compared with comes last.
    return dict(sorted(by_sampler.items(), key=lambda item: item[0].startswith(BASE)))


def read_all(paths: Sequence[Path]) -> list[Record]:
    """Several runs, each by its name among them.

    Raises:
        RunError: one cannot be read, or is named twice.
    """
    return [Record.read(path, name) for path, name in zip(paths, names_among(paths, "run"), strict=True)]


def names_among(paths: Sequence[Path], kind: str) -> list[str]:
    """Each by the shortest end of its path that no other has.

    Raises:
        RunError: one is named twice; `kind` is what the error calls it.
    """
    # Without the root, so that a name is never a path of its own.
    # Not `resolve`, which raises where links lead in a circle: what a path holds is said when it is read.
    parts = [Path(os.path.realpath(path)).parts[1:] for path in paths]
    if len(set(parts)) < len(parts):
        raise RunError(f"a {kind} is named twice among {', '.join(map(str, paths))}; name each once")
    length = 1
    while len({each[-length:] for each in parts}) < len(parts):
        length += 1
    return ["/".join(each[-length:]) for each in parts]
