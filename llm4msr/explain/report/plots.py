"""Where things stand in the page's pictures: axes with round ticks, and lines; the template draws them as SVG."""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

TICKS = 5
"""Of an axis, at most but for its ends."""
WIDTH, HEIGHT, LEFT, BELOW = 420, 260, 52, 42
"""Of a chart with lines, in pixels; the axes take `LEFT` and `BELOW` of it."""


class Axis(NamedTuple):
    """Numbers from low to high on a line of so many pixels."""

    low: float
    high: float
    pixels: float

    @classmethod
    def over(cls, values: Iterable[float | None], pixels: float) -> "Axis":
        """From a little below the least to a little above the greatest of those that are finite."""
        finite = [value for value in values if value is not None and math.isfinite(value)] or [0.0]
        room = 0.06 * (max(finite) - min(finite)) or 0.01
        return cls(min(finite) - room, max(finite) + room, pixels)

    def at(self, value: float) -> float:
        """Pixels from the low end; what is beyond an end is drawn there."""
        return round(self.pixels * min(max((value - self.low) / (self.high - self.low), 0.0), 1.0), 1)

    @property
    def ticks(self) -> list[tuple[float, str]]:
        """Place and text of round numbers."""
        rough = (self.high - self.low) / TICKS
        unit = 10.0 ** math.floor(math.log10(rough))
        step = next(unit * times for times in (1, 2, 5, 10) if unit * times >= rough)
        digits = max(-math.floor(math.log10(step) + 1e-9), 0)
        numbers = np.arange(math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9) + 1) * step
        return [(self.at(number), f"{number:.{digits}f}".replace("-", "−")) for number in (numbers + 0.0).tolist()]


class Line(NamedTuple):
    """A named line through points in pixels."""

    name: str
    points: list[tuple[float, float]]


class Chart(NamedTuple):
    """Lines over two axes."""

    title: str
    note: str
    x_title: str
    y_title: str
    x: Axis
    y: Axis
    lines: list[Line]
    is_square: bool
    """Whether both axes have the same numbers."""


def chart(
    title: str,
    note: str,
    titles: tuple[str, str],
    curves: dict[str, Sequence[tuple[float, float]]],
    square: bool = False,
) -> Chart | None:
    """Lines through points (x, y) by name; `square` gives both axes the same numbers. None without points."""
    points = [point for curve in curves.values() for point in curve]
    if not points:
        return None
    xs, ys = ([*column] for column in zip(*points, strict=True))
    x, y = Axis.over(xs + ys * square, WIDTH - LEFT), Axis.over(ys + xs * square, HEIGHT - BELOW)
    lines = [Line(name, [(x.at(a), y.at(b)) for a, b in curve]) for name, curve in curves.items() if curve]
    return Chart(title, note, *titles, x, y, lines, square)
