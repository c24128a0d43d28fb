"""What the report's figures share: colours, markers, labels, and how many lines or points stay readable."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from irl_jax.config import GROUPS

WIDTH, DPI = 4.7, 170  # inches, pixels an inch: narrow, so that the text stays readable on a phone
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
SOURCES = {"init": ":", "sft": "--", "demo": "-"}  # dashes of the policies that are no recipe's
_GROUP_MARKERS = dict(zip(GROUPS, "oPXhd>", strict=True))


class Point(NamedTuple):
    """One policy in a plane: its role, its place, and standard errors (0 where there is none)."""

    name: str
    x: float
    y: float
    x_error: float
    y_error: float


def number(value) -> float:
    """A result as a float, NaN where it is missing or far beyond what can be drawn."""
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e100 else math.nan


def golden_label(results: Mapping) -> str:
    """The golden reward's axis label, with its unit."""
    golden = results.get("golden") or {}
    unit = golden.get("unit") or ("probability of positive" if golden.get("name") == "classifier" else "score")
    return f"golden reward ({unit})"


def color_of(theme: Theme, name: str, index: int = 0) -> str:
    """A recipe's own colour, another name's by its index."""
    return theme.recipes.get(name, theme.others[index % len(theme.others)])


def source_look(theme: Theme, source: str, index: int = 0) -> dict:
    """Colour and dashes of where responses come from: init, demo and sft in the text's colour, a method in its recipe's."""
    if source in SOURCES:
        return {"color": theme.text, "linestyle": SOURCES[source]}
    group, _, recipe = source.partition("/")
    return {"color": color_of(theme, recipe, index), "linestyle": ("-", "--", "-.", ":")[GROUPS.index(group) % 4 if group in GROUPS else 0]}


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
      {label: handle}, which is the legend and the key to the numbers where they are many.
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
    """Writes beside each point its name, or its number where they are many, where the fewest points and texts are.

    Call it once everything else is drawn: it lays the figure out and holds it there.
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
    """Lays a figure out and holds it there, so that what is written next moves nothing that it was placed by."""
    if figure.get_layout_engine() is not None:
        figure.draw_without_rendering()
        figure.set_layout_engine("none")


def label_ends(figure, planes: Sequence, theme: Theme) -> None:
    """Writes each labelled line's name right of its axes, at its end's height or as near as there is room, in the line's colour.

    Room is made before the layout is held; call it once everything else is drawn.
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
    """Heights moved apart to at least `gap`, as little as can be, and into [low, high] while they fit there."""
    order = np.argsort(heights, kind="stable")
    moved, count = np.array(heights, float), len(heights)
    blocks = [(float(moved[i]), 1) for i in order]  # (centre, how many), merged while they overlap
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
    """The offset, in points, at which a text of a half-width is least in the way of what is `taken` and inside the box; near ones first."""
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
