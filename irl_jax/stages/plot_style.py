"""What the report's figures share: colours, markers, labels, and how many lines or points stay readable."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from irl_jax.config import GROUPS

WIDTH, DPI = 5.2, 150  # inches, pixels an inch
MAX_LINES = 8  # of a figure; what goes beyond gets a figure of its own


class Theme(NamedTuple):
    """Colours of one colour scheme."""

    text: str
    background: str
    grid: str
    recipes: Mapping[str, str]
    others: tuple[str, ...]


LIGHT = Theme("#1d2329", "#ffffff", "#dde1e6", {
    "init_sft": "#0072B2", "init_demo": "#D55E00", "sft_demo": "#009E73", "preference": "#B5568C",
    "log_ratio": "#56B4E9", "golden": "#C98A00", "length": "#5f6770", "random": "#9aa2ab"},
    ("#0072B2", "#D55E00", "#009E73", "#B5568C", "#C98A00", "#5f6770"))
DARK = Theme("#e4e8ec", "#171b20", "#363d45", {
    "init_sft": "#4AA8E0", "init_demo": "#FF8A4C", "sft_demo": "#2FC79A", "preference": "#E59AC4",
    "log_ratio": "#A9DBF7", "golden": "#F0C050", "length": "#AEB6BF", "random": "#7d8690"},
    ("#4AA8E0", "#FF8A4C", "#2FC79A", "#E59AC4", "#F0C050", "#AEB6BF"))
MARKERS = {"init_sft": "o", "init_demo": "s", "sft_demo": "^", "preference": "D", "log_ratio": "v", "golden": "*",
           "length": "x", "random": "+"}
_GROUP_MARKERS = dict(zip(GROUPS, "oPXhd>", strict=True))


class Point(NamedTuple):
    """One policy in a plane: its role, its place, and standard errors (0 where there is none)."""

    name: str
    x: float
    y: float
    x_error: float
    y_error: float


def number(value) -> float:
    """A result as a float, NaN where it is missing."""
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else math.nan


def golden_label(results: Mapping) -> str:
    """The golden reward's axis label, with its unit."""
    golden = results.get("golden") or {}
    unit = golden.get("unit") or {"classifier": "probability of positive"}.get(golden.get("name"), "score")
    return f"golden reward ({unit})"


def color_of(theme: Theme, name: str, index: int = 0) -> str:
    """A recipe's own colour, another name's by its index."""
    return theme.recipes.get(name, theme.others[index % len(theme.others)])


def looks(theme: Theme, names: Sequence[str]) -> dict[str, dict]:
    """{name: colour and dashes} that tell the lines of one figure apart: recipes in their own colours where all of them are some."""
    if all(name in theme.recipes for name in names):
        return {name: {"color": theme.recipes[name], "linestyle": "-"} for name in names}
    several = len(theme.others)
    return {name: {"color": theme.others[i % several], "linestyle": ("-", "--", ":")[i // several % 3]} for i, name in enumerate(names)}


def parts(names: Sequence[str], most: int = MAX_LINES) -> list[list[str]]:
    """The names in as few runs of at most `most` as there are, as even as can be."""
    count = math.ceil(len(names) / most)
    return [list(part) for part in np.array_split(np.array(names, object), count)] if names else []


def grouped(roles: Sequence[str]) -> list[tuple[str, list[str]]]:
    """Roles group by group ("policy" of "policy/init_sft"), each in `parts`: [(group, roles)]."""
    groups: dict[str, list[str]] = {}
    for role in roles:
        groups.setdefault(role.partition("/")[0], []).append(role)
    return [(group, part) for group, of in groups.items() for part in parts(of)]


def counted(title: str, index: int, total: int) -> str:
    """A title with its number among several."""
    return f"{title} ({index} of {total})" if total > 1 else title


def legend_columns(names: Sequence[str]) -> int:
    """Columns in which a legend of these names is no wider than a figure."""
    return min(max(1, len(names)), 3 if max(map(len, names), default=0) <= 18 else 2)


def legend_height(names: Sequence[str]) -> float:
    """Inches that a legend of these names takes."""
    return 0.19 * math.ceil(len(names) / legend_columns(names)) + 0.15


def draw_points(planes: Sequence, theme: Theme, points: Sequence[Point]) -> dict:
    """Policies as points with error bars on each of the axes; where they are many, numbered, the group by colour and marker.

    Returns:
      {label: handle} for the legend, which is the key to the numbers.
    """
    handles, many = {}, len(points) > MAX_LINES
    for axes in planes:
        for index, point in enumerate(points):
            group, _, recipe = point.name.rpartition("/")
            color, marker = color_of(theme, recipe, index), "PXhd<>^v"[index % 8]
            if many:
                kind = GROUPS.index(group) if group in GROUPS else -1
                color = theme.others[kind] if kind >= 0 else theme.text
                marker = _GROUP_MARKERS.get(group, "*")
            label = f"{index + 1} {point.name}" if many else point.name
            handles[label] = axes.errorbar(
                point.x, point.y, xerr=point.x_error, yerr=point.y_error, fmt=marker, markersize=6 if many else 9, color=color,
                markeredgecolor=color if many else theme.text, ecolor=color, capsize=0 if many else 2,
                elinewidth=0.7 if many else 1.2, zorder=3)
    return handles


def number_points(figure, planes: Sequence, theme: Theme, points: Sequence[Point]) -> None:
    """Writes each point's number beside it, where the fewest points and numbers are; call it once the figure is laid out."""
    if len(points) <= MAX_LINES:
        return
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # the numbers must not move what they were placed by
    scale = figure.dpi / 72
    for axes in planes:
        centres = axes.transData.transform([(point.x, point.y) for point in points]) / scale
        box = axes.bbox.extents / scale
        taken = list(centres)
        for index, centre in enumerate(centres):
            offset = _free_offset(centre, np.array(taken), box)
            taken.append(centre + offset)
            line = dict(arrowstyle="-", color=theme.text, linewidth=0.5, shrinkA=0, shrinkB=2) if np.hypot(*offset) > 12 else None
            axes.annotate(str(index + 1), (points[index].x, points[index].y), xytext=offset, textcoords="offset points", fontsize=7.5,
                          ha="center", va="center", arrowprops=line, zorder=4)


def _free_offset(centre, taken, box) -> np.ndarray:
    """The offset, in points, at which a number is least in the way of what is `taken` and inside the box; near ones first."""
    best, least = None, math.inf
    for radius in (9, 15, 22, 30, 40):
        for angle in np.arange(12) * math.pi / 6 + math.pi / 4:
            offset = radius * np.array([math.cos(angle), math.sin(angle)])
            place = centre + offset
            apart = np.abs(taken - place) / (10.0, 8.5)  # a two-digit number's width and height
            cost = np.maximum(0.0, 1 - apart.max(axis=1)).sum() * 10 + radius / 30
            cost += 20 * bool(np.any(place < box[:2] + 4) or np.any(place > box[2:] - 4))
            if cost < least:
                best, least = offset, cost
    return best
