"""The figures that say why: where sources lie, what happens along the response, what rewards have learnt, whether disagreement foresees."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from benchmarks.evidence import plan
from benchmarks.evidence.drawing import Drawn, draw_lines, finish, grid, recipe_of, render, role_lines, told
from benchmarks.evidence.effects import Effect, Study, effect, golden_of, in_blocks, number
from benchmarks.evidence.figures import BANDS
from irl_jax.config import LEARNT
from irl_jax.stages.plot_style import LIGHT, SOURCES, Point, name_points

PLACED = ("init", "sft", "demo", "policy/init_sft", "policy/init_demo", "policy/sft_demo", "policy/preference", "adversarial/from_sft")
ARROWS = {"init_sft": ("init", "sft"), "init_demo": ("init", "demo"), "sft_demo": ("sft", "demo")}  # from negatives to positives
ALONG = ("init", "sft", "demo", "policy/init_sft", "adversarial/from_sft")
_MARKERS = {"init": "P", "sft": "X", "demo": "*", "adversarial": "D"}
REACHED = 0.2  # positions that fewer responses reach are not drawn


def heterogeneity(role: str):
    """How far a source lies along the way from init's text to sft's: mean log sft(y|x) - log init(y|x) of its responses, nats a sequence,
    less the same mean of init's own."""
    def of(record):
        policies = record["results"]["policies"]
        values = [((policies.get(one) or {}).get("rewards") or {}).get("log_ratio") for one in (role, "init")]
        return None if None in values else (values[0] - values[1], None)

    return of


def placed(study: Study) -> dict[str, tuple[Effect, Effect]]:
    """{role: (heterogeneity, golden)}."""
    found = {}
    for role in PLACED:
        pair = (study.effect(heterogeneity(role)),
                study.effect(golden_of(role)))
        if all(pair):
            found[role] = pair
    return found


