"""The page: one HTML file, without scripts and without anything to fetch. Every text in it is escaped by Jinja.

Pictures are SVG, or tables with coloured cells; here is their geometry, the template draws them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import jinja2
import numpy as np

from llm4msr.explain.report.bootstrap import Interval
from llm4msr.explain.report.cases import Case
from llm4msr.explain.report.effect import EffectSection
from llm4msr.explain.report.layers import LayerSection
from llm4msr.explain.report.scenarios import ScenarioSection
from llm4msr.explain.report.users import UserSection
from llm4msr.text import block, count_of, number, percent, shorten, signed
from llm4msr.training.results import UNKNOWN, shown

MAP_WIDTH, MAP_HEIGHT, MARGIN = 720, 460, 24
MOST_ROWS = 24
"""Rows of a table that has one for each scenario."""
COLOURS = 8
"""Scenarios that have a colour of their own; the others share the last one."""


@dataclass(frozen=True)
class Page:
    """All that the template reads."""

    name: str
    facts: list[tuple[str, str]]
    warning: str
    made: str
    scenarios: ScenarioSection
    users: UserSection
    effect: EffectSection
    layers: LayerSection
    cases: list[Case]
    files: list[tuple[str, str]]
    """Files beside the page, and what they hold."""


class Point(NamedTuple):
    """A user on the map."""

    place: tuple[float, float]
    colour: int
    told: str


def html(page: Page) -> str:
    """The whole file."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("llm4msr.explain", "report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"short": shorten, "block": block, "signed": signed, "percent": percent, "auc": number}
    environment.globals |= {"count_of": count_of, "shown": shown, "unknown": UNKNOWN}
    colours = colour_of(page.users, page.scenarios)
    return environment.get_template("report.html.j2").render(
        page=page,
        points=points(page.users, page.scenarios, colours),
        labels=labels(page.users),
        colours=colours,
        size=(MAP_WIDTH, MAP_HEIGHT),
        span=span([row.gain for row in page.effect.rows]),
        most_rows=MOST_ROWS,
    )


def span(intervals: list[Interval | None]) -> float:
    """How far from zero the picture of these intervals reaches; what is much wider than the rest is cut."""
    there = [interval for interval in intervals if interval is not None]
    reach = [max(abs(i.low), abs(i.high)) for i in there]
    return min(max(reach), 4 * float(np.median(reach))) or 1e-9 if reach else 1.0


def colour_of(users: UserSection, scenarios: ScenarioSection) -> dict[int, int]:
    """Scenario number -> colour number: those with most users first, the rest share the last; 0 stands for none."""
    if users.points.empty:
        return {}
    ordered = users.points["main"].value_counts().index.tolist()
    return {scenario: min(place, COLOURS - 1) for place, scenario in enumerate(n for n in ordered if n)}


def points(users: UserSection, scenarios: ScenarioSection, colours: dict[int, int]) -> list[Point]:
    """The users that the map draws."""
    if users.points.empty:
        return []
    place = _scale(users)
    names = ["none", *(row["scenario_id"] for row in scenarios.rows)]
    drawn = users.points.iloc[users.sample]
    return [
        Point(
            place(row.x, row.y),
            colours.get(row.main, COLOURS - 1),
            f"user {shorten(row.user_id, 40)}: {row.rows} rows, mostly {shorten(names[row.main], 40)}",
        )
        for row in drawn.itertuples()
    ]


def labels(users: UserSection) -> list[tuple[str, float, float]]:
    """Letter and place of each group."""
    if len(users.groups) < 2:
        return []
    place = _scale(users)
    return [(group.letter, *place(*group.centre)) for group in users.groups]


def _scale(users: UserSection) -> Callable[[float, float], tuple[float, float]]:
    """From code space to the map; the outermost hundredth on each side is drawn at the edge."""
    drawn = users.points.iloc[users.sample]
    low, high = (np.quantile(drawn[["x", "y"]].to_numpy(), q, axis=0) for q in (0.005, 0.995))
    width = np.maximum(high - low, 1e-9)

    def place(x: float, y: float) -> tuple[float, float]:
        across, up = np.clip((np.array([x, y]) - low) / width, 0, 1).tolist()
        left = MARGIN + across * (MAP_WIDTH - 2 * MARGIN)
        return round(left, 1), round(MAP_HEIGHT - MARGIN - up * (MAP_HEIGHT - 2 * MARGIN), 1)

    return place
