"""What the renderer draws: every series is there, in its place, with its unit, and the file says who drew it."""

from __future__ import annotations

import itertools
import math
import re
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dashboards.boards import BOARDS
from dashboards.panel import Panel, Query
from dashboards.pictures import svg, take
from dashboards.pictures.scale import labels, shown, ticks

SVG = "{http://www.w3.org/2000/svg}"
RISING = svg.Line("a < b & c", tuple((1000.0 + i, float(i)) for i in range(11)))
FLAT = svg.Line("flat", tuple((1000.0 + i, 5.0) for i in range(11)))


def drawn(lines: list[svg.Line], **fields: object) -> ElementTree.Element:
    panel = Panel(**{"title": "T", "description": "D.", "queries": (Query("x", "y"),), **fields})
    inside = svg.panel(panel, lines, 400)
    return ElementTree.fromstring(f'<svg xmlns="http://www.w3.org/2000/svg">{inside}</svg>')


def texts(root: ElementTree.Element) -> list[str]:
    return [each.text or "" for each in root.iter(f"{SVG}text")]


def dots(root: ElementTree.Element, kind: str) -> list[list[tuple[float, float]]]:
    found = [each.attrib["points"].split() for each in root.iter(f"{SVG}{kind}")]
    return [[(float(x), float(y)) for x, y in (dot.split(",") for dot in each)] for each in found]


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0.0, "none", "0"),
        (1234.0, "none", "1,234"),
        (3.14159, "none", "3.14"),
        (3e-4, "none", "3.00e-4"),
        (0.973, "percentunit", "97.3 %"),
        (0.0021, "s", "2.1 ms"),
        (2.0, "s", "2 s"),
        (125.0, "s", "2 min 05 s"),
        (8100.0, "s", "2 h 15 min"),
        (1.5e9, "bytes", "1.5 GB"),
        (1.406e9, "Bps", "1.41 GB/s"),
        (90_000.0, "short", "90 k"),
        (12.0, "reqps", "12/s"),
        (math.nan, "s", "-"),
    ],
    ids=str,
)
def test_a_number_is_written_with_its_unit(value, unit, text):
    assert shown(value, unit) == text


@given(st.floats(-1e9, 1e9), st.floats(1e-3, 1e9))
def test_the_marks_of_an_axis_enclose_its_values_and_are_few(least, size):
    """Evenly spaced, and not more than a person reads."""
    marks = ticks(least, least + size)
    assert marks[0] <= least + 1e-6 * size
    assert marks[-1] >= least + size - 1e-6 * size
    assert 2 <= len(marks) <= 8
    steps = [after - before for before, after in itertools.pairwise(marks)]
    assert max(steps) - min(steps) <= 1e-6 * max(abs(least), size)


def test_marks_have_as_many_digits_as_tell_them_apart():
    assert labels([0.0, 0.5, 1.0], "s") == ["0 s", "500 ms", "1 s"]
    assert labels([9.998e-4, 9.999e-4, 1e-3], "none") == ["9.998e-4", "9.999e-4", "0.001"]


def test_a_line_goes_from_left_to_right_and_up():
    """Names are written as text, whatever is in them."""
    root = drawn([RISING, FLAT])
    rising, flat = dots(root, "polyline")
    assert [x for x, _ in rising] == sorted(x for x, _ in rising)
    assert [y for _, y in rising] == sorted((y for _, y in rising), reverse=True)
    assert len({y for _, y in flat}) == 1
    assert "a < b & c" in texts(root)
    assert "T" in texts(root)


def test_what_is_stacked_lies_on_top_of_each_other():
    """The second layer's lower edge is the first one's upper edge, also where a series has no value."""
    hole = svg.Line("hole", FLAT.points[5:])
    first, second = dots(drawn([hole, RISING], kind="stacked"), "polygon")
    half = len(second) // 2
    assert second[half:][::-1] == first[:half]
    assert second[half - 1][1] < second[0][1]


def test_bars_are_as_long_as_their_values():
    lines = [svg.Line("half", ((0.0, 0.5),)), svg.Line("full", ((0.0, 1.0),))]
    root = drawn(lines, kind="bars", unit="percentunit", most=1.0, colors=((0.0, "red"), (0.8, "green")))
    half, full = [each for each in root.iter(f"{SVG}rect") if "stroke" not in each.attrib]
    assert 2 * float(half.attrib["width"]) == pytest.approx(float(full.attrib["width"]), abs=0.2)
    assert half.attrib["fill"] != full.attrib["fill"]
    assert {"half: 50 %", "full: 100 %"} <= set(texts(root))


def test_a_number_stands_with_its_name():
    assert {"97.3 %", "goodput"} <= set(
        texts(drawn([svg.Line("goodput", ((0.0, 0.973),))], kind="stat", unit="percentunit"))
    )


def test_a_panel_without_series_says_so():
    assert "no data" in texts(drawn([]))


@pytest.mark.parametrize("kind", ["lines", "stacked"])
@pytest.mark.parametrize("value", [0.0, 5.0, -3.0, 1e12, 1e-9])
def test_a_single_point_and_equal_values_can_be_drawn(kind, value):
    root = drawn([svg.Line("one", ((7.0, value),))], kind=kind)
    assert all(math.isfinite(number) for line in dots(root, "polyline") for dot in line for number in dot)


def test_long_runs_are_thinned_to_what_can_be_seen():
    """The first and the last point stay."""
    points = [(float(i), float(i)) for i in range(10_000)]
    kept = svg.thinned(points, 60)
    assert len(kept) <= 60 + 1
    assert (kept[0], kept[-1]) == (points[0], points[-1])


@pytest.mark.parametrize("board", BOARDS, ids=[board.name for board in BOARDS])
def test_a_board_is_a_small_picture_that_says_who_drew_it(board):
    """With every panel full."""
    lines = [svg.Line(f"series {i}", [(float(t), math.sin(t + i)) for t in range(300)]) for i in range(5)]
    text = svg.board(board, {panel.title: lines for panel in board.panels}, take.CAPTION)
    root = ElementTree.fromstring(text)
    assert take.CAPTION in texts(root)
    assert {panel.title for panel in board.panels} <= set(texts(root))
    assert len(text) < 60 * 1024
    assert "not Grafana" in take.CAPTION
    assert not re.search(r"NaN|inf\b", text)


def test_a_legend_takes_the_values_of_its_labels():
    assert svg.named("{{namespace}}/{{job}} {{tier}}", {"namespace": "a", "job": "b", "tier": "peer"}) == "a/b peer"
