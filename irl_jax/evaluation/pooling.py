"""Pools a figure over several runs, with standard errors over prompts and over runs.

Run s of S has figure v_s with standard error e_s over prompts. The mean's error over prompts, sqrt(sum_s e_s^2) / S, is what the prompts
of these runs leave open. Its error over runs (seeds), std_s(v_s) / sqrt(S), includes that and everything a seed changes.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Pooled(NamedTuple):
    """mean: over runs. over_prompts, over_runs: its standard errors, NaN if unknown (no errors given; a single run)."""

    mean: float
    over_prompts: float
    over_runs: float

    @property
    def stderr(self) -> float:
        """The error over runs if there are several, else over prompts."""
        return self.over_runs if math.isfinite(self.over_runs) else self.over_prompts


def pool(values: Sequence[float | None], stderrs: Sequence[float | None] | None = None) -> Pooled | None:
    """The mean over runs with its two standard errors.

    Args:
      values: each run's figure; None (or text, or what no float holds) if a run has none.
      stderrs: each figure's standard error over prompts, or None.

    Returns:
      Pooled; None if a run lacks the figure, or there is no run.
    """
    if not len(values) or not all(map(_is_number, values)):
        return None
    runs = np.asarray(values, float)
    known = stderrs is not None and all(map(_is_number, stderrs))
    over_prompts = float(np.sqrt(np.square(np.asarray(stderrs, float)).sum()) / len(runs)) if known else math.nan
    over_runs = float(runs.std(ddof=1) / np.sqrt(len(runs))) if len(runs) > 1 else math.nan
    return Pooled(float(runs.mean()), over_prompts, over_runs)


def _is_number(value) -> bool:
    return isinstance(value, (int, float)) and abs(value) <= sys.float_info.max


def pooled(values: Sequence, stderrs: Sequence | None = None, digits: int = 3) -> str:
    """`pool` as text: "0.71 ± over prompts / over runs", with only the known errors; a dash if a run lacks the figure."""
    found = pool(values, stderrs)
    if found is None:
        return "–"
    errors = [f"{error:.{digits}f}" for error in (found.over_prompts, found.over_runs) if math.isfinite(error)]
    return f"{found.mean:.{digits}f}" + (" ± " + " / ".join(errors) if errors else "")
