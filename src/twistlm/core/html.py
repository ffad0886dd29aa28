"""Tables and charts for notebooks: small, without scripts, and with everything that a model wrote escaped."""

import math
from collections.abc import Iterator, Sequence

from jinja2 import Environment
from markupsafe import Markup

from twistlm.core.estimates import Estimate

# Pixels: what a chart has for labels and for numbers, a row of intervals, the height of a curve.
LABELS, WIDTH, ROW, HEIGHT = 150, 280, 16, 80
# Points of a curve, at most: more than pixels show nothing.
MOST_POINTS = 140

_ENVIRONMENT = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
_TABLE = _ENVIRONMENT.from_string(
    """<div class="twistlm"><strong>{{ title }}</strong>
{% if note %}<div>{{ note }}</div>{% endif %}
{{ chart }}
<table>
{% if columns %}<thead><tr>{% for name in columns %}<th style="text-align:left">{{ name }}</th>{% endfor %}</tr></thead>
{% endif %}
<tbody>
{% for row in rows %}
<tr>{% for cell in row %}<td style="text-align:left;white-space:pre-wrap">{% if cell is number %}
<div style="display:inline-block;height:0.7em;background:#4477aa;width:{{ (80 * cell)|round(1) }}px"></div>
{{ "%.3g"|format(cell) }}{% else %}{{ cell }}{% endif %}</td>{% endfor %}</tr>
{% endfor %}
</tbody></table>
{% if more %}<div>… {{ more }} more</div>{% endif %}
</div>"""
)
# `currentColor`, so that it is read on light and dark grounds.
_CHART = _ENVIRONMENT.from_string(
    """<svg role="img" aria-label="{{ title }}: {{ said }}" width="{{ width }}" height="{{ height }}"
style="display:block;font:11px sans-serif" fill="currentColor" stroke="none"><title>{{ title }}: {{ said }}</title>
{% for x, y, anchor, text in texts %}
<text x="{{ x }}" y="{{ y }}" text-anchor="{{ anchor }}">{{ text }}</text>
{% endfor %}
{% for points, colour in lines %}
<polyline points="{{ points }}" fill="none" stroke="{{ colour }}" stroke-width="1.5"/>
{% endfor %}
{% for x, y, colour in dots %}
<circle cx="{{ x }}" cy="{{ y }}" r="2.5" fill="{{ colour }}"/>
{% endfor %}
</svg>"""
)
COLOURS, BESIDE, NOTHING = ("#4477aa", "#ee6677"), 4, Markup("")


def table(
    title: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[str | float]],
    *,
    note: str = "",
    chart: Markup = NOTHING,
    more: int = 0,
) -> str:
    """A table as HTML.

    Args:
        title: above it.
        columns: their names; none for a table without a head.
        rows: texts, and shares between 0 and 1, which are drawn as bars.
        note: a line under the title.
        chart: of this module, under the note.
        more: rows that are not shown.
    """
    return _TABLE.render(title=title, columns=columns, rows=rows, note=note, chart=chart, more=more)


