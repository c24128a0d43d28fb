"""What foretells, over the learnt rewards of all runs, how much best-of-N by a reward gains, and a policy trained on it.

A point is a learnt reward of one run (experiment, cell, seed): what is known of it, and what it gained: the win rate of best-of-`N` by it
less one half, or golden of the policy trained on it less that of sft.
The figure for a quantity is Spearman's rank correlation over the points, "between runs and rewards"; and after each run's mean is taken
from both, "among the rewards of a run", which is what helps to choose between them. 95% intervals are 1.96 standard errors of a jackknife
that leaves out one run at a time. The runs of one experiment share a world, and most runs are the testbed's: a description of what was
seen here, looked for after the fact, and no test.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

from benchmarks.evidence import clustered
from benchmarks.evidence.claims import absolute
from benchmarks.evidence.drawing import Drawn, grid, render
from benchmarks.evidence.effects import NORMAL, Effect, Study, number, paired, win
from irl_jax.config import LEARNT
from irl_jax.stages.plot_style import LIGHT

N = 16  # of best-of-N: every run has it
AUC, ALONE = "held-out AUC", "AUC of surface features alone"
SURFACE = "share of the reward within prompts that surface features explain (R²)"
SAMPLED = f"golden of best-of-{N}, less sft's"
_MARKERS = "osDv^P"  # of experiments


def _quantities(reward: str) -> dict:
    """{quantity: its figure in a record}, in the order shown."""
    results, probe = ("results", "rewards", reward), ("analyses", "probes", reward)
    return {AUC: number(*results, "heldout_auc"),
            "that AUC without what surface features explain of it": number(*probe, "residual_auc"),
            ALONE: number(*probe, "features_auc"),
            SURFACE: number(*probe, "on_sft", "r2"),
            "rank correlation with length, absolute": absolute(number(*results, "spearman_length")),
            "accuracy on held-out labelled pairs": number(*results, "pair_accuracy"),
            "rank correlation with golden": number(*results, "spearman_golden")}


class Point(NamedTuple):
    """run: (experiment, cell, seed). reward: its recipe. gain: what it gained. known: {quantity: value}, those there are."""

    run: tuple[str, str, int]
    reward: str
    gain: float
    known: Mapping[str, float]


def points(studies: Mapping[str, Study]) -> list[Point]:
    """Every learnt reward of every run with a judge, and the gain of best-of-N by it."""
    return _points(studies, lambda reward: win(reward, N), _quantities)


def policies(studies: Mapping[str, Study]) -> list[Point]:
    """Every learnt reward that a policy was trained on, and the gain of that policy."""
    return _points(studies, lambda reward: paired(f"policy/{reward} - sft"),
                   lambda reward: {SAMPLED: paired(f"best-of-{N} by {reward} - sft")})


def _points(studies: Mapping[str, Study], gain_of, known_of) -> list[Point]:
    found = []
    for name, study in studies.items():
        for cell, of in study.records.items():
            for seed, record in of.items():
                for reward in LEARNT:
                    if (gain := gain_of(reward)(record)) is not None:
                        values = {key: figure(record) for key, figure in known_of(reward).items()}
                        found.append(Point((name, cell, seed), reward, gain[0], {key: one[0] for key, one in values.items() if one}))
    return found


def correlation(among: Sequence[Point], key: str, within: bool) -> Effect | None:
    """The module's correlation of one quantity with the gain; None with fewer than three runs, or where one of both never varies."""
    among = [point for point in among if key in point.known]
    if within:  # a run's only reward has none to be compared with
        counted = Counter(point.run for point in among)
        among = [point for point in among if counted[point.run] > 1]
    runs = {run: index for index, run in enumerate(dict.fromkeys(point.run for point in among))}
    if len(runs) < 3:
        return None
    groups = np.array([runs[point.run] for point in among])
    pairs = np.array([(point.known[key], point.gain) for point in among])
    if within:
        pairs = pairs - np.stack([np.bincount(groups, column) / np.bincount(groups) for column in pairs.T], -1)[groups]

    def rank(kept):
        return [stats.spearmanr(*pairs[kept].T).statistic if np.ptp(pairs[kept], axis=0).min() > 0 else math.nan]

    value, half = rank(np.ones(len(groups), bool))[0], NORMAL * clustered.jackknife(rank, groups)[0]
    return None if math.isnan(value + half) else Effect(value, max(value - half, -1.0), min(value + half, 1.0), math.nan, len(runs))


def correlations(among: Sequence[Point]) -> list[tuple[str, int, Effect | None, Effect | None]]:
    """(quantity, points that have it, between runs and rewards, among the rewards of a run)."""
    return [(key, sum(key in point.known for point in among), correlation(among, key, False), correlation(among, key, True))
            for key in _quantities(LEARNT[0])]


def draw(studies: Mapping[str, Study]) -> Drawn | None:
    """Every point: what best-of-N gained against the AUC and against what surface features explain, and policies against best-of-N."""
    sampled, trained = points(studies), policies(studies)
    panels = [(key, label, among, one)
              for key, label, among in ((AUC, f"win rate of best-of-{N} over sft, less ½", sampled), (SURFACE, "", sampled),
                                        (SAMPLED, "golden of the policy, less sft's", trained))
              if (one := correlation(among, key, False))]
    if not panels:
        return None
    markers = dict(zip(dict.fromkeys(point.run[0] for point in sampled), _MARKERS, strict=False))

    def on(figure):
        planes = grid(figure, len(panels))
        for axes, (key, label, among, one) in zip(planes, panels, strict=True):
            axes.set_title(f"rank correlation {one.text(2)}", loc="left")
            axes.set_xlabel(key.replace(" that surface", "\nthat surface"))
            axes.set_ylabel(label)
            for point in among:
                if key in point.known:
                    axes.plot(point.known[key], point.gain, markers[point.run[0]], color=LIGHT.recipes[point.reward], markersize=5,
                              alpha=0.75, markeredgewidth=0)
            axes.axhline(0.0, color=LIGHT.text, linewidth=0.9, linestyle=":")
        for name, marker in markers.items():
            planes[0].plot([], [], marker, color=LIGHT.text, markersize=5, linestyle="none", label=studies[name].planned.title)
        for reward in dict.fromkeys(point.reward for point in sampled):
            planes[0].plot([], [], "-", color=LIGHT.recipes[reward], linewidth=3, label=reward)
        figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=8.5)

    words = "; ".join(f"{key}: {one.mean:+.2f}" for key, _, _, one in panels)
    return render("foretell", f"What best-of-{N} and policies gained against what is known of a reward. Rank correlations: {words}.",
                  "A point is a learnt reward of one run; policies were trained on some of them.", 0.9 + 3.1 * -(-len(panels) // 2), on)
