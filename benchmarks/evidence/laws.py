"""Whether best-of-N, and which recipe leads it, turns on the law that samples are drawn by: an experiment beside its twin at top-p 0.95."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping

from benchmarks.evidence import plan
from benchmarks.evidence.claims import N, marked
from benchmarks.evidence.effects import Effect, Study, Value, effect, minus, win
from irl_jax.config import LEARNT

TWIN = "_top_p"  # behind an experiment's name


def twins(studies: Mapping[str, Study]) -> list[tuple[Study, Study]]:
    """(at temperature 1, at top-p 0.95) of the experiments that have records of both."""
    return [(study, studies[name + TWIN]) for name, study in studies.items() if name + TWIN in studies]


def change(of: Callable[[Mapping], Value | None], plain: Study, other: Study) -> Effect | None:
    """An effect at top-p 0.95 less that at temperature 1, by the seeds that both have; their samples are independent."""
    records, others = (study.records.get(plan.BASE, {}) for study in (plain, other))
    both = [(of(others[seed]), of(records[seed])) for seed in sorted(set(records) & set(others))]
    return effect([minus(a, b) for a, b in both if a is not None and b is not None])


def lead(one: str, other: str) -> Callable[[Mapping], Value | None]:
    """Win rate of best-of-N by a reward less that by another, taken for independent."""
    def of(record):
        a, b = win(one, N)(record), win(other, N)(record)
        return None if a is None or b is None else minus(a, b)

    return of


def sentences(studies: Mapping[str, Study]) -> list[str]:
    """Whose lead over whom changes with the law, an experiment a sentence."""
    said = []
    for plain, other in twins(studies):
        changes = {(one, two): change(lead(one, two), plain, other) for one, two in itertools.combinations(LEARNT, 2)}
        found = {names: each for names, each in changes.items() if each}
        apart = [f"`{one}` over `{two}` by {each.text()}" for (one, two), each in found.items() if each.low > 0 or each.high < 0]
        if found:
            which = marked(next(iter(found.values())), "changes the lead of " + " and of ".join(apart) if apart else
                           "could not be shown to change any lead of one learnt reward over another")
            said.append(f"{plain.planned.title}: sampling at top-p 0.95 instead of temperature 1 {which}.")
    return said
