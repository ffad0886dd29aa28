"""Codes of warnings on a page: a link to their entry, or what to type where there is no site."""

from collections.abc import Iterable

from markupsafe import Markup, escape

from twistlm.core.advice import parted


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
