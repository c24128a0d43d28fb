"""The report's figures, drawn from results alone, each in a light and a dark version.

Figures are narrow so that their text stays readable on a phone. Colours are Okabe and Ito's, which colour-blind readers
can tell apart. Markers and dashes repeat the distinction.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from irl_jax.config import CONTROLS
from irl_jax.stages import method_plots, temperature_plots
from irl_jax.stages.plot_style import (
    DARK,
    DPI,
    LIGHT,
    MARKERS,
    MAX_LINES,
    WIDTH,
    Theme,
    color_of,
    counted,
    draw_points,
    golden_label,
    label_ends,
    legend_columns,
    legend_height,
    looks,
    name_points,
    number,
    parts,
    source_look,
)

REFERENCES = ("sft", "demo")  # policies drawn as level lines
MAX_POINTS = 1200  # per scatter panel
MAX_PANELS = 6  # metrics per stage
IN_TABLES = ("ended", "random", "length")  # controls left out if there are many lines


class Plot(NamedTuple):
    """One figure: file stem, heading, alternative text, caption, and PNG bytes for the two colour schemes."""

    name: str
    title: str
    alt: str
    caption: str
    light: bytes
    dark: bytes

    def _repr_png_(self) -> tuple[bytes, dict]:
        """Shows the figure as a notebook cell's result."""
        return self.light, {"width": round(WIDTH * 96)}


UNITS = {"length": "tokens", "ended": "share", "mean_logprob": "nats/token", "robust": "deviations", "random": "no unit",
         "golden": "golden's own"}  # of rewards; all others are in nats
METRIC_LABELS = {
    "balanced_accuracy": "balanced accuracy, fresh samples",
    "loss": "loss (nats)", "heldout_loss": "held-out loss (nats)", "reward": "reward (nats)", "kl": "KL (nats/sequence)",
    "golden": "golden", "length": "length (tokens)", "entropy": "entropy (nats/token)", "grad_norm": "gradient norm",
    "auc": "AUC", "heldout_auc": "held-out AUC", "accuracy": "accuracy",
    "behaviour_gap": "behaviour gap (nats/token)", "learning_rate": "learning rate", "tokens_per_second": "tokens per second"}
_UNPLOTTED = ("tokens", "step", "seconds", "weight")


def draw_all(results: Mapping, training_curves: Mapping) -> list[Plot]:
    """Draws every figure that the results have data for.

    Args:
      results: results.json with `histograms` and `scatter`.
      training_curves: {stage: {metric: {"step": [...], "value": [...]}}}.

    Returns:
      Plots in the report's order, without those that lack data.
    """
    drawn = [*_best_of_n(results), temperature_plots.draw(results), *_win_rate(results), _frontier(results),
             method_plots.divergences(results), *method_plots.over_training(results), _histograms(results), _scatter(results)]
    groups: dict[str, dict] = {}
    for stage, metrics in (training_curves or {}).items():
        group, _, line = str(stage).partition("/")
        groups.setdefault(group, {})[line or group] = metrics or {}
    for group, lines in groups.items():
        several = parts(list(lines))
        drawn += [_training(group, {name: lines[name] for name in names}, i, len(several)) for i, names in enumerate(several, start=1)]
    return [render(*plot) for plot in drawn if plot is not None]


def style(theme: Theme) -> dict[Any, Any]:
    """matplotlib settings for the figures of a theme."""
    return {"font.size": 10, "axes.titlesize": 10, "text.color": theme.text, "axes.labelcolor": theme.text,
            "xtick.color": theme.text, "ytick.color": theme.text, "axes.edgecolor": theme.grid, "grid.color": theme.grid,
            "axes.facecolor": theme.background, "figure.facecolor": theme.background, "axes.grid": True,
            "axes.axisbelow": True, "axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False,
            "legend.fontsize": 9, "lines.linewidth": 1.8, "lines.markersize": 4.5, "grid.linewidth": 0.7,
            "text.parse_math": False}  # names are the user's and may have dollar signs


