"""What the report's figures share: colours, markers, labels, and limits that keep lines and points readable."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from irl_jax.config import GROUPS

WIDTH, DPI = 4.7, 170  # inches, pixels per inch; narrow so that text stays readable on a phone
MAX_LINES = 8  # per figure; further lines get figures of their own


class Theme(NamedTuple):
    """Colours of one colour scheme."""

    text: str
    background: str
    grid: str
    recipes: Mapping[str, str]
    others: tuple[str, ...]


LIGHT = Theme("#1d2329", "#ffffff", "#dde1e6", {
    "init_sft": "#0072B2", "init_demo": "#D55E00", "sft_demo": "#009E73", "preference": "#B5568C",
    "log_ratio": "#56B4E9", "golden": "#C98A00", "length": "#5f6770", "random": "#9aa2ab",
    "robust": "#1d2329", "mean_logprob": "#8a6d3b", "ended": "#7f6f9a"},
    ("#0072B2", "#D55E00", "#009E73", "#B5568C", "#C98A00", "#5f6770"))
DARK = Theme("#e4e8ec", "#171b20", "#363d45", {
    "init_sft": "#4AA8E0", "init_demo": "#FF8A4C", "sft_demo": "#2FC79A", "preference": "#E59AC4",
    "log_ratio": "#A9DBF7", "golden": "#F0C050", "length": "#AEB6BF", "random": "#7d8690",
    "robust": "#e4e8ec", "mean_logprob": "#c9a66b", "ended": "#b3a5cc"},
    ("#4AA8E0", "#FF8A4C", "#2FC79A", "#E59AC4", "#F0C050", "#AEB6BF"))
MARKERS = {"init_sft": "o", "init_demo": "s", "sft_demo": "^", "preference": "D", "log_ratio": "v", "golden": "*",
           "length": "x", "random": "+", "robust": "P", "mean_logprob": "<", "ended": "|"}
SOURCES = {"init": ":", "sft": "--", "demo": "-"}  # dashes of sources without a recipe
_GROUP_MARKERS = dict(zip(GROUPS, "oPXhd>", strict=True))


class Point(NamedTuple):
    """One policy in a plane: its role, its coordinates, and their standard errors (0 if missing)."""

    name: str
    x: float
    y: float
    x_error: float
    y_error: float


def number(value) -> float:
    """A result as a float; NaN if missing or too large to draw."""
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e100 else math.nan


def golden_label(results: Mapping) -> str:
    """The golden reward's axis label with unit."""
    golden = results.get("golden") or {}
    unit = golden.get("unit") or ("probability of positive" if golden.get("name") == "classifier" else "score")
    return f"golden reward ({unit})"


def color_of(theme: Theme, name: str, index: int = 0) -> str:
    """A recipe's own colour. Other names get one by their index."""
    return theme.recipes.get(name, theme.others[index % len(theme.others)])


def source_look(theme: Theme, source: str, index: int = 0) -> dict:
    """Colour and dashes of a source of responses: init, demo and sft in the text's colour, a method in its recipe's."""
    if source in SOURCES:
        return {"color": theme.text, "linestyle": SOURCES[source]}
    group, _, recipe = source.partition("/")
    return {"color": color_of(theme, recipe, index), "linestyle": ("-", "--", "-.", ":")[GROUPS.index(group) % 4 if group in GROUPS else 0]}


