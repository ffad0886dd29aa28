"""What the page says of the prompts of a set: a row for each, and what opens from it."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from twistlm.certificates.certificate import Certificate
from twistlm.core.estimates import Estimate, plain
from twistlm.report.charts import Chart, bounds
from twistlm.report.event import Chance, eps_of
from twistlm.report.record import Record
from twistlm.report.tables import certificate_rows, never_met
from twistlm.runs.folder import SampleRow

# The heading of how likely the event is.
EVENT = "P[event]"


@dataclass(frozen=True)
class OfPrompt:
    """A prompt of a set, as the page shows it.

    Attributes:
        name, text: of the prompt; the text is what the user said last, of a chat.
        said: what was said before that, role and content; () for a plain text.
        columns: the table's numbers, by heading: what it shows, and what it sorts by (None is unknown, and comes last).
        limit: what is known where no draw had φ > 0; "" where one had.
        samplers: of the certificates.
        table: the certificates, by row.
        chart: sandwiches of log Z.
        samples: by sampler.
    """

    name: str
    text: str
    said: Sequence[tuple[str, str]]
    columns: Mapping[str, tuple[str, str, float | None]]
    limit: str
    samplers: Sequence[str]
    table: Sequence[tuple[str, list[str]]]
    chart: Chart
    samples: Mapping[str, Sequence[SampleRow]]


def prompts_of(record: Record) -> list[OfPrompt]:
    """Those of the certificate that counts, in its order; none where it is of one prompt."""
    found, eps = [], eps_of(record)
    for each in record.after.by_prompt:
        certificates = {name: known[each.name] for name, known in _by_sampler(record) if each.name in known}
        entry = record.prompts.get(each.name)
        text, said = ("", []) if entry is None else (entry.text, list(entry.said))
        found.append(
            OfPrompt(
                each.name,
                text,
                said,
                {**_event(certificates["after"], eps), **_columns(certificates)},
                "" if each.is_met else never_met(each.certificate),
                list(certificates),
                certificate_rows(certificates),
                bounds(certificates),
                _samples(record, each.name, text),
            )
        )
    return found


def _by_sampler(record: Record) -> list[tuple[str, dict[str, Certificate]]]:
    return [(name, {each.name: each.certificate for each in of.by_prompt}) for name, of in record.certificates.items()]


def _event(certificate: Certificate, eps: float | None) -> dict[str, tuple[str, str, float | None]]:
    """How likely the event is, by its heading; nothing where the potential is no event's."""
    if eps is None:
        return {}
    chance = Chance.of(certificate, eps)
    if chance is None:
        return {EVENT: ("—", "not known", None)}
    return {EVENT: (*chance.number, chance.probability.value)}


def _columns(certificates: Mapping[str, Certificate]) -> dict[str, tuple[str, str, float | None]]:
    after, before = certificates["after"].divergences, certificates.get("before")
    columns: dict[str, Estimate | None] = {"log Z": after.log_Z, "KL(q‖σ)": after.kl_q_target}
    if before is not None:
        columns["KL(p₀‖σ)"] = before.divergences.kl_q_target
    columns["KL(σ‖q)"] = after.kl_target_q
    if before is not None:
        columns["KL(σ‖p₀)"] = before.divergences.kl_target_q
    columns["E_q[φ]"] = after.phi
    return {name: _cell(each) for name, each in columns.items()}


def _cell(estimate: Estimate | None) -> tuple[str, str, float | None]:
    """A number, its interval, and what it is sorted by."""
    if estimate is None:
        return "—", "needs exact samples", None
    if not estimate.is_known:
        return "—", str(estimate), None
    value = estimate.value if math.isfinite(estimate.value) else None
    shown = plain(estimate.value, estimate.digits())
    return shown, str(estimate).removeprefix(shown).strip(), value


def _samples(record: Record, name: str, text: str) -> dict[str, list[SampleRow]]:
    """Those that were drawn at the prompt: when it was certified, and by `twistlm sample` if that was last there."""
    drawn = [("", record.prompt_samples), *record.samples.items()]
    by_sampler: dict[str, list[SampleRow]] = {}
    for sampler, rows in drawn:
        # A new prompt has no name, and a name of the run's own may be another's in a file.
        for row in rows:
            if row.prompt and row.prompt == text and row.prompt_name in ("", name):
                by_sampler.setdefault(sampler or row.sampler, []).append(row)
    return by_sampler
