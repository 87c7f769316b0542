"""The page: one HTML file without scripts that fetches nothing. Jinja escapes every text in it.

Pictures are SVG, or tables with coloured cells. This module computes their geometry, and the template draws them.
"""

from collections.abc import Callable
from typing import NamedTuple

import jinja2
import numpy as np

from llm4msr.explain.report import plots
from llm4msr.explain.report.cases import CaseSection
from llm4msr.explain.report.gains import KINDS, Gain, GainSection, label
from llm4msr.explain.report.models import ModelSection
from llm4msr.explain.report.plots import Axis
from llm4msr.explain.report.scenarios import ScenarioSection
from llm4msr.explain.report.tables import Section, Table
from llm4msr.explain.report.users import UserSection
from llm4msr.text import block, count_of, number, percent, shorten, signed, whole_sentences
from llm4msr.training.results import UNKNOWN, format_spread

MAP_WIDTH, MAP_HEIGHT, MARGIN = 720, 460, 24
MOST_ROWS = 24
"""Rows of a table that has one for each scenario."""
COLOURS = 8
"""Scenarios that have a colour of their own; the others share the last one."""
BAR = 220
"""Pixels of an interval's axis."""


class Header(NamedTuple):
    """What stands above the sections."""

    name: str
    facts: dict[str, str]
    warning: str
    sample: str
    """What part of the users the page is about; empty if it is all of them."""
    created: str


class Sections(NamedTuple):
    """The sections in the page's order."""

    gains: GainSection
    models: ModelSection
    scenarios: ScenarioSection
    users: UserSection
    cases: CaseSection

    def tables(self) -> dict[str, Table]:
        """The files beside the page, by name."""
        sections: tuple[Section, ...] = self
        return {name: table for section in sections for name, table in section.tables().items()}


class Point(NamedTuple):
    """A user on the map: place in pixels, number of the colour, and what is shown when one points at it."""

    place: tuple[float, float]
    colour: int
    title: str


def html(header: Header, sections: Sections, tables: dict[str, Table]) -> str:
    """The whole file."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("llm4msr.explain", "report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"short": shorten, "block": block, "sentences": whole_sentences}
    environment.filters |= {"signed": signed, "percent": percent, "auc": number}
    environment.globals |= {"count_of": count_of, "format_spread": format_spread, "unknown": UNKNOWN}
    gains, models = sections.gains, sections.models
    colours = colours_of_scenarios(sections.users)
    return environment.get_template("report.html.j2").render(
        header=header,
        **sections._asdict(),
        tables=tables,
        points=points(sections.users, sections.scenarios, colours),
        labels=labels(sections.users),
        colours=colours,
        size=(MAP_WIDTH, MAP_HEIGHT),
        chart_size=(plots.WIDTH, plots.HEIGHT, plots.LEFT, plots.BELOW),
        label=lambda name: label(name, gains.variant),
        kinds=KINDS,
        rival_axis=gain_axis(gains.rivals),
        group_axis=gain_axis(gains.groups),
        auc_axis=Axis.over([auc for seeds in models.aucs.values() for auc in seeds], BAR),
        most_rows=MOST_ROWS,
    )


def gain_axis(gains: list[Gain]) -> Axis:
    """From zero to where these intervals reach; what is much wider than the rest is cut."""
    intervals = [one.gain for one in gains if one.gain is not None]
    reach = [max(abs(one.low), abs(one.high)) for one in intervals]
    most = 4 * float(np.median(reach)) if reach else 0.0
    ends = [min(max(end, -most), most) for one in intervals for end in (one.low, one.high)]
    return Axis.over([0.0, *ends], BAR)


def colours_of_scenarios(users: UserSection) -> dict[int, int]:
    """Colour number of each scenario number: those with most users first, and the rest share the last colour."""
    if users.points.empty:
        return {}
    ordered = users.points["main"].value_counts().index.tolist()
    return {scenario: min(place, COLOURS - 1) for place, scenario in enumerate(n for n in ordered if n)}


def points(users: UserSection, scenarios: ScenarioSection, colours: dict[int, int]) -> list[Point]:
    """The users that the map draws."""
    if users.points.empty:
        return []
    place = _scale(users)
    names = ["none", *(shorten(row["scenario_id"], 40) for row in scenarios.rows)]
    columns = users.points.iloc[users.sample][["user_id", "x", "y", "main", "rows"]].itertuples(index=False)
    return [
        Point(
            place(x, y),
            colours.get(main, COLOURS - 1),
            f"user {shorten(user_id, 40)}: {rows} rows, mostly {names[main]}",
        )
        for user_id, x, y, main, rows in columns
    ]


def labels(users: UserSection) -> list[tuple[str, float, float]]:
    """Letter and place of each group."""
    if len(users.groups) < 2:
        return []
    place = _scale(users)
    return [(group.letter, *place(*group.centre)) for group in users.groups]


def _scale(users: UserSection) -> Callable[[float, float], tuple[float, float]]:
    """From the first two components of the codes to pixels of the map; the outermost 0.5% are drawn at its edge."""
    drawn = users.points.iloc[users.sample]
    low, high = (np.quantile(drawn[["x", "y"]].to_numpy(), q, axis=0) for q in (0.005, 0.995))
    width = np.maximum(high - low, 1e-9)

    def place(x: float, y: float) -> tuple[float, float]:
        across, up = np.clip((np.array([x, y]) - low) / width, 0, 1).tolist()
        left = MARGIN + across * (MAP_WIDTH - 2 * MARGIN)
        return round(left, 1), round(MAP_HEIGHT - MARGIN - up * (MAP_HEIGHT - 2 * MARGIN), 1)

    return place