def render(name: str, title: str, alt: str, caption: str, height: float, draw: Callable) -> Plot:
    """Calls `draw(figure, theme)` for both themes, on figures WIDTH wide."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    images = []
    for theme in (LIGHT, DARK):
        with matplotlib.rc_context(style(theme)):
            figure = Figure(figsize=(WIDTH, height), dpi=DPI, layout="constrained")
            FigureCanvasAgg(figure)
            draw(figure, theme)
            buffer = io.BytesIO()
            figure.savefig(buffer, format="png", metadata={"Software": None})
        images.append(buffer.getvalue())
    return Plot(name, title, alt, caption, *images)


def _line_style(recipe: str) -> str:
    return "--" if recipe in CONTROLS else "-"


def _curves(results: Mapping, key: str) -> dict[str, list]:
    """{recipe: best-of-n rows that have the key}."""
    found = {}
    for recipe, numbers in (results.get("rewards") or {}).items():
        rows = [row for row in (numbers or {}).get("best_of_n") or [] if math.isfinite(number(row.get(key)))]
        if rows:
            found[recipe] = rows
    return found


def _figures_of(curves: Mapping) -> list[Mapping]:
    """Splits many curves into figures: first recipes and most controls, then variants, each time with init_sft to compare with."""
    plain = [recipe for recipe in curves if recipe in MARKERS and recipe not in IN_TABLES]
    variants = parts([recipe for recipe in curves if recipe not in MARKERS], MAX_LINES - 1)
    if len(curves) <= MAX_LINES:
        return [curves] if curves else []
    base = [recipe for recipe in ("init_sft",) if recipe in curves]
    return [{recipe: curves[recipe] for recipe in some} for some in (plain, *(base + names for names in variants)) if some]


def _draw_bands(axes, theme: Theme, curves: Mapping, x_key: str, key: str, error_key: str) -> None:
    styles = looks(theme, list(curves))
    for recipe, rows in curves.items():
        x, y = (np.array([number(row.get(k)) for row in rows]) for k in (x_key, key))
        error = np.nan_to_num([number(row.get(error_key)) for row in rows])
        color = styles[recipe]["color"]
        style = _line_style(recipe) if recipe in MARKERS else styles[recipe]["linestyle"]
        axes.plot(x, y, style, marker=MARKERS.get(recipe, "."), color=color, label=recipe)
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
            below = name == "sft"  # curves begin above it
            axes.annotate(f"{name} mean", (0.995, level), xycoords=("axes fraction", "data"), xytext=(0, -2 if below else 2),
                          textcoords="offset points", ha="right", va="top" if below else "bottom", fontsize=8.5)


def _told(curves: Mapping, key: str, n: int = 16) -> str:
    """The curves at one n in words, for readers who can't see them."""
    ns = {row["n"] for rows in curves.values() for row in rows}
    at = n if n in ns else max(ns)
    values = {recipe: next((row[key] for row in rows if row["n"] == at), None) for recipe, rows in curves.items()}
    return f"At n = {at}: " + ", ".join(f"{recipe} {value:.3f}" for recipe, value in values.items() if value is not None) + "."


def _best_of_n(results: Mapping) -> list:
    figures = _figures_of(_curves(results, "golden"))

    def one(curves, index):
        def draw(figure, theme):
            axes = figure.subplots()
            _draw_bands(axes, theme, curves, "n", "golden", "stderr")
            _level_lines(axes, theme, results)
            _n_axis(axes, curves)
            axes.set_ylabel(golden_label(results))
            label_ends(figure, [axes], theme)

        return ("best_of_n" + _suffix(index), counted("Best-of-n by reward", index, len(figures)),
                f"Golden reward of best-of-n against n, a line a reward. {_told(curves, 'golden')}",
                "Mean over prompts; bands are one standard error. Learnt rewards solid, controls dashed.", 3.9, draw)

    return [one(curves, index) for index, curves in enumerate(figures, start=1)]


def _win_rate(results: Mapping) -> list:
    figures = _figures_of(_curves(results, "win_rate"))

    def one(curves, index):
        def draw(figure, theme):
            axes = figure.subplots()
            _draw_bands(axes, theme, curves, "n", "win_rate", "win_rate_stderr")
            axes.axhline(0.5, color=theme.text, linewidth=0.9, linestyle=":")
            _n_axis(axes, curves)
            axes.set_ylabel("win rate over one sft sample (share)")
            label_ends(figure, [axes], theme)

        return ("win_rate" + _suffix(index), counted("Win rate of best-of-n", index, len(figures)),
                f"Win rate of best-of-n over a single sft sample. {_told(curves, 'win_rate')}",
                "By the golden reward, ties half; 0.5 is no better than sft. Bands are one standard error over prompts.", 3.9, draw)

    return [one(curves, index) for index, curves in enumerate(figures, start=1)]


