"""One HTML file that holds everything about some runs: no network, no server, nothing beside it."""

import base64
import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from twistlm.certificates.verdict import verdict
from twistlm.core.advice import parted
from twistlm.core.errors import ConfigError, RunError
from twistlm.core.registry import register
from twistlm.core.storage import as_json, save_text
from twistlm.report.charts import COLOURS, Chart, bounds, curves, divergences, smc_charts
from twistlm.report.event import chance_of, eps_of
from twistlm.report.page.prompts import EVENT, OfPrompt, prompts_of
from twistlm.report.record import Record, read_all
from twistlm.report.tables import certificate_rows
from twistlm.runs.folder import Evaluation, RunFolder, SampleRow, versions
from twistlm.runs.folder.place import check_no_link
from twistlm.sampling.description import TargetFields, prompts_in
from twistlm.sampling.diagnostics import Diagnostics, findings
from twistlm.sampling.prompts import shown

# Three digits after the point: a thousandth of a nat is below every interval that is shown.
DIGITS = 3


def page_charts(records: Sequence[Record]) -> list[Chart]:
    """The charts that all runs share."""
    if len(records) == 1:
        samplers = dict(records[0].certificates)
    else:
        samplers = {record.name: record.after for record in records}
        if records[0].before is not None:
            samplers = {"before": records[0].before, **samplers}
    by_run = {record.name: curves(record.history, record.after) for record in records}
    return [bounds(samplers), *divergences(by_run)]


@dataclass(frozen=True)
class Report:
    """A report that was written: its page, its charts for paper, and the runs that it shows."""

    page: Path
    charts: Sequence[Path]
    records: Sequence[Record]


@register("report", "html")
def report(paths: Sequence[Path], out: Path | None = None, *, overwrite: bool = False) -> Report:
    """One HTML file that needs no network, with charts for paper beside it.

    Args:
        paths: run folders.
        out: the page; by default report.html in the first.
        overwrite: replace what is at `out`.

    Raises:
        ConfigError: `out` is no name of a page.
        RunError: `out` exists; or a run cannot be read, has no certificate, or is named twice.
        StorageError: the system refuses.
    """
    if out is not None:
        check_page(out, overwrite)
    records = read_all(paths)
    return Report(*save_report(records, RunFolder(paths[0]).report if out is None else out), records)


def check_page(out: Path, overwrite: bool) -> None:
    """Refuse what is not a page's name, or would replace something.

    Raises:
        ConfigError: it does not end in .html, which is what tells the page from the folder of its charts.
        RunError: the page or the folder exists.
    """
    if out.suffix != ".html":
        raise ConfigError(f"--out must be the name of a file that ends in .html, not {out}")
    for path in (out, out.with_suffix("")):
        if path.exists() and not overwrite:
            raise RunError(f"{path} exists already; replace it with --overwrite, or choose another --out")


def save_report(records: Sequence[Record], path: Path) -> tuple[Path, list[Path]]:
    """The page, and in a folder of its name every chart for paper; the paths of both.

    Raises:
        RunError: the folder of the charts is a link.
        StorageError: the system refuses.
    """
    check_no_link(path.with_suffix(""))
    save_page(records, path)
    charts = page_charts(records)
    for record in records:
        if record.diagnostics is not None:
            # Those of one run among several carry its name.
            prefix = f"{record.name.replace('/', '-')}-" if len(records) > 1 else ""
            charts += [replace(chart, name=prefix + chart.name) for chart in smc_charts(record.diagnostics)]
    # A page needs no matplotlib, which takes a second to import.
    from twistlm.report.plots import save_charts

    return path, save_charts(charts, path.with_suffix(""))


def environment() -> Environment:
    """The templates of pages, in which no text is markup and nothing may be missing."""
    made = Environment(loader=PackageLoader("twistlm.report", "page"), autoescape=True, undefined=StrictUndefined)
    made.filters |= {"linked": linked, "example": example}
    return made


def save_page(records: Sequence[Record], path: Path) -> None:
    """Write the page, atomically."""
    templates = environment()
    templates.policies["json.dumps_kwargs"] = {"ensure_ascii": False, "separators": (",", ":"), "allow_nan": False}
    scripts = [resource("plotly/plotly-basic.min.js"), resource("prompts.js"), resource("page.js")]
    page = templates.get_template("page.html").render(
        runs=[_section(record) for record in records],
        charts=page_charts(records),
        data=page_data(records),
        scripts=scripts,
        hashes=[policy_hash(script) for script in scripts],
        css=resource("page.css"),
        version=versions()["twistlm"],
    )
    save_text(path, page)