def looks(theme: Theme, names: Sequence[str]) -> dict[str, dict]:
    """{name: colour and dashes} for the lines of one figure. If all names are recipes, they get their own colours."""
    if all(name in theme.recipes for name in names):
        return {name: {"color": theme.recipes[name], "linestyle": "-"} for name in names}
    several = len(theme.others)
    return {name: {"color": theme.others[i % several], "linestyle": ("-", "--", ":")[i // several % 3]} for i, name in enumerate(names)}


def parts(names: Sequence[str], most: int = MAX_LINES) -> list[list[str]]:
    """Splits names into as few runs of at most `most` as possible, as even as possible."""
    count = math.ceil(len(names) / most)
    return [list(part) for part in np.array_split(np.array(names, object), count)] if names else []


def grouped(roles: Sequence[str]) -> list[tuple[str, list[str]]]:
    """Roles by group ("policy" of "policy/init_sft"), each split by `parts`: [(group, roles)]."""
    groups: dict[str, list[str]] = {}
    for role in roles:
        groups.setdefault(role.partition("/")[0], []).append(role)
    return [(group, part) for group, of in groups.items() for part in parts(of)]


def counted(title: str, index: int, total: int) -> str:
    """A title with its number, if there are several."""
    return f"{title} ({index} of {total})" if total > 1 else title


def legend_columns(names: Sequence[str]) -> int:
    """Columns with which a legend of these names fits a figure's width."""
    return min(max(1, len(names)), 3 if max(map(len, names), default=0) <= 18 else 2)


def legend_height(names: Sequence[str]) -> float:
    """Height in inches of a legend of these names."""
    return 0.19 * math.ceil(len(names) / legend_columns(names)) + 0.15


def draw_points(planes: Sequence, theme: Theme, points: Sequence[Point]) -> dict:
    """Draws policies as points with error bars on each of the axes. Many points are numbered, with colour and marker by group.

    Returns:
      {label: handle} for the legend. With many points, labels start with their numbers.
    """
    handles, many = {}, len(points) > MAX_LINES
    for axes in planes:
        for index, point in enumerate(points):
            group, _, recipe = point.name.rpartition("/")
            color = theme.text if point.name in SOURCES else color_of(theme, recipe, index)
            marker = "PXhd<>^v"[index % 8]
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


def name_points(figure, planes: Sequence, theme: Theme, points: Sequence[Point]) -> None:
    """Labels each point with its name, or with its number if there are many, where the fewest points and texts are.

    Call it after everything else is drawn: it freezes the figure's layout.
    """
    if not points:
        return
    many = len(points) > MAX_LINES
    settle(figure)
    scale = figure.dpi / 72
    for axes in planes:
        centres = axes.transData.transform([(point.x, point.y) for point in points]) / scale
        box = axes.bbox.extents / scale
        taken = [(*centre, 5.0) for centre in centres]  # centres and half-widths, in points
        for index, centre in enumerate(centres):
            text = str(index + 1) if many else points[index].name
            half = 5.0 if many else 2.4 * len(text)
            offset = _free_offset(centre, np.array(taken), box, half)
            taken.append((*(centre + offset), half))
            far = max(abs(offset[0]) - half, abs(offset[1])) > 12
            line = dict(arrowstyle="-", color=theme.text, linewidth=0.5, shrinkA=0, shrinkB=2) if far else None
            axes.annotate(text, (points[index].x, points[index].y), xytext=offset, textcoords="offset points",
                          fontsize=7.5 if many else 8.5, ha="center", va="center", arrowprops=line, zorder=4)


def settle(figure) -> None:
    """Lays a figure out and freezes the layout: text placed by it afterwards moves nothing."""
    if figure.get_layout_engine() is not None:
        figure.draw_without_rendering()
        figure.set_layout_engine("none")


def label_ends(figure, planes: Sequence, theme: Theme) -> None:
    """Writes each labelled line's name right of its axes in the line's colour, as near to the height of its end as there is room.

    Call it after everything else is drawn: it makes room for the names, then freezes the layout.
    """
    planes = [(axes, [line for line in axes.lines if not line.get_label().startswith("_") and len(line.get_xdata())]) for axes in planes]
    longest = max((len(line.get_label()) for _, lines in planes for line in lines), default=0)
    reserved = [axes.annotate("n" * longest, (1, 0.5), xycoords="axes fraction", xytext=(14, 0), textcoords="offset points", fontsize=8.5,
                              annotation_clip=False, alpha=0) for axes, _ in planes if longest]
    settle(figure)
    for text in reserved:
        text.remove()
    scale = figure.dpi / 72
    for axes, lines in planes:
        box = axes.bbox.extents / scale
        ends = [axes.transData.transform((line.get_xdata()[-1], line.get_ydata()[-1])) / scale for line in lines]
        heights = spread([y for _, y in ends], 9.6, box[1], box[3])
        for line, (x, y), height in zip(lines, ends, heights, strict=True):
            axes.annotate(line.get_label(), (x, y), xycoords=_points(figure), xytext=(box[2] + 12, height), textcoords=_points(figure),
                          fontsize=8.5, ha="left", va="center", color=line.get_color(), annotation_clip=False, gid="name",
                          arrowprops=dict(arrowstyle="-", color=line.get_color(), linewidth=0.6, shrinkA=1, shrinkB=2, alpha=0.7,
                                          relpos=(0, 0.5)))


def _points(figure):
    """Coordinates in points from the figure's lower left corner."""
    from matplotlib.transforms import Affine2D

    return Affine2D().scale(1 / 72) + figure.dpi_scale_trans


def spread(heights: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Moves heights at least `gap` apart, as little as possible, and into [low, high] if they fit."""
    order = np.argsort(heights, kind="stable")
    moved, count = np.array(heights, float), len(heights)
    blocks = [(float(moved[i]), 1) for i in order]  # (centre, count), merged while they overlap
    at = 0
    while at + 1 < len(blocks):
        (centre, size), (above, more) = blocks[at], blocks[at + 1]
        if above - centre < gap * (size + more) / 2:
            blocks[at : at + 2] = [((centre * size + above * more) / (size + more), size + more)]
            at = max(0, at - 1)
        else:
            at += 1
    placed = [centre + gap * (i - (size - 1) / 2) for centre, size in blocks for i in range(size)]
    for i in range(count):  # up from the floor, then down from the ceiling
        placed[i] = max(placed[i], low if i == 0 else placed[i - 1] + gap)
    for i in reversed(range(count)):
        placed[i] = min(placed[i], high if i == count - 1 else placed[i + 1] - gap)
    moved[order] = placed
    return moved.tolist()


def _free_offset(centre, taken, box, half: float) -> np.ndarray:
    """The offset, in points, at which a text of half-width `half` overlaps `taken` least and stays inside the box. Prefers near ones."""
    best, least = np.zeros(2), math.inf
    for radius in (9, 15, 22, 30, 40):
        for angle in np.arange(12) * math.pi / 6 + math.pi / 4:
            aside = math.copysign(half, math.cos(angle)) if abs(math.cos(angle)) > 0.3 else 0.0  # beside the point, or above or below
            offset = np.array([radius * math.cos(angle) + aside, radius * math.sin(angle)])
            place = centre + offset
            apart = np.abs(taken[:, :2] - place) / np.stack([taken[:, 2] + half, np.full(len(taken), 8.5)], axis=1)
            cost = np.maximum(0.0, 1 - apart.max(axis=1)).sum() * 10 + radius / 30
            outside = place[0] - half < box[0] + 1 or place[0] + half > box[2] - 1 or place[1] < box[1] + 4 or place[1] > box[3] - 4
            if cost + 20 * outside < least:
                best, least = offset, cost + 20 * outside
    return best
