"""What the figures of docs/evidence.md share: one colour a recipe, lines with 95% bands, names at their ends."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from benchmarks.evidence.effects import Effect
from irl_jax.config import CONTROLS, LEARNT
from irl_jax.stages import plots
from irl_jax.stages.plot_style import LIGHT, MARKERS, SOURCES, label_ends

WIDTH, DPI = 7.5, 160  # inches, pixels an inch
BEYOND = 1.0  # ranges of a panel's lines that its bands may reach beyond them
RECIPES = (*LEARNT, "log_ratio", "length")  # the rewards that every figure of best-of-n shows
CONTRASTS = {"from_sft": "sft_demo", "token": "sft_demo", "demo": "sft_demo", "from_init": "init_demo",
             "sft_from_init": "init_sft"}  # of the adversarial loop and SPIN: whom their discriminator tells apart


class Drawn(NamedTuple):
    """One figure: file stem, alternative text, caption, and a PNG's bytes."""

    stem: str
    alt: str
    caption: str
    png: bytes


class Line(NamedTuple):
    """name: written at its end. x, effects: as long; places without an effect are left out. recipe: its colour. dashed: or not."""

    name: str
    x: Sequence[float]
    effects: Sequence[Effect | None]
    recipe: str
    dashed: bool = False


def recipe_of(role: str) -> str:
    """The recipe in whose colour a role is drawn: the one it is trained by, or whose contrast its discriminator sees."""
    group, _, name = role.rpartition("/")
    if group in ("adversarial", "spin"):
        return CONTRASTS.get(name, name)
    known = [recipe for recipe in (*LEARNT, *CONTROLS) if name.startswith(recipe)]
    return max(known, key=len) if known else "init_sft"  # "frozen", "ensemble", "far": configs/paper/testbed.py


def render(stem: str, alt: str, caption: str, height: float, draw: Callable) -> Drawn:
    """Draws on a figure WIDTH wide and `height` inches high, in the light theme."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with matplotlib.rc_context(plots.style(LIGHT)):
        figure = Figure(figsize=(WIDTH, height), dpi=DPI, layout="constrained")
        FigureCanvasAgg(figure)
        draw(figure)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", metadata={"Software": None})
    return Drawn(stem, alt, caption, buffer.getvalue())


def draw_lines(axes, lines: Sequence[Line], offset: float = 0.0) -> None:
    """The lines with their 95% bands, `offset` added to every effect."""
    for line in lines:
        kept = [(x, one) for x, one in zip(line.x, line.effects, strict=True) if one is not None]
        if not kept:
            continue
        x = np.array([place for place, _ in kept], float)
        mean, low, high = (np.array([getattr(one, key) for _, one in kept]) + offset for key in ("mean", "low", "high"))
        color = LIGHT.recipes.get(line.recipe, LIGHT.text)
        style = SOURCES.get(line.recipe, "--" if line.dashed else "-")
        axes.plot(x, mean, style, color=color, marker=MARKERS.get(line.recipe, "."), markersize=4, label=line.name)
        axes.fill_between(x, low, high, color=color, alpha=0.12, linewidth=0)


def level(axes, y: float, text: str) -> None:
    """A dotted line as far as the axes' lines go, named like them."""
    places = np.concatenate([line.get_xdata() for line in axes.lines]) if axes.lines else np.array([0.0, 1.0])
    axes.plot([places.min(), places.max()], [y, y], ":", color=LIGHT.text, linewidth=1.1, label=text)


def grid(figure, count: int, columns: int = 2, **how):
    """`count` axes in so many columns; the lowest of each column has the numbers of its x axis."""
    rows, columns = -(-count // columns), min(count, columns)
    planes = figure.subplots(rows, columns, squeeze=False, **how).ravel()
    for axes, above in zip(planes[count:], planes[count - columns :], strict=False):
        axes.set_visible(False)
        above.tick_params(labelbottom=True)
    return list(planes[:count])


def log_ticks(axes, values: Sequence[float], base: int = 2) -> None:
    """A logarithmic x axis with ticks at the values."""
    axes.set_xscale("log", base=base)
    axes.set_xticks(list(values), [f"{value:g}" if value < 1000 else f"{value / 1000:g}k" for value in values])
    axes.minorticks_off()


def fit(planes: Sequence) -> None:
    """Lets bands reach beyond the lines by `BEYOND` times the lines' own range at most: two seeds' would flatten every line."""
    for axes in planes:
        shared = axes.get_shared_y_axes().get_siblings(axes)
        y = np.concatenate([np.asarray(line.get_ydata(), float) for one in shared for line in one.lines])
        reach = BEYOND * (y.max() - y.min())
        low, high = axes.get_ylim()
        if reach:
            axes.set_ylim(max(low, y.min() - reach), min(high, y.max() + reach))


def finish(figure, planes: Sequence) -> None:
    """Names the lines at their ends; call it last."""
    label_ends(figure, planes, LIGHT)


def told(lines: Sequence[Line], offset: float = 0.0) -> str:
    """The lines' ends in words, for those who do not see them."""
    ends = {line.name: next((one for one in reversed(line.effects) if one is not None), None) for line in lines}
    return ", ".join(f"{name} {one.mean + offset:.3f}" for name, one in ends.items() if one is not None)


def role_lines(names: Mapping[str, Sequence[Effect | None]], x: Sequence[float]) -> list[Line]:
    """A line a role, in its recipe's colour, all but plain policies dashed."""
    return [Line(role, x, effects, role if role in SOURCES else recipe_of(role), "/" in role and not role.startswith("policy/"))
            for role, effects in names.items()]
