"""Two sides, timed in turn: the same work, the same threads, medians of the rounds' ratios."""

from __future__ import annotations

import itertools
import math
import os
import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

SHORTEST = 0.2  # seconds that a timing takes at least
PAUSE = 0.3  # seconds between sides: the threads of the one that ran last spin for a while


class Timed(NamedTuple):
    """Seconds a unit of work, one entry a round: of ours and of theirs. others: share of the machine's cores that other processes
    held meanwhile; torch's threads, which spin, suffer far more from them than XLA's."""

    ours: list[float]
    theirs: list[float]
    others: float = 0.0


class Others:
    """Measures, from its making on, the share of the machine's cores that processes other than this one and its children held."""

    def __init__(self):
        self._start = self._now()

    @staticmethod
    def _now() -> tuple[float, float, float]:
        """(seconds of all cores, of them busy, of them this process's and its ended children's)."""
        try:
            with open("/proc/stat") as file:
                user, nice, system, idle, waiting, *more = (int(n) / os.sysconf("SC_CLK_TCK") for n in file.readline().split()[1:9])
        except OSError:
            return 0.0, 0.0, 0.0
        own = os.times()
        busy = user + nice + system + sum(more)
        return busy + idle + waiting, busy, own.user + own.system + own.children_user + own.children_system

    def share(self) -> float:
        """0 to 1; 0 where the system does not say."""
        total, busy, own = (now - then for now, then in zip(self._now(), self._start, strict=True))
        return max(0.0, busy - own) / total if total > 0 else 0.0


class Budget(NamedTuple):
    """Rounds at least and at most, and the seconds after which no further round is begun."""

    least: int
    most: int
    seconds: float


def pin(threads: int) -> int:
    """Holds this process and its children on so many of its cores, and tells torch; before jax starts. Returns the number held."""
    cores = sorted(os.sched_getaffinity(0))[:threads or None]
    os.sched_setaffinity(0, cores)  # XLA makes a thread a core that it may run on
    os.environ["OMP_NUM_THREADS"] = str(len(cores))
    return len(cores)


def once(side: Callable[[], float | None]) -> float:
    """Seconds a unit of one call; a side says how many units (tokens, say) it did, None is one.

    Where the call took less than SHORTEST, as many more are timed together as take about so long, in its place.
    """
    seconds, units = _calls(side, 1)
    if seconds < SHORTEST:
        seconds, units = _calls(side, math.ceil(SHORTEST / max(seconds, 1e-6)))
    return seconds / units


def _calls(side, count: int) -> tuple[float, float]:
    """(seconds, units) of so many calls."""
    start = time.perf_counter()
    units = [side() for _ in range(count)]
    return time.perf_counter() - start, sum(1.0 if one is None else one for one in units)


def alternate(ours: Callable, theirs: Callable, budget: Budget, pause: float = PAUSE, warm: bool = True) -> Timed:
    """Runs both in rounds, once before them to warm up (unless that was done), the one that begins changing from round to round.

    Args:
        ours, theirs: each does its work, waits for it to end, and returns the units done (None: one).
        budget: rounds and seconds. pause: seconds of rest before each side.
    """
    sides, seconds = (ours, theirs), ([], [])
    for side in sides if warm else ():
        once(side)
    start, others, done = time.perf_counter(), Others(), 0
    while done < budget.least or (done < budget.most and time.perf_counter() - start < budget.seconds):
        for index in (0, 1) if done % 2 == 0 else (1, 0):
            time.sleep(pause)
            seconds[index].append(once(sides[index]))
        done += 1
    return Timed(*seconds, others.share())


def summary(timed: Timed) -> dict:
    """Medians of both sides and the median and quartiles of theirs / ours over the rounds: above 1, ours is faster."""
    ratios = np.asarray(timed.theirs) / np.asarray(timed.ours)
    low, middle, high = np.percentile(ratios, [25, 50, 75])
    return {"ours_seconds": float(np.median(timed.ours)), "theirs_seconds": float(np.median(timed.theirs)),
            "ratio": float(middle), "ratio_quartiles": [float(low), float(high)], "rounds": len(ratios),
            "others_busy": round(timed.others, 3)}


def seeded(draw: Callable, units: Callable = lambda drawn: None) -> Callable[[], float | None]:
    """A side that calls draw(seed) with a new seed each time; units(what it gave) are the units done."""
    seeds = itertools.count(101)
    return lambda: units(draw(next(seeds)))


def agree(what: str, ours, theirs, tolerance: float) -> float:
    """The largest difference of two arrays; AssertionError where it passes the tolerance (or is not a number)."""
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    assert ours.shape == theirs.shape, f"{what}: shapes {ours.shape} and {theirs.shape} differ"
    difference = float(np.abs(ours - theirs).max())
    assert difference <= tolerance, f"{what}: the two sides differ by {difference:.3g}, more than {tolerance:g}"
    return difference
