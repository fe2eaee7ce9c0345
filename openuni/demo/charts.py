"""Line charts as inline SVG. Colours are CSS classes, which the page's style sheet defines for light and dark."""

import math
from collections.abc import Sequence
from html import escape
from typing import NamedTuple

WIDTH, HEIGHT = 720.0, 360.0
LEFT, RIGHT, TOP, BOTTOM = 58.0, 16.0, 14.0, 50.0
TICKS = 5  # approximate number per axis
SMOOTHING_SHARE = 0.06  # width of the moving average, as a share of all points
TICK_STEPS = (1.0, 2.0, 2.5, 5.0, 10.0)


class ChartLine(NamedTuple):
    """One line of a chart."""

    label: str
    style: str  # CSS class
    points: Sequence[tuple[float, float]]  # (x, y), sorted by x
    dots: bool = False  # whether to mark every point


def line_chart(lines: Sequence[ChartLine], x_label: str, y_label: str) -> str:
    """Return an SVG element with all lines on common axes that start at zero. Lines without points are omitted."""
    lines = [line for line in lines if line.points]
    x_top = max((x for line in lines for x, _ in line.points), default=1.0) or 1.0
    y_top = max((y for line in lines for _, y in line.points), default=1.0) * 1.05 or 1.0

    def place(x: float, y: float) -> tuple[float, float]:
        across = LEFT + x / x_top * (WIDTH - LEFT - RIGHT)
        return across, HEIGHT - BOTTOM - y / y_top * (HEIGHT - TOP - BOTTOM)

    parts = []
    for value in ticks(x_top):
        x, floor = place(value, 0.0)
        parts.append(f'<text x="{x:.1f}" y="{floor + 20:.1f}" text-anchor="middle">{value:g}</text>')
    for value in ticks(y_top):
        left, y = place(0.0, value)
        parts.append(f'<path class="grid" d="M{left:.1f} {y:.1f}H{WIDTH - RIGHT:.1f}"/>')
        parts.append(f'<text x="{left - 8:.1f}" y="{y + 5:.1f}" text-anchor="end">{value:g}</text>')
    parts.append(f'<text x="{WIDTH / 2:.0f}" y="{HEIGHT - 8:.0f}" text-anchor="middle">{escape(x_label)}</text>')
    middle = (HEIGHT - BOTTOM + TOP) / 2
    turned = f'transform="rotate(-90 14 {middle:.0f})"'
    parts.append(f'<text x="14" y="{middle:.0f}" text-anchor="middle" {turned}>{escape(y_label)}</text>')
    for line in lines:
        placed = [place(x, y) for x, y in line.points]
        path = "L".join(f"{x:.1f} {y:.1f}" for x, y in placed)
        parts.append(f'<path class="line {escape(line.style)}" d="M{path}"><title>{escape(line.label)}</title></path>')
        if line.dots:
            parts += [
                f'<circle class="dot {escape(line.style)}" cx="{x:.1f}" cy="{y:.1f}" r="4.5"/>' for x, y in placed
            ]
    title = escape(", ".join(line.label for line in lines))
    return (
        f'<svg class="chart" viewBox="0 0 {WIDTH:.0f} {HEIGHT:.0f}" role="img" aria-label="{title}">'
        f"{''.join(parts)}</svg>"
    )


def ticks(top: float) -> list[float]:
    """Round values from 0 to `top`, in about `TICKS` steps."""
    rough = top / TICKS
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(good * power for good in TICK_STEPS if good * power >= rough * (1 - 1e-9))
    return [round(step * number, 10) for number in range(math.floor(top / step + 1e-9) + 1)]


def smoothed(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Moving average of y over about `SMOOTHING_SHARE` of all points.

    At the start the window shrinks symmetrically, because losses fall steeply there; at the end it is cut off on the
    right only.
    """
    reach = max(1, round(len(points) * SMOOTHING_SHARE / 2))
    result = []
    for index, (x, _) in enumerate(points):
        near = min(reach, index)
        window = [y for _, y in points[index - near : index + near + 1]]
        result.append((x, sum(window) / len(window)))
    return result