def _frontier(results: Mapping):
    best = _without_variants({recipe: rows for recipe, rows in _curves(results, "golden").items() if recipe != "random"})
    tiltings: dict[str, list] = {}
    for recipe, numbers in (results.get("rewards") or {}).items():
        rows = [row for row in (numbers or {}).get("tilting") or [] if row.get("trusted", True)
                and math.isfinite(number(row.get("golden"))) and math.isfinite(number(row.get("kl")))]
        if rows and recipe != "random":
            tiltings[recipe] = sorted(rows, key=lambda row: row["kl"])
    tilted = _without_variants(tiltings)
    points = method_plots.points_of(results.get("policies"), "kl_to_sft", "golden_mean", without=("init", "demo", "sft"))
    points = [point._replace(x=max(point.x, 0.0)) for point in points]  # noise can put an estimate below 0
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
            found = draw_points([axes], theme, points)
            axes.set_title(title, loc="left")
            axes.set_ylabel(golden_label(results))
            axes.set_xscale("function", functions=(lambda x: np.sqrt(np.maximum(x, 0.0)), np.square))
            axes.set_xlim(left=0.0)
            axes.locator_params(axis="x", nbins=5)
        rows[-1].set_xlabel("KL to sft (nats per sequence, square-root scale)")
        if len(points) > MAX_LINES:  # the key to their numbers
            figure.legend(found.values(), found, loc="outside lower center", ncols=legend_columns(list(found)), fontsize=8)
        label_ends(figure, rows, theme)
        name_points(figure, rows, theme, points)

    told = "; ".join(f"{point.name}: golden {point.y:.3f} at {point.x:.2f} nats" for point in points) or "no policies"
    names = [point.name for point in points] if len(points) > MAX_LINES else []
    return ("frontier", "Golden reward against KL", f"Golden reward against KL to sft. Policies: {told}.",
            "How much golden reward each nat of KL buys. Bars and bands are one standard error over prompts; tilting is shown "
            "while its effective sample size is trusted.", 3.2 * len(panels) + 0.3 + (legend_height(names) if names else 0.0), draw)


def _without_variants(curves: Mapping[str, Any]) -> Mapping[str, Any]:
    """The curves, without variants if they would be too many lines."""
    return curves if len(curves) <= MAX_LINES else {recipe: rows for recipe, rows in curves.items() if recipe in MARKERS}


