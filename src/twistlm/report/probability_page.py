"""One HTML file about the probability of an event: how likely, at which prompts, and what it looks like."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from twistlm.certificates.events import Event
from twistlm.certificates.probability import Place, Probability, one_in, spelled
from twistlm.core.storage import save_text
from twistlm.potentials.constraint import constraints_in
from twistlm.report.page import environment, policy_hash, resource
from twistlm.report.tables import places
from twistlm.runs.folder import versions
from twistlm.sampling.prompts import shown
from twistlm.sampling.target import Target


def save_probability_page(found: Sequence[Probability], target: Target, path: Path) -> None:
    """Write the page, atomically. It loads nothing, and no text of a model is markup in it."""
    script = resource("probability.js")
    prompts = {name: shown(entry) for name, entry in zip(target.prompts.names, target.prompts.entries, strict=True)}
    page = (
        environment()
        .get_template("probability.html")
        .render(
            parts=[_part(each, prompts) for each in found],
            counted=[each.counted for each in constraints_in(target.potential) if each.counted],
            model=target.model_name,
            num_tokens=target.num_tokens,
            script=script,
            hash=policy_hash(script),
            css=resource("page.css"),
            version=versions()["twistlm"],
        )
    )
    save_text(path, page)


def _part(found: Probability, prompts: dict[str, str]) -> dict[str, Any]:
    """What the template says of a threshold."""
    return {
        "threshold": spelled(found.threshold),
        "headline": found.headline,
        "seen": None if found.seen is None else one_in(found.seen),
        "hits": found.hits,
        "num_draws": found.num_draws,
        "num_tokens": found.num_tokens,
        "rows": [_row(place, prompts[place.found.name]) for place in found.ranked()],
    }


def _row(place: Place, text: str) -> dict[str, Any]:
    each = place.found
    return {
        "places": places(place),
        "place": place.best + place.worst,
        "name": each.name,
        "text": text,
        "value": each.value.value,
        "low": each.simultaneous.low,
        "high": each.simultaneous.high,
        "words": one_in(each.value),
        "hits": each.hits,
        "num_draws": each.num_draws,
        "events": [_event(event) for event in each.events],
    }


def _event(event: Event) -> dict[str, Any]:
    """A text in pieces, each with the share of the score that is lost without it; None for what is in between."""
    pieces, at = [], 0
    for span in event.spans:
        pieces += [(event.text[at : span.start], None), (event.text[span.start : span.end], span.loss)]
        at = span.end
    return {"weight": event.weight, "log_phi": event.log_phi, "pieces": [*pieces, (event.text[at:], None)]}
