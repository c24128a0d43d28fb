"""The report's figures, drawn from results alone, each in a light and a dark version.

Figures are narrow, so that their text stays readable on a phone. Colours are Okabe and Ito's, which colour-blind
readers tell apart; markers and dashes say the same again.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from irl_jax.config import CONTROLS

WIDTH, DPI = 5.2, 150  # inches, pixels an inch
REFERENCES = ("sft", "demo")  # policies drawn as level lines
MAX_POINTS = 1200  # a scatter panel
MAX_PANELS = 6  # metrics of a stage


class Theme(NamedTuple):
    """Colours of one colour scheme."""

    text: str
    background: str
    grid: str
    recipes: Mapping[str, str]
    others: tuple[str, ...]


class Plot(NamedTuple):
    """One figure: file stem, heading, alternative text, caption, and PNG bytes for the two colour schemes."""

    name: str
    title: str
    alt: str
    caption: str
    light: bytes
    dark: bytes


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
UNITS = {"length": "tokens", "random": "no unit", "golden": "golden's own"}  # of rewards; all others are logits, in nats
METRIC_LABELS = {
    "loss": "loss (nats)", "heldout_loss": "held-out loss (nats)", "reward": "reward (nats)", "kl": "KL (nats/sequence)",
    "golden": "golden", "length": "length (tokens)", "entropy": "entropy (nats/token)", "grad_norm": "gradient norm",
    "auc": "AUC", "heldout_auc": "held-out AUC", "accuracy": "accuracy",
    "behaviour_gap": "behaviour gap (nats/token)", "learning_rate": "learning rate", "tokens_per_second": "tokens per second"}
_UNPLOTTED = ("tokens", "step", "seconds", "weight")


def number(value) -> float:
    """A result as a float, NaN where it is missing."""
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else math.nan


def golden_label(results: Mapping) -> str:
    """The golden reward's axis label, with its unit."""
    golden = results.get("golden") or {}
    unit = golden.get("unit") or {"classifier": "probability of positive"}.get(golden.get("name"), "score")
    return f"golden reward ({unit})"


def draw_all(results: Mapping, training_curves: Mapping) -> list[Plot]:
    """Every figure for which the results have data.

    Args:
      results: results.json with `histograms` and `scatter`.
      training_curves: {stage: {metric: {"step": [...], "value": [...]}}}.

    Returns:
      Plots in the report's order; those without data are absent.
    """
    drawn = [_best_of_n(results), _win_rate(results), _frontier(results), _histograms(results), _scatter(results)]
    groups: dict[str, dict] = {}
    for stage, metrics in (training_curves or {}).items():
        group, _, line = str(stage).partition("/")
        groups.setdefault(group, {})[line or group] = metrics or {}
    drawn += [_training(group, lines) for group, lines in groups.items()]
    return [_render(*plot) for plot in drawn if plot is not None]