def intervals(title: str, groups: Sequence[Sequence[tuple[str, Sequence[Estimate | None]]]]) -> Markup:
    """Numbers with their 95 % intervals, in groups that have a place each and one scale: a nat is as long in all.

    An end that nothing limits goes on to the edge and has no bar; what is not known is left out.

    Args:
        title: what it shows.
        groups: rows of each: a label, and the numbers that stand in the row.
    """
    drawn = [[(label, _known(row)) for label, row in group] for group in groups]
    known = [kept for group in drawn if (kept := [(label, row) for label, row in group if row])]
    if not known:
        return NOTHING
    spans = [_span([each for _, row in group for each in row]) for group in known]
    unit = (WIDTH - 10) / (max(high - low for low, high in spans) or 1.0)
    texts: list[tuple[float, float, str, str]] = []
    lines: list[tuple[str, str]] = []
    dots: list[tuple[float, float, str]] = []
    said: list[str] = []
    y = 0.0
    for group, (low, high) in zip(known, spans, strict=True):
        start, end = LABELS + 5.0, LABELS + 5 + (high - low) * unit
        for label, row in group:
            y += ROW
            texts.append((LABELS - 8, y + 4, "end", label))
            for number, each in enumerate(row):
                said.append(f"{label} {each}")
                # Several in a row beside each other, in colours that everybody tells apart.
                at, colour = y + number * BESIDE - (len(row) - 1) * BESIDE / 2, COLOURS[number % len(COLOURS)]
                ends = [start + (min(max(x, low), high) - low) * unit for x in (each.low, each.high)]
                lines.append((_points([(ends[0], at), (ends[1], at)]), colour))
                bars = [x for x, end in zip(ends, (each.low, each.high), strict=True) if math.isfinite(end)]
                lines += [(_points([(x, at - 3), (x, at + 3)]), colour) for x in bars]
                dots.append((round(start + (each.value - low) * unit, 1), at, colour))
        y += ROW
        lines.append((_points([(start, y - 4), (max(end, start + 1), y - 4)]), "currentColor"))
        texts += _ends(start, end, y + 8, (low, high))
        y += ROW / 2
    return _drawn(title, "; ".join(said), y + 4, texts, lines, dots)


def curve(title: str, points: Sequence[tuple[float, float]]) -> Markup:
    """A line through points (x, y), with the ends of both axes; nothing for fewer than two that are finite."""
    finite = [point for point in points if all(map(math.isfinite, point))]
    if len(finite) < 2:
        return NOTHING
    step = math.ceil(len(finite) / MOST_POINTS)
    shown = [*finite[:-1:step], finite[-1]]
    (left, right), (low, high) = ((min(values), max(values)) for values in zip(*shown, strict=True))
    across, up = WIDTH / ((right - left) or 1.0), HEIGHT / ((high - low) or 1.0)
    drawn = _points([(LABELS + (x - left) * across, 10 + HEIGHT - (y - low) * up) for x, y in shown])
    axis = _ends(LABELS, LABELS + WIDTH, HEIGHT + 26, (left, right))
    names = ((14, f"{high:.4g}"), (HEIGHT / 2 + 14, title), (14 + HEIGHT, f"{low:.4g}"))
    texts = [*((LABELS - 8, y, "end", text) for y, text in names), *axis]
    (first, before), (last, after) = shown[0], shown[-1]
    said = f"from {before:.4g} at {first:g} to {after:.4g} at {last:g}, between {low:.4g} and {high:.4g}"
    return _drawn(title, said, HEIGHT + 30, texts, [(drawn, COLOURS[0])], [])


def _known(row: Sequence[Estimate | None]) -> list[Estimate]:
    return [each for each in row if each is not None and math.isfinite(each.value) and each.is_known]


def _span(numbers: Sequence[Estimate]) -> tuple[float, float]:
    """From the least finite end to the greatest."""
    ends = [x for each in numbers for x in (each.low, each.value, each.high) if math.isfinite(x)]
    return min(ends), max(ends)


def _points(points: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in points)


def _ends(start: float, end: float, y: float, values: tuple[float, float]) -> Iterator[tuple[float, float, str, str]]:
    """What an axis says at its ends; at one of them, where there is no room for both."""
    yield start, y, "start" if end - start > ROW * 5 else "middle", f"{values[0]:.4g}"
    if end - start > ROW * 5:
        yield end, y, "end", f"{values[1]:.4g}"


def _drawn(
    title: str,
    said: str,
    height: float,
    texts: Sequence[tuple[float, float, str, str]],
    lines: Sequence[tuple[str, str]],
    dots: Sequence[tuple[float, float, str]],
) -> Markup:
    size = {"width": LABELS + WIDTH + 40, "height": round(height)}
    return Markup(_CHART.render(title=title, said=said, texts=texts, lines=lines, dots=dots, **size))
