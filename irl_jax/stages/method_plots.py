"""Figures about methods: how far each policy is from the demonstrator, and reward against golden while it was trained."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from irl_jax.stages.plot_style import (
    MAX_LINES,
    Point,
    counted,
    draw_points,
    golden_label,
    grouped,
    label_ends,
    legend_columns,
    legend_height,
    looks,
    name_points,
    number,
)

UNEVEN = 8.0  # use a symmetric log scale if the rewards' ranges differ by more than this factor


def points_of(rows: Mapping | None, x: str, y: str, without: tuple[str, ...] = ()) -> list[Point]:
    """Roles that have both numbers, as points with standard errors."""
    points = []
    for name, numbers in (rows or {}).items():
        numbers = numbers or {}
        place = [number(numbers.get(key)) for key in (x, y)]
        if name not in without and np.isfinite(place).all():
            errors = [float(np.nan_to_num(abs(number(numbers.get(f"{key.removesuffix('_mean')}_stderr"))))) for key in (x, y)]
            points.append(Point(name, *place, *errors))
    return points


def divergences(results: Mapping):
    """Reverse against forward KL to the demonstrator; None if there are none."""
    points = points_of(results.get("divergences"), "forward_kl", "reverse_kl", without=("init",))  # init is far off; the table has it
    if not points:
        return None

    def draw(figure, theme):
        axes = figure.subplots()
        axes.margins(0.08)
        axes.set_xlabel("forward KL(demo‖policy) (nats per sequence):\nlarge where something is left out")
        axes.set_ylabel("reverse KL(policy‖demo) (nats per sequence):\nlarge where something else is done")
        handles = draw_points([axes], theme, points)
        if len(points) > MAX_LINES:  # the key to their numbers
            figure.legend(handles.values(), handles, loc="outside lower center", ncols=legend_columns(list(handles)), fontsize=8,
                          handlelength=1.4)
        name_points(figure, [axes], theme, points)

    told = "; ".join(f"{p.name}: forward {p.x:.2f}, reverse {p.y:.2f}" for p in points)
    return ("divergences", "Covering and seeking", f"Reverse against forward KL to the demonstrator, nats per sequence. {told}.",
            "To the left, a policy covers what the demonstrator does; below, it does little else. Bars are one standard error over "
            "prompts. init is in the table.", 4.0 + legend_height([p.name for p in points]), draw)


def over_training(results: Mapping) -> list:
    """One figure per group of policies (or part of one): reward above, golden below, by step. Leaves out policies with a single batch."""
    curves = {role: curve for role, curve in (results.get("over_training") or {}).items() if curve and len(curve.get("step") or []) > 1}
    figures, all_parts = [], grouped(list(curves))
    for index, (group, roles) in enumerate(all_parts):
        of_group = [part for part in all_parts if part[0] == group]
        here = 1 + index - next(i for i, part in enumerate(all_parts) if part[0] == group)
        figures.append(_over_training(results, counted(group, here, len(of_group)),
                                      f"over_training-{group}" + (f"-{here}" if here > 1 else ""), {role: curves[role] for role in roles}))
    return figures


def _over_training(results: Mapping, group: str, stem: str, curves: Mapping):
    def draw(figure, theme):
        above, below = figure.subplots(2, 1, sharex=True)
        styles = looks(theme, [role.partition("/")[2] for role in curves])
        for (role, curve), style in zip(curves.items(), styles.values(), strict=True):
            steps = np.array([number(step) for step in curve["step"]])
            for axes, key in ((above, "reward"), (below, "golden")):
                values, errors = (np.array([number(v) for v in curve.get(name) or [None] * len(steps)]) for name in (key, f"{key}_stderr"))
                errors = np.nan_to_num(errors)
                axes.plot(steps, values, marker="o", markersize=3, label=role.partition("/")[2], **style)
                axes.fill_between(steps, values - errors, values + errors, color=style["color"], alpha=0.12, linewidth=0)
        if _uneven(curves):
            above.set_yscale("symlog", linthresh=1.0)
            above.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        sft = number(((results.get("policies") or {}).get("sft") or {}).get("golden_mean"))
        if math.isfinite(sft):
            below.axhline(sft, color=theme.text, linewidth=0.9, linestyle=":")
            below.annotate("sft mean", (0.995, sft), xycoords=("axes fraction", "data"), xytext=(0, -2), textcoords="offset points",
                           ha="right", va="top", fontsize=8.5)
        below.xaxis.get_major_locator().set_params(integer=True)
        above.set_ylabel("reward optimised")
        below.set_ylabel(golden_label(results))
        below.set_xlabel("step" if not group.startswith("adversarial") else "round")
        label_ends(figure, (above, below), theme)

    told = "; ".join(f"{role}: reward {_change(curve, 'reward')}, golden {_change(curve, 'golden')}" for role, curve in curves.items())
    return (stem, f"Over-optimisation: {group}", f"Reward and golden reward of training samples by step. {told}.",
            "Where the reward goes on rising and golden falls, the reward is over-optimised. Batches of training prompts, judged after "
            "training; bands are one standard error over their prompts."
            + (" In the adversarial loop the reward itself is retrained every round." if group.startswith("adversarial") else ""),
            4.4, draw)


def _uneven(curves: Mapping) -> bool:
    largest = sorted(max(abs(number(v)) for v in curve["reward"]) for curve in curves.values() if curve.get("reward"))
    return len(largest) > 1 and largest[-1] > UNEVEN * max(largest[0], 1.0)


def _change(curve: Mapping, key: str) -> str:
    values = [number(value) for value in curve.get(key) or [] if math.isfinite(number(value))]
    return f"{values[0]:.2f} to {values[-1]:.2f}" if values else "not known"