def _section(record: Record) -> dict[str, Any]:
    """What the template says of a run."""
    warnings = [] if record.diagnostics is None else findings(record.diagnostics)
    headline, *lines = verdict(record.after, record.before, warnings)
    return {
        "name": record.name,
        "event": _event(record),
        "headline": headline,
        "lines": [*lines, *(f"In training: {each}" for each in record.history.warnings)],
        "about": _about(record),
        "samplers": list(record.certificates),
        "table": certificate_rows(record.certificates),
        "prompts": prompts_of(record),
        "others": [_other(each) for each in record.evaluations],
        "seconds": record.seconds,
        "settings": dict(_flat(record.outline.values)),
    }


def _event(record: Record) -> dict[str, str] | None:
    """How likely the event of a run is, in words; None where its potential is no event's, or nothing is known."""
    target, chance = record.outline.target, chance_of(record)
    if target is None or eps_of(record) is None:
        return None
    about = {"event": _call(target.potential), "model": target.model, "num_tokens": str(target.num_tokens)}
    if record.after.by_prompt:
        return {**about, "headline": "", "where": f"the table of prompts, column {EVENT}"}
    if chance is None:
        return None
    return {**about, "headline": chance.words, "number": " ".join(chance.number), "share": chance.share}


def _other(evaluation: Evaluation) -> dict[str, Any]:
    """A further evaluation in a row: when, how, and what it found of the twist."""
    rows = dict(certificate_rows({"": after})) if (after := evaluation.certificates.get("after")) else {}
    return {
        "time": evaluation.time.replace("T", " "),
        "settings": ", ".join(f"{name} {value}" for name, value in _flat(evaluation.settings)),
        "cells": [rows[name][0] if name in rows else "—" for name in ("log Z used", "KL(q‖σ)", "KL(σ‖q)")],
    }


def resource(name: str) -> str:
    """A file that pages are made of."""
    return resources.files("twistlm.report.page").joinpath(name).read_text(encoding="utf-8")


def policy_hash(script: str) -> str:
    """By which the page's policy knows its own scripts: no other runs, whatever a text contains."""
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _about(record: Record) -> dict[str, str]:
    """What was asked, in a few rows."""
    asked = record.outline
    about = {"target σ": "p₀(s) φ(s) / Z, over continuations s of the prompt"}
    # A potential without a JSON form leaves nothing to show of its target.
    if asked.target is not None:
        about |= {
            "base model p₀": asked.target.model,
            **_prompts(asked.target),
            "new tokens": str(asked.target.num_tokens),
            "potential φ": _call(asked.target.potential),
        }
    return about | {"method": asked.method, "twist": asked.twist, "seed": str(asked.seed)}


def _prompts(target: TargetFields) -> dict[str, str]:
    prompts = prompts_in(target)
    return {"prompt": shown(prompts.entries[0])} if len(prompts) == 1 else {"prompts": str(len(prompts))}


def _call(potential: Any) -> str:
    """A potential's description as one would write it in Python."""
    if isinstance(potential, Mapping) and "name" in potential:
        given = {key: value for key, value in potential.items() if key != "name" and value is not None}
        arguments = ", ".join(f"{key}={_call(value)}" for key, value in given.items())
        return f"{potential['name']}({arguments})"
    return f"[{', '.join(map(_call, potential))}]" if isinstance(potential, list) else repr(potential)


