"""The figure of best-of-n from samples at several temperatures, with the best of sft without a reward."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from irl_jax.stages.plot_style import golden_label, label_ends, looks, number

SHOWN = ("robust", "init_sft", "init_demo", "sft_demo", "preference", "log_ratio", "mean_logprob", "golden")  # others are left out


def curves(results: Mapping) -> dict[str, dict[str, list]]:
    """{temperature: {reward: best-of-n rows}}, the run's own temperature first."""
    own = number(((results.get("settings") or {}).get("sample") or {}).get("temperature", 1.0))
    found: dict[str, dict[str, list]] = {}
    for name, row in (results.get("rewards") or {}).items():
        by_temperature = {f"{own:g}": (row or {}).get("best_of_n") or []} | ((row or {}).get("best_of_n_at") or {})
        for temperature, points in by_temperature.items():
            kept = [point for point in points if math.isfinite(number(point.get("golden")))]
            if name in SHOWN and kept:
                found.setdefault(temperature, {})[name] = kept
    return found


def draw(results: Mapping):
    """A panel per temperature and a line per reward; the best of sft without a reward is a level line. None for one temperature."""
    panels = curves(results)
    level = number(((results.get("policies") or {}).get(results.get("baseline") or "") or {}).get("golden_mean"))
    if len(panels) < 2 or not math.isfinite(level):
        return None

    def draw_panels(figure, theme):
        grid = figure.subplots(len(panels), 1, sharex=True, sharey=True, squeeze=False)[:, 0]
        for axes, (temperature, lines) in zip(grid, panels.items(), strict=True):
            styles = looks(theme, list(lines))
            for name, points in lines.items():
                n, golden, error = (np.array([number(point.get(key)) for point in points]) for key in ("n", "golden", "stderr"))
                axes.plot(n, golden, label=name, **styles[name])
                axes.fill_between(n, golden - np.nan_to_num(error), golden + np.nan_to_num(error), alpha=0.14, linewidth=0,
                                  color=styles[name]["color"])
            axes.axhline(level, color=theme.text, linewidth=0.9, linestyle=":")
            axes.set_title(f"samples at temperature {temperature}", loc="left")
            axes.set_ylabel(golden_label(results))
            axes.set_xscale("log", base=2)
            axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        grid[-1].set_xlabel("n (samples of sft to choose from, log scale)")
        label_ends(figure, grid, theme)

    told = "; ".join(f"temperature {temperature}, n = {lines[name][-1]['n']}: {name} {number(lines[name][-1]['golden']):.3f}"
                     for temperature, lines in panels.items() for name in lines)
    return ("temperatures", "Best-of-n at temperatures", f"Golden reward of best-of-n from samples at several temperatures. {told}.",
            f"The dotted line is {results['baseline']}, the best of sft without any reward. Bands are one standard error over prompts.",
            2.6 * len(panels), draw_panels)
