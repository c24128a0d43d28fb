"""The figures of the paper's kind: best-of-n by recipe, golden against KL, one factor at a time, capacity of the reward."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from benchmarks.evidence import claims, plan
from benchmarks.evidence.drawing import (
    RECIPES,
    Drawn,
    Line,
    draw_lines,
    finish,
    fit,
    grid,
    level,
    log_ticks,
    recipe_of,
    render,
    role_lines,
    told,
)
from benchmarks.evidence.effects import Effect, Study, golden_of, in_blocks, number, paired, point, win
from irl_jax.config import LEARNT
from irl_jax.evaluation.best_of_n import kl_bound
from irl_jax.stages.plot_style import LIGHT

BANDS = "Bands are 95% intervals over seeds and prompts"
TRAINED = ("policy/init_sft", "policy/init_demo", "policy/sft_demo", "policy/preference", "policy/far", "policy/ensemble_far",
           "adversarial/from_sft", "adversarial/demo")  # whose training is drawn
COMPARED = ("policy/init_sft", "adversarial/from_sft")  # over the levels of a factor
CAPACITIES = {"init_sft_frozen": "frozen features", "init_sft": "adapter", "init_sft_trunk": "whole trunk",
              "init_sft_ensemble": "ensemble of adapters"}


def ns_of(study: Study, cell: str = plan.BASE) -> list[int]:
    """The n of best-of-n that every seed of a cell has for some reward."""
    found = [{row["n"] for reward in record["results"]["rewards"].values() for row in reward.get("best_of_n") or []
              if row.get("win_rate") is not None} for record in study.records.get(cell, {}).values()]
    return sorted(set.intersection(*found)) if found else []


def win_lines(study: Study) -> list[Line]:
    """Win rate less one half against n, a line a reward."""
    ns = ns_of(study)
    lines = [Line(reward, ns, [study.effect(win(reward, n)) for n in ns], reward, reward not in LEARNT) for reward in RECIPES]
    return [line for line in lines if any(line.effects)]


def win_rates(studies: Mapping[str, Study]) -> Drawn | None:
    """The paper's two figures and ours side by side."""
    ours = {study.planned.title: lines for study in studies.values() if (lines := win_lines(study))}
    if not ours:
        return None

    def draw(figure):
        planes = grid(figure, 2 + len(ours), sharey=True)
        for axes, (title, recipes) in zip(planes, claims.PAPER.items(), strict=False):
            axes.set_title(f"the paper: {title}, GPT-4's demonstrations", loc="left")
            draw_lines(axes, [Line(name, claims.PAPER_NS, [Effect(v - 0.5, v - 0.5, v - 0.5, 0.0, 1) for v in values], name)
                              for name, values in recipes.items()], 0.5)
            for place, (name, (low, high)) in enumerate(claims.PAPER_RANGES.get(title, {}).items()):
                axes.fill_between((5, 50), low, high, color=LIGHT.recipes[name], alpha=0.18, linewidth=0)
                axes.annotate(f"{name}: {low:g} to {high:g}", (5.2, 0.5), xytext=(0, -6 - 11 * place), textcoords="offset points",
                              color=LIGHT.recipes[name], fontsize=8.5, va="top")
            log_ticks(axes, claims.PAPER_NS)
        for axes, (title, lines) in zip(planes[2:], ours.items(), strict=True):
            axes.set_title(title, loc="left")
            draw_lines(axes, lines, 0.5)
            log_ticks(axes, [n for n in lines[0].x if n in (1, 4, 16, 64, 256)])
        planes[0].set_ylim(max(0.0, planes[0].get_ylim()[0]), min(1.0, planes[0].get_ylim()[1]))  # a few seeds' bands may leave it
        for axes in planes:
            level(axes, 0.5, "sft")
            axes.set_xlabel("N (log scale)")
        for axes in planes[::2]:
            axes.set_ylabel("win rate over sft")
        finish(figure, planes)

    words = ". ".join(f"{title}, largest N: {told(lines, 0.5)}" for title, lines in ours.items())
    return render("win_rate", f"Win rate of best-of-N over one sample of sft against N, a line a reward. {words}.",
                  f"Win rate of best-of-N over one sample of sft, by the golden reward, ties half. {BANDS}; learnt rewards solid, controls "
                  "dashed. Of the paper's `init_demo` and `sft_demo` on Helpful only the range is known.",
                  2.7 * -(-(2 + len(ours)) // 2), draw)


def frontier(study: Study) -> Drawn | None:
    """Golden against KL: best-of-n at its bound, and policies while they were trained."""
    ns = ns_of(study)
    best = [Line(reward, [kl_bound(n) for n in ns], [study.effect(_golden_at(reward, n)) for n in ns], reward, reward not in LEARNT)
            for reward in RECIPES]
    best = [line for line in best if any(line.effects)]
    trained = [line for role in TRAINED if (line := training_line(study, role))]
    panels = [(title, lines) for title, lines in (("best-of-n, at its bound log n - (n - 1)/n", best), ("policies, over training", trained))
              if lines]
    if not panels:
        return None
    sft = study.effect(golden_of("sft"))

    def draw(figure):
        planes = grid(figure, len(panels), sharey=True)
        for axes, (title, lines) in zip(planes, panels, strict=True):
            axes.set_title(title, loc="left")
            draw_lines(axes, lines)
            axes.set_xscale("function", functions=(lambda x: np.sqrt(np.maximum(x, 0.0)), np.square))
            axes.set_xlim(left=0.0)
            axes.set_xticks([float(f"{tick:.1g}") for tick in np.square(np.linspace(0, np.sqrt(axes.get_xlim()[1]), 5))[:-1]])
            axes.set_xlabel("KL to sft (nats, square-root scale)")
            if sft:
                level(axes, sft.mean, "sft")
        planes[0].set_ylabel("golden")
        finish(figure, planes)

    words = ". ".join(f"{title}, at the end: {told(lines)}" for title, lines in panels)
    return render(f"frontier-{study.name}", f"Golden against KL to sft. {words}.",
                  f"How much golden each nat of KL buys. {BANDS}. Points of training are the kept batches of a sixth of the steps, "
                  "on training prompts, at their mean KL.", 3.4, draw)


def _golden_at(reward: str, n: int):
    def of(record):
        row = point(record, reward, n)
        return (row["golden"], row["stderr"]) if row else None

    return of


def training_line(study: Study, role: str) -> Line | None:
    """Golden over a policy's training against its KL, in blocks of kept steps (`effects.in_blocks`)."""
    curves = [record["over_training"][role] for record in study.records.get(plan.BASE, {}).values() if record["over_training"].get(role)]
    _, kl, golden = in_blocks(curves, "golden")
    if len(kl) < 2:
        return None
    return Line(role, kl, golden, recipe_of(role), not role.startswith("policy/") or role.rpartition("/")[2] not in LEARNT)


def sweep(study: Study, name: str) -> Drawn | None:
    """What best-of-16 and the trained policies gain over sft at each level of one factor."""
    factor = study.planned.factors[name]
    levels, cells = list(factor.cells), list(factor.cells.values())
    if sum(cell in study.records for cell in cells) < 2:
        return None
    best = [Line(reward, levels, [study.effect(paired(f"best-of-16 by {reward} - sft"), cell) for cell in cells], reward,
                 reward not in LEARNT) for reward in RECIPES]
    policies = role_lines({role: [study.effect(paired(f"{role} - sft"), cell) for cell in cells] for role in COMPARED}, levels)
    panels = [("best-of-16 by reward", [line for line in best if any(line.effects)]),
              ("trained policies", [line for line in policies if any(line.effects)])]

    def draw(figure):
        planes = grid(figure, 2)
        for axes, (title, lines) in zip(planes, panels, strict=True):
            axes.set_title(title, loc="left")
            draw_lines(axes, lines)
            if factor.log:
                log_ticks(axes, levels, 10)
            else:
                axes.set_xticks(levels, [f"{value:g}" for value in levels])
            level(axes, 0.0, "sft")
        fit(planes)
        figure.supxlabel(factor.title, fontsize=10)
        planes[0].set_ylabel("golden less sft's")
        finish(figure, planes)

    words = ". ".join(f"{title}, at the highest level: {told(lines)}" for title, lines in panels)
    return render(f"factor-{name}", f"Golden less that of sft against the {factor.title}. {words}.",
                  f"One factor moved, the others as frozen. {BANDS}; where they leave the panel they are wider than it.", 3.2, draw)


def capacity(study: Study) -> Drawn | None:
    """The reward of `init_sft` by what of it is trained: gain of best-of-16, and rank correlation with golden."""
    panels = (("golden of best-of-16,\nless sft's", lambda reward: paired(f"best-of-16 by {reward} - sft")),
              ("rank correlation\nwith golden", lambda reward: number("results", "rewards", reward, "spearman_golden",
                                                                     stderr="spearman_golden_stderr")),
              ("held-out AUC", lambda reward: number("results", "rewards", reward, "heldout_auc", stderr="heldout_auc_stderr")))
    found = {title: {reward: one for reward in CAPACITIES if (one := study.effect(of(reward)))} for title, of in panels}
    if not any(len(effects) > 1 for effects in found.values()):
        return None

    def draw(figure):
        planes = grid(figure, len(found), columns=3, sharey=True)
        for axes, (title, effects) in zip(planes, found.items(), strict=True):
            for place, reward in enumerate(CAPACITIES):
                if one := effects.get(reward):
                    axes.plot([one.low, one.high], [place, place], color=LIGHT.recipes["init_sft"], linewidth=5, alpha=0.25)
                    axes.plot(one.mean, place, "o", color=LIGHT.recipes["init_sft"])
            axes.set_title(title, loc="left")
            axes.locator_params(axis="x", nbins=4)
        planes[0].set_ylim(len(CAPACITIES) - 0.5, -0.5)
        planes[0].set_yticks(range(len(CAPACITIES)), CAPACITIES.values())

    words = "; ".join(f"{title}: " + ", ".join(f"{CAPACITIES[reward]} {one.mean:.3f}" for reward, one in effects.items())
                      for title, effects in found.items()).replace("\n", " ")
    return render(f"capacity-{study.name}", f"The init_sft reward by what is trained of it. {words}.",
                  "`init_sft` by what of the reward is trained. Bars are 95% intervals over seeds and prompts.", 2.4, draw)