def _render(name: str, title: str, alt: str, caption: str, height: float, draw: Callable) -> Plot:
    """Draws twice: `draw(figure, theme)` on a figure WIDTH wide."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    images = []
    for theme in (LIGHT, DARK):
        style = {"font.size": 10, "axes.titlesize": 10, "text.color": theme.text, "axes.labelcolor": theme.text,
                 "xtick.color": theme.text, "ytick.color": theme.text, "axes.edgecolor": theme.grid, "grid.color": theme.grid,
                 "axes.facecolor": theme.background, "figure.facecolor": theme.background, "axes.grid": True,
                 "axes.axisbelow": True, "axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False,
                 "legend.fontsize": 9, "lines.linewidth": 1.8, "lines.markersize": 4.5, "grid.linewidth": 0.7,
                 "text.parse_math": False}  # names are the user's: a dollar sign is a dollar sign
        with matplotlib.rc_context(style):
            figure = Figure(figsize=(WIDTH, height), dpi=DPI, layout="constrained")
            FigureCanvasAgg(figure)
            draw(figure, theme)
            buffer = io.BytesIO()
            figure.savefig(buffer, format="png", metadata={"Software": None})
        images.append(buffer.getvalue())
    return Plot(name, title, alt, caption, *images)


def _color(theme: Theme, name: str, index: int = 0) -> str:
    return theme.recipes.get(name, theme.others[index % len(theme.others)])


def _line_style(recipe: str) -> str:
    return "--" if recipe in CONTROLS else "-"


def _legend_below(figure, axes, columns: int = 3) -> None:
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside lower center", ncols=min(columns, len(handles)), handlelength=2.6)


def _curves(results: Mapping, key: str) -> dict[str, list]:
    """{recipe: best-of-n rows that have the key}."""
    found = {}
    for recipe, numbers in (results.get("rewards") or {}).items():
        rows = [row for row in (numbers or {}).get("best_of_n") or [] if math.isfinite(number(row.get(key)))]
        if rows:
            found[recipe] = rows
    return found


def _draw_bands(axes, theme: Theme, curves: Mapping, x_key: str, key: str, error_key: str) -> None:
    for index, (recipe, rows) in enumerate(curves.items()):
        x, y = (np.array([number(row.get(k)) for row in rows]) for k in (x_key, key))
        error = np.nan_to_num([number(row.get(error_key)) for row in rows])
        color = _color(theme, recipe, index)
        axes.plot(x, y, _line_style(recipe), marker=MARKERS.get(recipe, "."), color=color, label=recipe)
        axes.fill_between(x, y - error, y + error, color=color, alpha=0.14, linewidth=0)


def _n_axis(axes, curves: Mapping) -> None:
    ns = sorted({row["n"] for rows in curves.values() for row in rows})
    ticks = [n for n in ns if n & (n - 1) == 0]
    ticks += [n for n in ns[-1:] if not ticks or n > 1.3 * ticks[-1]]
    axes.set_xscale("log", base=2)
    axes.set_xticks(ticks, [str(n) for n in ticks])
    axes.minorticks_off()
    axes.set_xlabel("n (samples of sft to choose from, log scale)")


def _level_lines(axes, theme: Theme, results: Mapping) -> None:
    axes.margins(y=0.08)
    for name in REFERENCES:
        level = number(((results.get("policies") or {}).get(name) or {}).get("golden_mean"))
        if math.isfinite(level):
            axes.axhline(level, color=theme.text, linewidth=0.9, linestyle=":")
            below = name == "sft"  # above it, curves begin
            axes.annotate(f"{name} mean", (0.995, level), xycoords=("axes fraction", "data"), xytext=(0, -2 if below else 2),
                          textcoords="offset points", ha="right", va="top" if below else "bottom", fontsize=8.5)


def _told(curves: Mapping, key: str, n: int = 16) -> str:
    """The curves at one n in words, for those who do not see them."""
    ns = {row["n"] for rows in curves.values() for row in rows}
    at = n if n in ns else max(ns)
    values = {recipe: next((row[key] for row in rows if row["n"] == at), None) for recipe, rows in curves.items()}
    return f"At n = {at}: " + ", ".join(f"{recipe} {value:.3f}" for recipe, value in values.items() if value is not None) + "."


def _best_of_n(results: Mapping):
    curves = _curves(results, "golden")
    if not curves:
        return None

    def draw(figure, theme):
        axes = figure.subplots()
        _draw_bands(axes, theme, curves, "n", "golden", "stderr")
        _level_lines(axes, theme, results)
        _n_axis(axes, curves)
        axes.set_ylabel(golden_label(results))
        _legend_below(figure, axes)

    return ("best_of_n", "Best-of-n by reward",
            f"Golden reward of best-of-n against n, a line a reward. {_told(curves, 'golden')}",
            "Mean over prompts; bands are one standard error. Learnt rewards solid, controls dashed.", 4.6, draw)


def _win_rate(results: Mapping):
    curves = _curves(results, "win_rate")
    if not curves:
        return None

    def draw(figure, theme):
        axes = figure.subplots()
        _draw_bands(axes, theme, curves, "n", "win_rate", "win_rate_stderr")
        axes.axhline(0.5, color=theme.text, linewidth=0.9, linestyle=":")
        _n_axis(axes, curves)
        axes.set_ylabel("win rate over one sft sample (share)")
        _legend_below(figure, axes)

    return ("win_rate", "Win rate of best-of-n", f"Win rate of best-of-n over a single sft sample. {_told(curves, 'win_rate')}",
            "By the golden reward, ties half; 0.5 is no better than sft. Bands are one standard error over prompts.", 4.6, draw)


def _frontier_points(results: Mapping) -> list[tuple]:
    points = []
    for name, numbers in (results.get("policies") or {}).items():
        kl, golden = (number((numbers or {}).get(key)) for key in ("kl_to_sft", "golden_mean"))
        if name not in ("init", "demo", "sft") and math.isfinite(kl) and math.isfinite(golden):
            errors = (np.nan_to_num(number(numbers.get(key))) for key in ("kl_to_sft_stderr", "golden_stderr"))
            points.append((name, kl, golden, *errors))
    return points


def _frontier(results: Mapping):
    best = {recipe: rows for recipe, rows in _curves(results, "golden").items() if recipe != "random"}
    tilted = {}
    for recipe, numbers in (results.get("rewards") or {}).items():
        rows = [row for row in (numbers or {}).get("tilting") or [] if row.get("trusted", True)
                and math.isfinite(number(row.get("golden"))) and math.isfinite(number(row.get("kl")))]
        if rows and recipe != "random":
            tilted[recipe] = sorted(rows, key=lambda row: row["kl"])
    points = _frontier_points(results)
    panels = [(title, curves, key) for title, curves, key in (
        ("best-of-n, at its upper bound on the KL", best, "kl_bound"), ("tilting, where trusted", tilted, "kl")) if curves]
    if not panels and not points:
        return None
    panels = panels or [("policies", {}, "kl")]

    def draw(figure, theme):
        rows = figure.subplots(len(panels), 1, sharex=True, sharey=True, squeeze=False)[:, 0]
        for axes, (title, curves, key) in zip(rows, panels, strict=True):
            _draw_bands(axes, theme, curves, key, "golden", "stderr")
            _level_lines(axes, theme, results)
            for index, (name, kl, golden, kl_error, golden_error) in enumerate(points):
                axes.errorbar(max(kl, 0.0), golden, xerr=kl_error, yerr=golden_error, fmt="PXhd<>"[index % 6], markersize=9,
                              color=_color(theme, name.rpartition("/")[2], index), markeredgecolor=theme.text, capsize=2,
                              linewidth=1.2, label=name)
            axes.set_title(title, loc="left")
            axes.set_ylabel(golden_label(results))
            axes.set_xscale("function", functions=(lambda x: np.sqrt(np.maximum(x, 0.0)), np.square))
            axes.set_xlim(left=0.0)
            axes.locator_params(axis="x", nbins=6)
        rows[-1].set_xlabel("KL to sft (nats per sequence, square-root scale)")
        handles = {label: handle for axes in rows for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
        figure.legend(handles.values(), handles, loc="outside lower center", ncols=min(3, len(handles)), handlelength=2.6)

    told = "; ".join(f"{name}: golden {golden:.3f} at {kl:.2f} nats" for name, kl, golden, *_ in points) or "no policies"
    return ("frontier", "Golden reward against KL", f"Golden reward against KL to sft. Policies: {told}.",
            "How much golden reward each nat of KL buys. Bars and bands are one standard error over prompts; tilting is shown "
            "while its effective sample size is trusted.", 3.3 * len(panels) + 0.9, draw)


def _panels(figure, theme: Theme, count: int):
    """`count` axes in two columns."""
    grid = figure.subplots(math.ceil(count / 2), min(count, 2), squeeze=False).ravel()
    for axes in grid[count:]:
        axes.set_visible(False)
    return grid[:count]


def _histograms(results: Mapping):
    found = {recipe: {source: bins for source, bins in (sources or {}).items() if bins and sum(bins["counts"]) > 0}
             for recipe, sources in (results.get("histograms") or {}).items()}
    found = {recipe: sources for recipe, sources in found.items() if sources}
    if not found:
        return None
    names = list(dict.fromkeys(source for sources in found.values() for source in sources))

    def draw(figure, theme):
        panels = _panels(figure, theme, len(found))
        for axes, (recipe, sources) in zip(panels, found.items(), strict=True):
            for source, bins in sources.items():
                index = names.index(source)
                counts = np.asarray(bins["counts"], float)
                axes.stairs(counts / counts.sum(), bins["edges"], color=theme.others[index % len(theme.others)], linewidth=1.6,
                            linestyle=("-", "--", "-.", ":")[index % 4], label=source)
            axes.set_title(recipe)
            axes.set_xlabel(f"reward ({UNITS.get(recipe, 'nats')})")
        for axes in panels[::2]:
            axes.set_ylabel("share of responses")
        handles = {label: handle for axes in panels for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
        figure.legend([handles[name] for name in names], names, loc="outside lower center", ncols=min(4, len(names)))

    return ("histograms", "Rewards by source",
            f"Histograms of the rewards {', '.join(found)} for responses of {', '.join(names)}.",
            "Share of responses in each bin of reward, by where the responses come from.",
            2.2 * math.ceil(len(found) / 2) + 0.6, draw)


def _scatter(results: Mapping):
    found = {recipe: points for recipe, points in (results.get("scatter") or {}).items()
             if recipe not in ("length", "random") and points and points.get("length")}
    if not found:
        return None
    import matplotlib
    from matplotlib.colors import ListedColormap

    goldens = np.array([number(g) for points in found.values() for g in points.get("golden") or []])
    goldens = goldens[np.isfinite(goldens)]

    def draw(figure, theme):
        panels, image = _panels(figure, theme, len(found)), None
        shades = matplotlib.colormaps["cividis"](np.linspace(0.3 if theme is DARK else 0.0, 0.85 if theme is LIGHT else 1.0, 256))
        colors = ListedColormap(shades)  # without the end that the background swallows
        for axes, (recipe, points) in zip(panels, found.items(), strict=True):
            keep = slice(None, None, max(1, math.ceil(len(points["length"]) / MAX_POINTS)))
            length, reward = ([number(value) for value in points[key]][keep] for key in ("length", "reward"))
            golden = [number(value) for value in points.get("golden") or []][keep]
            if goldens.size and len(golden) == len(length):
                image = axes.scatter(length, reward, c=golden, cmap=colors, s=9, vmin=goldens.min(), vmax=goldens.max(),
                                     linewidths=0)
            else:
                axes.scatter(length, reward, color=_color(theme, recipe), s=9, linewidths=0)
            axes.set_title(recipe)
            axes.set_xlabel("length (tokens)")
            axes.set_ylabel(f"reward ({UNITS.get(recipe, 'nats')})")
        if image is not None:
            bar = figure.colorbar(image, ax=list(panels), location="bottom", aspect=40, fraction=0.05)
            bar.set_label(golden_label(results))
            bar.ax.locator_params(nbins=6)

    return ("scatter", "Reward against length", f"Reward against response length for {', '.join(found)}.",
            "One point a sft response. A reward that follows length has learnt the wrong thing.",
            2.3 * math.ceil(len(found) / 2) + (0.8 if goldens.size else 0.2), draw)


def _training(group: str, lines: Mapping):
    """One figure a group of stages ("reward" for reward/init_sft, ...): a panel a metric, a line a stage."""
    def has_values(curve):
        return bool(curve) and any(math.isfinite(number(value)) for value in curve.get("value") or [])

    metrics = [m for m in dict.fromkeys(m for curves in lines.values() for m in curves) if m not in _UNPLOTTED
               and any(has_values(curves.get(m)) for curves in lines.values())]
    order = list(METRIC_LABELS)
    metrics = sorted(metrics, key=lambda m: order.index(m) if m in order else len(order))[:MAX_PANELS]
    if not metrics:
        return None

    def draw(figure, theme):
        panels = _panels(figure, theme, len(metrics))
        for axes, metric in zip(panels, metrics, strict=True):
            for index, (line, curves) in enumerate(lines.items()):
                if not has_values(curves.get(metric)):
                    continue
                steps, values = (np.array([number(v) for v in curves[metric][key]]) for key in ("step", "value"))
                few = dict(marker=MARKERS.get(line, "o"), markersize=3.5) if len(steps) <= 12 else {}
                axes.plot(steps, values, color=_color(theme, line, index), linewidth=1.4, label=line, **few)
            axes.set_title(METRIC_LABELS.get(metric, metric.replace("_", " ")))
            axes.set_xlabel("optimizer step")
        handles = {label: handle for axes in panels for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
        if len(lines) > 1:
            figure.legend(handles.values(), handles, loc="outside lower center", ncols=min(3, len(handles)))

    return (f"training-{_stem(group)}", f"Training: {group}",
            f"Training curves of {group}: {', '.join(metrics)} against the step.",
            "As logged while training.", 2.2 * math.ceil(len(metrics) / 2) + (0.6 if len(lines) > 1 else 0.1), draw)


def _stem(name: str) -> str:
    return "".join(c if c.isalnum() or c in "-_" else "-" for c in name)
