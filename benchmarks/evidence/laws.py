"""Whether best-of-N, and which recipe leads it, turns on the law that samples are drawn by: an experiment beside its twin at top-p 0.95."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

from benchmarks.evidence import plan
from benchmarks.evidence.claims import Figure, N, marked
from benchmarks.evidence.effects import Effect, Study, contrast, difference, win
from irl_jax.config import LEARNT

TWIN = "_top_p"  # behind an experiment's name


def twins(studies: Mapping[str, Study]) -> list[tuple[Study, Study]]:
    """(at temperature 1, at top-p 0.95) of the experiments that have records of both."""
    return [(study, studies[name + TWIN]) for name, study in studies.items() if name + TWIN in studies]


def change(of: Figure, plain: Study, other: Study) -> Effect | None:
    """An effect at top-p 0.95 less that at temperature 1, by the seeds that both have; their samples are independent."""
    return contrast(of, other.records.get(plan.BASE, {}), plain.records.get(plan.BASE, {}))


def sentences(studies: Mapping[str, Study]) -> list[str]:
    """Whose lead over whom changes with the law, of how many, and what it is then; an experiment a sentence."""
    said = []
    for plain, other in twins(studies):
        leads = {(one, two): difference(win(one, N), win(two, N)) for one, two in itertools.combinations(LEARNT, 2)}
        found = {names: each for names, lead in leads.items() if (each := change(lead, plain, other))}
        apart = [f"`{one}` over `{two}` by {each.text()}, to {other.effect(leads[one, two]).mean:+.3f}"
                 for (one, two), each in found.items() if each.low > 0 or each.high < 0]
        if found:
            changed = f"changes {len(apart)} of {len(found)} leads of one learnt reward over another: that of " + "; of ".join(apart)
            which = marked(next(iter(found.values())), changed if apart else
                           "could not be shown to change any lead of one learnt reward over another")
            said.append(f"{plain.planned.title}: sampling at top-p 0.95 instead of temperature 1 {which}.")
    return said