def plane(studies: Mapping[str, Study]) -> Drawn | None:
    """The paper's illustrative figure as a measured one: quality against heterogeneity, and what each recipe contrasts."""
    found = {study.planned.title: points for study in studies.values() if (points := placed(study))}
    if not found:
        return None

    def draw(figure):
        planes = grid(figure, len(found), columns=min(2, len(found)))
        for axes, (title, roles) in zip(planes, found.items(), strict=True):
            points = [Point(role, h.mean, g.mean, _half(h), _half(g)) for role, (h, g) in roles.items()]
            axes.set_title(title, loc="left")
            axes.margins(0.2)
            for point in points:
                color = LIGHT.text if point.name in SOURCES else LIGHT.recipes[recipe_of(point.name)]
                axes.errorbar(point.x, point.y, xerr=point.x_error, yerr=point.y_error, fmt=_MARKERS.get(point.name.partition("/")[0], "o"),
                              markersize=8, color=color, markeredgecolor=LIGHT.text, capsize=2, elinewidth=1.2, zorder=3)
            for recipe, (start, end) in ARROWS.items():
                if start in roles and end in roles:
                    places = [(roles[role][0].mean, roles[role][1].mean) for role in (start, end)]
                    axes.annotate("", places[1], places[0], arrowprops=dict(
                        arrowstyle="-|>", color=LIGHT.recipes[recipe], linewidth=1.6, alpha=0.8, shrinkA=7, shrinkB=7,
                        connectionstyle="arc3,rad=0.12"))
        for axes in planes[:: min(2, len(found))]:
            axes.set_ylabel("quality: golden")
        figure.supxlabel("heterogeneity: mean log sft - log init, less init's own (nats)", fontsize=10)
        for axes, roles in zip(planes, found.values(), strict=True):
            name_points(figure, [axes], LIGHT, [Point(role, h.mean, g.mean, 0.0, 0.0) for role, (h, g) in roles.items()])

    words = ". ".join(f"{title}: " + "; ".join(f"{role} at {h.mean:.2f} nats, golden {g.mean:.3f}" for role, (h, g) in roles.items())
                      for title, roles in found.items())
    return render("plane", f"Golden against heterogeneity of every source. {words}.",
                  "The paper's illustration, measured: upwards is better, to the right is more unlike init. Arrows lead from a recipe's "
                  "negatives to its positives: blue `init_sft`, orange `init_demo`, green `sft_demo`. Bars are 95% intervals over seeds "
                  "and prompts.", 3.7 * -(-len(found) // 2), draw)


def _half(one: Effect) -> float:
    return float(np.nan_to_num(one.high - one.mean))


def along(study: Study, role: str, key: str) -> tuple[list[int], list[Effect | None]] | None:
    """(positions, effects) of a quantity along a role's responses, up to the last position that a share REACHED of them reach."""
    rows = [((record["analyses"] or {}).get("shift") or {}).get(role) for record in study.records.get(plan.BASE, {}).values()]
    rows = [row for row in rows if row and row.get(key)]
    if not rows:
        return None
    positions = sorted(set.intersection(*({p for p, alive in zip(row["position"], row["alive"], strict=True) if alive >= REACHED}
                                          for row in rows)))
    found = []
    for position in positions:
        values = []
        for row in rows:
            place = row["position"].index(position)
            stderrs = row.get(f"{key}_stderr")
            if row[key][place] is not None:
                values.append((row[key][place], stderrs[place] if stderrs else None))
        found.append(effect(values))
    return positions, found


def shift(study: Study) -> Drawn | None:
    """Log-prob under the demonstrator (where known, else under init) and golden of the prefix, position by position."""
    panels = []
    for key, title in (("demo_log_prob", "log-prob under the demonstrator"), ("init_log_prob", "log-prob under init"),
                       ("golden_all", "golden of the response cut there")):
        found = {role: line for role in ALONG if (line := along(study, role, key))}
        if found and not (key == "init_log_prob" and panels):
            panels.append((title, [line for role, (x, effects) in found.items() for line in role_lines({role: effects}, x)]))
    if not panels:
        return None

    def draw(figure):
        planes = grid(figure, len(panels))
        for axes, (title, lines) in zip(planes, panels, strict=True):
            axes.set_title(title, loc="left")
            draw_lines(axes, lines)
            axes.set_xlabel("position in the response (tokens)")
        planes[0].set_ylabel("nats a token" if "log-prob" in panels[0][0] else "golden")
        finish(figure, planes)

    words = ". ".join(f"{title}, at the last position: {told(lines)}" for title, lines in panels)
    return render(f"shift-{study.name}", f"What happens along the response. {words}.",
                  "Position by position, as far as a fifth of the responses reach. Responses that have ended count with their last golden, "
                  f"and not among log-probs: compare roles at one position rather than positions. {BANDS}.", 3.3, draw)


def probes(studies: Mapping[str, Study]) -> Drawn | None:
    """The AUC of each reward, of surface features alone, and of what of the reward is left without them."""
    found = {}
    for study in studies.values():
        rows = {}
        for reward in LEARNT:
            aucs = [study.effect(number("analyses", "probes", reward, key)) for key in ("auc", "features_auc", "residual_auc")]
            if all(aucs):
                rows[reward] = aucs
        if rows:
            found[study.planned.title] = rows
    if not found:
        return None

    def draw(figure):
        planes = grid(figure, len(found), sharex=True)
        for axes, (title, rows) in zip(planes, found.items(), strict=True):
            axes.set_title(title, loc="left")
            for place, (reward, aucs) in enumerate(rows.items()):
                color = LIGHT.recipes[reward]
                axes.plot([one.mean for one in aucs], [place] * 3, color=color, linewidth=1.0, alpha=0.5)
                for one, marker, fill in zip(aucs, "os|", (color, LIGHT.background, color), strict=True):
                    axes.plot(one.mean, place, marker, color=color, markerfacecolor=fill, markersize=8, markeredgewidth=1.6)
            axes.axvline(0.5, color=LIGHT.text, linewidth=0.9, linestyle=":")
            axes.set_yticks(range(len(rows)), rows)
            axes.set_ylim(len(rows) - 0.5, -0.5)
        figure.supxlabel("held-out AUC on the recipe's own examples", fontsize=10)

    words = ". ".join(f"{title}: " + "; ".join(f"{reward} {a.mean:.3f}, features alone {b.mean:.3f}, without them {c.mean:.3f}"
                                               for reward, (a, b, c) in rows.items()) for title, rows in found.items())
    return render("probes", f"AUC of rewards and of surface features. {words}.",
                  "Filled circle: the reward. Square: a linear probe on surface features alone. Bar: the reward without what the features "
                  "explain of it. Means over seeds; the table has the rest.", 0.4 + 1.9 * -(-len(found) // 2), draw)


def disagreement(study: Study) -> Drawn | None:
    """Golden and the members' disagreement while policies are trained against an ensemble."""
    rows = {role: [row for record in study.records.get(plan.BASE, {}).values()
                   if (row := ((record["analyses"] or {}).get("disagreement") or {}).get(role)) and row.get("std")]
            for role in ("policy/ensemble", "policy/ensemble_far")}
    rows = {role: of for role, of in rows.items() if of and len(of[0]["step"]) > 1}
    if not rows:
        return None
    panels = []
    for key, title in (("golden", "golden"), ("std", "members' standard deviation (nats)")):
        found = {role: in_blocks(of, key) for role, of in rows.items()}
        panels.append((title, [line for role, (steps, _, effects) in found.items() for line in role_lines({role: effects}, steps)]))
    for _, lines in panels:
        lines[-1:] = [lines[-1]._replace(dashed=len(rows) > 1)]

    def draw(figure):
        planes = grid(figure, 2)
        for axes, (title, lines) in zip(planes, panels, strict=True):
            axes.set_title(title, loc="left")
            draw_lines(axes, lines)
            axes.set_xlabel("optimizer step")
        finish(figure, planes)

    words = ". ".join(f"{title}, at the end: {told(lines)}" for title, lines in panels)
    return render(f"disagreement-{study.name}", f"Golden and an ensemble's disagreement over training. {words}.",
                  "Policies trained against an ensemble; points are the kept batches of a sixth of the steps, on training prompts. "
                  f"{BANDS}.", 3.0, draw)
