"""Figures of runs side by side: golden reward of all policies per group, and best-of-n by each learnt reward."""

from __future__ import annotations

import math

import numpy as np

from irl_jax.config import CONTROLS
from irl_jax.evaluation.pooling import pool
from irl_jax.stages.plot_style import MAX_LINES, golden_label, label_ends
from irl_jax.stages.plots import Plot, render
from irl_jax.stages.run_tables import Groups, golden_of

MAX_ROWS = 24  # policies and best-of-n's per figure
_DASHES = ("-", "--", "-.", ":")


def draw(groups: Groups) -> list[Plot]:
    """The figures that the runs have golden rewards for."""
    return [render(*figure) for figure in (_golden(groups), _best_of_n(groups)) if figure is not None]


def _label(groups: Groups) -> str:
    return golden_label(next(iter(groups.values()))[0])


def _golden(groups: Groups):
    """A row per policy or best-of-16, with a point per group and a faint dot per seed."""
    found = {letter: [golden_of(run) for run in runs] for letter, runs in groups.items()}
    names = list(dict.fromkeys(name for runs in found.values() for run in runs for name in run))
    names = [name for name in names if name.rpartition(" by ")[2] not in ("random", "golden")][:MAX_ROWS]
    pooled = {(name, letter): pool([run[name][0] for run in runs], [run[name][1] for run in runs])
              for name in names for letter, runs in found.items() if all(name in run for run in runs)}
    points = {place: point for place, point in pooled.items() if point is not None}
    if not points:
        return None
    step = 1.0 / (len(groups) + 0.6)

    def draw_rows(figure, theme):
        axes = figure.subplots()
        for (name, letter), point in points.items():
            y = names.index(name) + step * (list(groups).index(letter) - (len(groups) - 1) / 2)
            recipe = name.rpartition(" by ")[2].rpartition("/")[2]
            color = theme.recipes.get(recipe, theme.text)
            axes.plot([run[name][0] for run in found[letter]], [y] * len(found[letter]), ".", color=color, alpha=0.45, markersize=4)
            axes.errorbar(point.mean, y, xerr=np.nan_to_num(point.stderr), fmt="o", color=color, markersize=5, elinewidth=1.4)
            if len(groups) > 1:
                axes.annotate(letter, (1.02, y), xycoords=("axes fraction", "data"), fontsize=7.5, va="center", color=color)
        axes.set_yticks(range(len(names)), names)
        axes.set_ylim(len(names) - 0.4, -0.6)
        axes.set_xlabel(_label(groups))

    told = "; ".join(f"{name}{f' in {letter}' if len(groups) > 1 else ''}: {point.mean:.3f}" for (name, letter), point in points.items())
    bars = "Bars are one standard error over seeds where there are several, else over prompts; faint dots are the seeds."
    height = 0.8 + len(names) * max(0.28, 0.15 * len(groups))
    return ("golden", "Golden reward", f"Golden reward of each policy. {told}.", bars, height, draw_rows)


def _best_of_n(groups: Groups):
    """A panel per learnt reward, with a line per group."""
    curves: dict[str, dict] = {}
    for letter, runs in groups.items():
        for recipe in runs[0].get("rewards") or {}:
            rows = [{row["n"]: row for row in (run["rewards"].get(recipe) or {}).get("best_of_n") or []} for run in runs]
            points = {n: pool([row[n].get("golden") for row in rows], [row[n].get("stderr") for row in rows])
                      for n in sorted(rows[0]) if all(n in row for row in rows)}
            if recipe not in CONTROLS and points and all(points.values()):
                curves.setdefault(recipe, {})[letter] = points
    curves = dict(list(curves.items())[:MAX_LINES])
    if not curves:
        return None

    def draw_panels(figure, theme):
        panels = figure.subplots(math.ceil(len(curves) / 2), min(2, len(curves)), squeeze=False, sharey=True).ravel()
        for axes, (recipe, lines) in zip(panels, curves.items(), strict=False):
            color = theme.recipes.get(recipe, theme.text)
            for letter, points in lines.items():
                n, mean, error = (np.array(values) for values in zip(*((n, p.mean, np.nan_to_num(p.stderr)) for n, p in points.items()),
                                                                     strict=True))
                axes.plot(n, mean, _DASHES[list(groups).index(letter) % 4], color=color, label=letter if len(groups) > 1 else "_")
                axes.fill_between(n, mean - error, mean + error, color=color, alpha=0.14, linewidth=0)
            axes.set_xscale("log", base=2)
            axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
            axes.set_title(recipe, color=color)
            axes.set_xlabel("n")
        for axes in panels[len(curves) :]:
            axes.set_visible(False)
        for axes in panels[::2]:
            axes.set_ylabel("golden of best-of-n")
        label_ends(figure, panels[: len(curves)], theme)

    told = "; ".join(f"{recipe}{f' in {letter}' if len(groups) > 1 else ''} {list(points.values())[-1].mean:.3f} at n = {list(points)[-1]}"
                     for recipe, lines in curves.items() for letter, points in lines.items())
    return ("best_of_n", "Best-of-n", f"Golden reward of best-of-n, a panel a learnt reward. {told}.",
            "Means over the runs of a group; bands are one standard error over seeds where there are several, else over prompts.",
            2.3 * math.ceil(len(curves) / 2), draw_panels)