def _first(found: dict[str, Any], what: str) -> tuple[dict[str, Any], str]:
    """The first MAX_LINES items, and a sentence that says so if there are more."""
    kept = dict(list(found.items())[:MAX_LINES])
    return kept, f" The first {MAX_LINES} of {len(found)} {what}." if len(found) > MAX_LINES else ""


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
    found, fewer = _first(found, "rewards")
    shown, few = _first(dict.fromkeys(source for sources in found.values() for source in sources), "sources")
    names = list(shown)
    found = {recipe: {source: bins for source, bins in sources.items() if source in names} for recipe, sources in found.items()}

    def draw(figure, theme):
        panels = _panels(figure, theme, len(found))
        for axes, (recipe, sources) in zip(panels, found.items(), strict=True):
            for source, bins in sources.items():
                index = names.index(source)
                counts = np.asarray(bins["counts"], float)
                axes.stairs(counts / counts.sum(), bins["edges"], linewidth=1.4, label=source, **source_look(theme, source, index))
            axes.set_title(recipe, color=theme.recipes.get(recipe, theme.text))
            axes.set_xlabel(f"reward ({UNITS.get(recipe, 'nats')})")
        for axes in panels[::2]:
            axes.set_ylabel("share of responses")
        handles = {label: handle for axes in panels for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
        figure.legend([handles[name] for name in names], names, loc="outside lower center", ncols=legend_columns(names))

    return ("histograms", "Rewards by source",
            f"Histograms of the rewards {', '.join(found)} for responses of {', '.join(names)}.",
            f"Share of responses in each bin of reward, by where the responses come from.{fewer}{few}",
            2.2 * math.ceil(len(found) / 2) + 0.6, draw)


def _scatter(results: Mapping):
    found = {recipe: points for recipe, points in (results.get("scatter") or {}).items()
             if recipe not in ("length", "random") and points and points.get("length")}
    if not found:
        return None
    import matplotlib
    from matplotlib.colors import ListedColormap

    found, fewer = _first(found, "rewards")
    goldens = np.array([number(g) for points in found.values() for g in points.get("golden") or []])
    goldens = goldens[np.isfinite(goldens)]

    def draw(figure, theme):
        panels, image = _panels(figure, theme, len(found)), None
        shades = matplotlib.colormaps["cividis"](np.linspace(0.3 if theme is DARK else 0.0, 0.85 if theme is LIGHT else 1.0, 256))
        colors = ListedColormap(shades)  # without the end that blends into the background
        for axes, (recipe, points) in zip(panels, found.items(), strict=True):
            keep = slice(None, None, max(1, math.ceil(len(points["length"]) / MAX_POINTS)))
            length, reward = ([number(value) for value in points[key]][keep] for key in ("length", "reward"))
            golden = [number(value) for value in points.get("golden") or []][keep]
            if goldens.size and len(golden) == len(length):
                image = axes.scatter(length, reward, c=golden, cmap=colors, s=9, vmin=goldens.min(), vmax=goldens.max(),
                                     linewidths=0)
            else:
                axes.scatter(length, reward, color=color_of(theme, recipe), s=9, linewidths=0)
            axes.set_title(recipe, color=theme.recipes.get(recipe, theme.text))
            axes.set_xlabel("length (tokens)")
            axes.set_ylabel(f"reward ({UNITS.get(recipe, 'nats')})")
        if image is not None:
            bar = figure.colorbar(image, ax=list(panels), location="bottom", aspect=40, fraction=0.05)
            bar.set_label(golden_label(results))
            bar.ax.locator_params(nbins=6)

    return ("scatter", "Reward against length", f"Reward against response length for {', '.join(found)}.",
            f"One point a sft response. A reward that follows length has learnt the wrong thing.{fewer}",
            2.3 * math.ceil(len(found) / 2) + (0.8 if goldens.size else 0.2), draw)


def _training(group: str, lines: Mapping, part: int = 1, of: int = 1):
    """One figure per group of stages ("reward" for reward/init_sft, ...) or part of one: a panel per metric, a line per stage."""
    def has_values(curve):
        return bool(curve) and any(math.isfinite(number(value)) for value in curve.get("value") or [])

    metrics = [m for m in dict.fromkeys(m for curves in lines.values() for m in curves) if m not in _UNPLOTTED
               and any(has_values(curves.get(m)) for curves in lines.values())]
    order = list(METRIC_LABELS)
    metrics = sorted(metrics, key=lambda m: order.index(m) if m in order else len(order))[:MAX_PANELS]
    if not metrics:
        return None

    def draw(figure, theme):
        panels, styles = _panels(figure, theme, len(metrics)), looks(theme, list(lines))
        for axes, metric in zip(panels, metrics, strict=True):
            for line, curves in lines.items():
                if not has_values(curves.get(metric)):
                    continue
                steps, values = (np.array([number(v) for v in curves[metric][key]]) for key in ("step", "value"))
                few = dict(marker=MARKERS.get(line, "o"), markersize=3.5) if len(steps) <= 12 else {}
                axes.plot(steps, values, linewidth=1.4, label=line, **styles[line], **few)
            axes.set_title(METRIC_LABELS.get(metric, metric.replace("_", " ")))
            axes.set_xlabel("round" if group == "adversarial" else "optimizer step")
        handles = {label: handle for axes in panels for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
        if len(lines) > 1:
            figure.legend(handles.values(), handles, loc="outside lower center", ncols=legend_columns(list(handles)))

    return (f"training-{_stem(group)}{_suffix(part)}", counted(f"Training: {group}", part, of),
            f"Training curves of {group}: {', '.join(metrics)} against the step.",
            "As logged while training.", 2.2 * math.ceil(len(metrics) / 2) + (0.3 + legend_height(list(lines)) if len(lines) > 1 else 0.1),
            draw)


def _stem(name: str) -> str:
    return "".join(c if c.isalnum() or c in "-_" else "-" for c in name)


def _suffix(index: int) -> str:
    """A file stem's suffix: the figure's number, from the second of a kind on."""
    return f"-{index}" if index > 1 else ""
