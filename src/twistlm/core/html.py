"""Tables for notebooks: small, without scripts, and with everything that a model wrote escaped."""

from collections.abc import Sequence

from jinja2 import Environment

_ENVIRONMENT = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
_TABLE = _ENVIRONMENT.from_string(
    """<div class="twistlm"><strong>{{ title }}</strong>
{% if note %}<div>{{ note }}</div>{% endif %}
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


def table(
    title: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[str | float]],
    *,
    note: str = "",
    more: int = 0,
) -> str:
    """A table as HTML.

    Args:
        title: above it.
        columns: their names; none for a table without a head.
        rows: texts, and shares between 0 and 1, which are drawn as bars.
        note: a line under the title.
        more: rows that are not shown.
    """
    return _TABLE.render(title=title, columns=columns, rows=rows, note=note, more=more)
