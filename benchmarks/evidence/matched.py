"""Matched pairs: what a reward makes of two responses to one prompt that are equal in one respect and differ in another.

Pairs are of sft's samples for one prompt, and no sample is in two pairs of a comparison. Standard errors are clustered by prompt.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from benchmarks.evidence import clustered, probes
from irl_jax.evaluation import metrics

TOLERANCE = 0.1  # standard deviations of golden within prompts by which the golden of a pair may differ
LEAST = 0.5  # ... by which it must differ, where it is what is compared
FEWEST = 20  # pairs that an effect is told of
NEAREST = 0.05  # share of a prompt's pairs, the nearest in the features, of which those of equal surface are taken


class Pairs(NamedTuple):
    """prompt, low, high: [pairs] indices: of the prompt, and of its samples with the lower and the higher value of what is compared."""

    prompt: np.ndarray
    low: np.ndarray
    high: np.ndarray

    def difference(self, values_PxM) -> np.ndarray:
        """[pairs]: the value of `high` less that of `low`."""
        return values_PxM[self.prompt, self.high] - values_PxM[self.prompt, self.low]


def _pairs(rows: list) -> Pairs:
    return Pairs(*(np.concatenate([np.asarray(row[i], int) for row in rows]) if rows else np.zeros(0, int) for i in range(3)))


def of_equal_golden(golden_PxM, feature_PxM, tolerance: float) -> Pairs:
    """Pairs whose golden differs by `tolerance` at most and whose feature differs.

    The samples of a prompt are cut, by rising golden, into strata no wider than the tolerance; in each, the least of the feature goes
    with the most of it, the second least with the second most and so on, and pairs of the same value are dropped.
    """
    rows = []
    for prompt, (golden, feature) in enumerate(zip(golden_PxM, feature_PxM, strict=True)):
        order = np.argsort(golden, kind="stable")
        while len(order):
            inside = int(np.searchsorted(golden[order], golden[order[0]] + tolerance + 1e-12, side="right"))
            ranked = order[:inside][np.argsort(feature[order[:inside]], kind="stable")]
            low, high = ranked[: inside // 2], ranked[::-1][: inside // 2]
            differs = feature[high] > feature[low]
            rows.append((np.full(int(differs.sum()), prompt), low[differs], high[differs]))
            order = order[inside:]
    return _pairs(rows)


def of_equal_surface(features_FxPxM, golden_PxM, least: float) -> tuple[Pairs, float]:
    """Pairs whose features are nearly the same and whose golden differs by `least` or more; and the largest distance allowed.

    Distance is Euclidean over the features, each in standard deviations; the largest allowed is the quantile `NEAREST` of all
    distances within prompts. Nearest first, a pair is taken where neither sample is in one already.
    """
    upper = np.triu_indices(golden_PxM.shape[1], 1)
    distances = np.array([np.sqrt(np.square(points[:, upper[0]] - points[:, upper[1]]).sum(0))
                          for points in np.swapaxes(features_FxPxM, 0, 1)])
    largest = float(np.quantile(distances, NEAREST))
    rows = []
    for prompt, golden in enumerate(golden_PxM):
        gap = golden[upper[1]] - golden[upper[0]]
        near = np.flatnonzero((distances[prompt] <= largest) & (np.abs(gap) >= least))
        taken: set[int] = set()
        for i in near[np.argsort(distances[prompt][near], kind="stable")]:
            ends = upper[0][i], upper[1][i]
            if not taken & set(ends):
                taken |= set(ends)
                rows.append(([prompt], *([end] for end in (ends if gap[i] > 0 else ends[::-1]))))
    return _pairs(rows), largest


def effect(reward_PxM, pairs: Pairs, others: dict[str, np.ndarray]) -> dict:
    """How much higher a reward is in `high` than in `low`, in the reward's standard deviations within prompts.

    Args:
      reward_PxM: the reward. others: {name: [P, M]} of what ought to be equal in a pair, and may not quite be.

    Returns:
      "difference": the mean over pairs; "adjusted": the same where nothing else differs, the intercept of a regression of the pairs'
      differences on those of the others; each with "_stderr", clustered ("stderr" for the first); "pairs", "prompts". Numbers are None
      where there are fewer than `FEWEST` pairs, or the reward never varies; "adjusted" also where the others outnumber the prompts.
    """
    spread, groups = clustered.within_std(reward_PxM), pairs.prompt
    out = {"difference": None, "stderr": None, "adjusted": None, "adjusted_stderr": None, "pairs": len(groups),
           "prompts": len(np.unique(groups))}
    if len(groups) < FEWEST or spread <= 1e-12:
        return out
    difference = pairs.difference(reward_PxM) / spread
    out["difference"], out["stderr"] = clustered.mean(difference, groups)
    gaps = [pairs.difference(values) for values in others.values()]
    columns = [gap / gap.std() for gap in gaps if gap.std() > 1e-12]
    if len(np.unique(groups)) > len(columns) + 1:
        values, errors = clustered.least_squares(np.stack([np.ones(len(difference)), *columns], 1), difference, groups)
        out |= {"adjusted": values[0], "adjusted_stderr": errors[0]}
    return metrics.jsonable(out)


def of_rewards(rewards: dict[str, np.ndarray], features: dict[str, np.ndarray], golden_PxM) -> tuple[dict, dict]:
    """Every reward's matched pairs: of equal golden for each feature, and of equal surface for golden.

    Args:
      rewards: {name: [P, M]}. features: {name: [P, M]}. golden_PxM: the golden reward.

    Returns:
      ({reward: {feature: `effect`, ..., "golden": `effect`}}, what a pair is: {"golden_tolerance", "golden_least", in golden's own unit,
      "surface_distance" in standard deviations, "feature_difference": {feature, or "golden": its mean difference over pairs, raw}}).
    """
    spread = clustered.within_std(golden_PxM)
    found = {name: of_equal_golden(golden_PxM, values, TOLERANCE * spread) for name, values in features.items()}
    names, design = probes.standardised({name: values - values.mean(1, keepdims=True) for name, values in features.items()})
    by_surface, largest = of_equal_surface(design.T.reshape(len(names), *golden_PxM.shape), golden_PxM, LEAST * spread)
    out = {}
    for reward, values in rewards.items():
        out[reward] = {name: effect(values, pairs, {**{o: f for o, f in features.items() if o != name}, "golden": golden_PxM})
                       for name, pairs in found.items()}
        out[reward]["golden"] = effect(values, by_surface, features)
    sizes = {name: clustered.mean(pairs.difference(features[name]), pairs.prompt)[0] for name, pairs in found.items()}
    sizes["golden"] = clustered.mean(by_surface.difference(golden_PxM), by_surface.prompt)[0]
    return out, metrics.jsonable({"golden_tolerance": TOLERANCE * spread, "golden_least": LEAST * spread, "surface_distance": largest,
                                  "feature_difference": sizes})
