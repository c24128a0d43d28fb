"""Reads what `evaluate` writes for the report and other views: results.json, and the report's material."""

from __future__ import annotations

from irl_jax import artifacts, paths
from irl_jax.errors import UserError

BEST = "the best of sft"  # over its temperatures, by golden: the strongest baseline without a reward
_POINT = {"n!": int, "golden": float, "win_rate": float}
RESULTS = {  # shape of results.json, except plain numbers of a row (see `artifacts.read_json`)
    "golden": {},
    "policies!": {"*": {"rewards": {}}},
    "baseline": str,
    "robust": {"terms": [{"reward!": str, "weight!": float}], "temperature": float, "reasons": [str], "directions": {"*": {}}},
    "rewards!": {"*": {"best_of_n": [_POINT], "best_of_n_at": {"*": [_POINT]}, "tilting": [{}], "members": [{}],
                       "best_of_agreed": {}, "auc_minus_log_ratio": {}}},
    "paired": [{"name!": str}],
    "divergences": {"*": {}},
    "timing": {"*": {}},
}
_MATERIAL = {
    "histograms!": {"*": {"*": {"counts!": [float], "edges!": [float]}}},
    "scatter!": {"*": {"length!": [float], "reward!": [float], "golden": [float]}},
    "samples": [{"responses": [{"rewards": {}}]}],
    "over_training": {"*": {"step!": [], "*": []}},
}


def read(workdir) -> dict:
    """results.json of a workdir. Null rows become empty ones.

    Raises:
      UserError: it is missing, or not as `evaluate` writes it.
    """
    found = artifacts.read_json(paths.of(workdir) / "results.json", RESULTS)
    return found | {part: {name: row or {} for name, row in found[part].items()}
                    for part in ("policies", "rewards", "divergences", "timing") if found.get(part)}


def material(workdir) -> dict:
    """evaluate/report.json of a workdir: histograms, scatter, samples side by side, over_training.

    Raises:
      UserError: it is missing, or not as `evaluate` writes it.
    """
    path = paths.of(workdir) / "evaluate" / "report.json"
    found = artifacts.read_json(path, _MATERIAL)
    for part in ("scatter", "over_training"):
        for name, columns in (found.get(part) or {}).items():
            if len({len(column) for column in (columns or {}).values() if column is not None}) > 1:
                raise UserError(f"{path}: the lists of {part}.{name} must be of one length; {artifacts.REMAKE}")
    for name, sources in found["histograms"].items():
        if any(bins and len(bins["edges"]) != len(bins["counts"]) + 1 for bins in (sources or {}).values()):
            raise UserError(f"{path}: histograms.{name} must have one edge more than counts; {artifacts.REMAKE}")
    return found