def _flat(fields: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Nested settings as dotted names."""
    for name, value in fields.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


# --- What the script reads, and what a reader downloads ---


def page_data(records: Sequence[Record]) -> dict[str, Any]:
    """Every number, as JSON values."""
    # Tokens come again and again, so pieces of text are numbers of entries here.
    vocabulary: dict[str, int] = {}
    runs = [_run(record, vocabulary) for record in records]
    return {
        "colours": COLOURS,
        "charts": [_chart(chart) for chart in page_charts(records)],
        "runs": runs,
        "vocabulary": list(vocabulary),
    }


def _run(record: Record, vocabulary: dict[str, int]) -> dict[str, Any]:
    diagnostics, chance = record.diagnostics, chance_of(record)
    return {
        "name": record.name,
        "event_probability": None if chance is None else as_json(chance.probability),
        "config": record.outline.values,
        "certificates": as_json(record.certificates),
        "samples": _samples(record.samples, vocabulary),
        "prompts": [_prompt(each, vocabulary) for each in prompts_of(record)],
        "charts": [] if diagnostics is None else [_chart(chart) for chart in smc_charts(diagnostics)],
        "smc": None if diagnostics is None else _smc(diagnostics, vocabulary),
    }


def _samples(by_sampler: Mapping[str, Sequence[SampleRow]], vocabulary: dict[str, int]) -> list[dict[str, Any]]:
    return [{"sampler": name, "rows": [_row(row, vocabulary) for row in rows]} for name, rows in by_sampler.items()]


def _prompt(each: OfPrompt, vocabulary: dict[str, int]) -> dict[str, Any]:
    """A row of the table of prompts: what it is sorted and searched by, and what opens."""
    return {
        "name": each.name,
        "text": each.text,
        "said": each.said,
        "values": [value for _, _, value in each.columns.values()],
        "samplers": each.samplers,
        "table": each.table,
        "chart": _chart(each.chart),
        "samples": _samples(each.samples, vocabulary),
    }


def _smc(diagnostics: Diagnostics, vocabulary: dict[str, int]) -> dict[str, Any]:
    """What the explorer of particles shows."""
    lines = zip(diagnostics.genealogy.parents.tolist(), diagnostics.resampled[0], strict=True)
    return {
        "num_particles": diagnostics.num_particles,
        "ess": _rounded(diagnostics.ess[0].tolist()),
        "resampled": diagnostics.resampled[0].tolist(),
        "num_ancestors": diagnostics.num_ancestors[0].tolist(),
        # Null where each particle continues itself.
        "parents": [row if resampled else None for row, resampled in lines],
        "pieces": [_numbers(row, vocabulary) for row in diagnostics.genealogy.pieces],
        "weights": [_rounded(row, 4) for row in diagnostics.genealogy.log_w.exp().tolist()],
    }


def _numbers(pieces: Sequence[str], vocabulary: dict[str, int]) -> list[int]:
    return [vocabulary.setdefault(piece, len(vocabulary)) for piece in pieces]


def _row(row: SampleRow, vocabulary: dict[str, int]) -> dict[str, Any]:
    """A sample. Those of an older version say nothing of single tokens."""
    log_psi, log_w = _rounded(row.log_psi_moves, 2), _rounded(row.log_w_moves, 2)
    return {
        "weight": _rounded([row.weight], 4)[0],
        "log_phi": _rounded([row.log_phi])[0],
        "log_p": _rounded([row.log_p])[0],
        "pieces": _numbers(row.pieces or [row.text], vocabulary),
        "log_psi": log_psi,
        "log_w": None if log_w == log_psi else log_w,
    }


def _rounded(values: Sequence[float], digits: int = DIGITS) -> list[float | None]:
    """JSON has no infinity: it becomes null."""
    return [round(value, digits) if math.isfinite(value) else None for value in values]


def _chart(chart: Chart) -> dict[str, Any]:
    fields = {**asdict(chart), "ticks": chart.ticks if chart.log_x else []}
    for series in fields["series"]:
        for name in ("y", "low", "high"):
            series[name] = [None if value is None else round(value, DIGITS) for value in series[name]]
    return fields


def linked(line: str) -> Markup:
    """A line as HTML, its code as a link to the page of all codes; what else is in it stays text."""
    text, advice = parted(line)
    if advice is None:
        return escape(line)
    if advice.link is None:
        # Whoever hovers sees the title; the note below the verdict says what to type.
        return Markup('{} <abbr title="{}">[{}]</abbr>').format(text, advice.title, advice.code)
    return Markup('{} <a href="{}" title="{}">[{}]</a>').format(text, advice.link, advice.title, advice.code)


def example(lines: Iterable[str]) -> str:
    """The first code among the lines; "" if there is none."""
    found = (parted(line)[1] for line in lines)
    return next((advice.code for advice in found if advice is not None), "")
