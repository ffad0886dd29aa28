"""Small charts for notebooks: to scale, with words for those who do not see them, and nothing that is not known."""

import math
from xml.etree import ElementTree

import pytest
from markupsafe import Markup

from twistlm.core.estimates import Estimate
from twistlm.core.html import curve, intervals, table

INF = math.inf


def parsed(chart: Markup) -> ElementTree.Element:
    """Well-formed, or this raises."""
    assert isinstance(chart, Markup)
    return ElementTree.fromstring(chart)


def strokes(chart: Markup) -> list[tuple[float, float, float, float]]:
    """(x, y) of the first and last point of each line."""
    found = []
    for line in parsed(chart).iter("polyline"):
        points = [tuple(map(float, point.split(","))) for point in line.attrib["points"].split()]
        found.append((*points[0], *points[-1]))
    return found


def test_intervals_have_one_scale_wherever_they_stand() -> None:
    wide, narrow = Estimate(-5.0, -7.0, -4.0, 9), Estimate(0.25, 0.0, 1.5, 9)
    chart = intervals("Numbers", [[("one", [wide])], [("other", [narrow])]])
    flat = [(x1 - x0) for x0, y0, x1, y1 in strokes(chart) if y0 == y1]
    # Of each group its interval, and its axis.
    assert len(flat) == 4
    assert flat[0] / 3.0 == pytest.approx(flat[2] / 1.5, rel=0.01)
    dots = [float(dot.attrib["cx"]) for dot in parsed(chart).iter("circle")]
    first, _, other, _ = [x0 for x0, y0, _, y1 in strokes(chart) if y0 == y1]
    assert (dots[0] - first) / flat[0] == pytest.approx(2 / 3, abs=0.01)
    assert (dots[1] - other) / flat[2] == pytest.approx(1 / 6, abs=0.01)
    assert next(text.text for text in parsed(chart).iter("text") if text.attrib["text-anchor"] != "end") == "-7"


def test_an_end_that_nothing_limits_has_no_bar() -> None:
    def bars(each: Estimate) -> int:
        chart = intervals("Numbers", [[("a", [each, Estimate(0.0, -9.0, 9.0, 4)])]])
        return sum(x0 == x1 for x0, _, x1, _ in strokes(chart))

    assert bars(Estimate(1.0, 0.5, 2.0, 4)) == 4
    assert bars(Estimate(1.0, 0.5, INF, 4)) == bars(Estimate(1.0, -INF, 2.0, 4)) == 3


def test_what_is_not_known_is_not_drawn() -> None:
    unknown = Estimate(1.0, -INF, INF, 2)
    assert intervals("Numbers", [[("a", [None, unknown, Estimate(-INF, -INF, -1.0, 3)])], []]) == ""
    chart = intervals("Numbers", [[("a", [unknown]), ("b", [Estimate(2.0, 1.0, 3.0, 5)])], [("c", [None])]])
    assert next(text.text for text in parsed(chart).iter("text")) == "b"
    assert len(list(parsed(chart).iter("circle"))) == 1
    assert "a " not in parsed(chart).attrib["aria-label"].removeprefix("Numbers: ")
    for points in ([], [(1.0, 2.0)], [(1.0, 2.0), (2.0, INF), (3.0, math.nan)]):
        assert curve("loss", points) == ""


def test_words_say_what_is_drawn_and_are_escaped() -> None:
    bad = '"><script>alert(1)</script>'
    exact = Estimate(0.0, 0.0, 0.0, 7)
    for chart in (intervals(bad, [[(bad, [exact])]]), curve(bad, [(0.0, 1.0), (4.0, 0.5)])):
        assert "<script" not in chart
        root = parsed(chart)
        assert root.attrib["role"] == "img"
        said = root.attrib["aria-label"]
        assert said.startswith(bad)
        assert root.findtext("title") == said
    assert "0.000 (exact)" in intervals("a", [[("b", [exact])]])
    assert "from 1 at 0 to 0.5 at 4" in curve("a", [(0.0, 1.0), (4.0, 0.5)])
    # A chart goes into a table as it is, and a text does not.
    assert "<svg" in table("t", (), [], chart=curve("a", [(0.0, 1.0), (4.0, 0.5)]))
    assert "<svg" not in table("t", (), [("<svg>",)])


def test_a_long_curve_stays_small_and_keeps_its_ends() -> None:
    chart = curve("loss", [(float(x), math.sin(x)) for x in range(100_000)])
    assert len(chart) < 4000
    (line,) = strokes(chart)
    assert line[0] < line[2]
    assert [text.text for text in parsed(chart).iter("text")][-1] == "1e+05"
    assert f"{math.sin(99_999):.4g} at 99999" in parsed(chart).attrib["aria-label"]
