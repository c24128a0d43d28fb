"""The paper's claims, our test of each, and the rule by which an interval becomes a verdict.

An effect's sign is such that positive agrees with the claim. MARGIN is what we call worth having: of a win rate, of golden, of a share.

    the whole interval above 0                -> holds
    else the whole interval below the margin  -> does not hold
    else                                      -> cannot tell

Where the decided verdicts of experiments, or of a factor's levels, differ, the claim "depends on" what they differ in. What one seed
says is marked and decides nothing: its interval over prompts leaves out how the same training would end with other data and draws.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from benchmarks.evidence import plan
from benchmarks.evidence.effects import Effect, Study, Value, difference, number, paired, scaled, win

MARGIN = 0.02
N = 30  # of the tests that need one N: among the paper's 5, 10, 30 and 50, where it gains most
HOLDS, FAILS, UNKNOWN, UNTESTED = "holds", "does not hold", "cannot tell", "not measured"
PAPER_NS = (5, 10, 30, 50)
PAPER = {  # win rate of best-of-N over sft, from the paper's figures
    "Harmless": {"init_sft": (0.72, 0.75, 0.82, 0.81), "preference": (0.68, 0.71, 0.74, 0.735), "init_demo": (0.40, 0.31, 0.235, 0.195),
                 "sft_demo": (0.345, 0.285, 0.225, 0.17)},
    "Helpful": {"init_sft": (0.565, 0.575, 0.645, 0.63), "preference": (0.61, 0.655, 0.665, 0.65)},
}
PAPER_RANGES = {"Helpful": {"init_demo": (0.55, 0.60), "sft_demo": (0.52, 0.595)}}  # over the four N

Figure = Callable[[Mapping], Value | None]


class Claim(NamedTuple):
    """key: for the advice. says: the claim. whose: "the paper" or "this page". test: ours, in words, positive where it agrees.

    of: the effect in one record. cells: (one, other): the effect is that in cell `one` less that in `other`. margin: of the verdict.
    """

    key: str
    says: str
    whose: str
    test: str
    of: Figure
    cells: tuple[str, str] | None = None
    margin: float = MARGIN

    def effect(self, study: Study, cell: str = plan.BASE) -> Effect | None:
        """The claim's effect in a study's cell (a claim about two cells has one effect, whatever the cell)."""
        return study.contrast(self.of, *self.cells) if self.cells else study.effect(self.of, cell)


def verdict(found: Effect | None, margin: float) -> str:
    """The module's rule, whatever the number of seeds."""
    if found is None:
        return UNTESTED
    if found.low > 0:
        return HOLDS
    return FAILS if found.high < margin else UNKNOWN


def decided(found: Effect | None, margin: float) -> str:
    """The verdict that counts: one seed decides nothing."""
    return UNKNOWN if found is not None and found.seeds == 1 else verdict(found, margin)


def marked(found: Effect, said: str) -> str:
    """What an effect says, with a mark where no other seed has confirmed it."""
    return said + " (one seed)" * (found.seeds == 1)


def first(*figures: Figure) -> Figure:
    """The first of several figures that a record has."""
    return lambda record: next((value for value in (of(record) for of in figures) if value is not None), None)


def absolute(of: Figure) -> Figure:
    """A figure without its sign."""
    def made(record):
        value = of(record)
        return None if value is None else (abs(value[0]), value[1])

    return made


def shifted(of: Figure, by: float) -> Figure:
    """A figure plus a number."""
    def made(record):
        value = of(record)
        return None if value is None else (value[0] + by, value[1])

    return made


def late_less_early(role: str, key: str) -> Figure:
    """Mean of a quantity over the last third of positions less that over the first third, weighted by the share of responses there.

    Positions that fewer than a fifth of the responses reach are left out. No standard error: positions of one response are not independent.
    """
    def of(record):
        row = ((record["analyses"] or {}).get("shift") or {}).get(role) or {}
        values, alive = row.get(key), row.get("alive")
        if not values or not alive:
            return None
        kept = [(value, share) for value, share in zip(values, alive, strict=True) if value is not None and share >= 0.2]
        third = len(kept) // 3
        if not third:
            return None
        start, end = (np.average([v for v, _ in part], weights=[w for _, w in part]) for part in (kept[:third], kept[-third:]))
        return float(end - start), None

    return of


def foreseen(by: str) -> Figure:
    """Spearman's correlation, over training, of golden's fall and the ensemble's disagreement (by "spearman") or the KL ("by_kl")."""
    far, near = (number("analyses", "disagreement", role, "foresees", by) for role in ("policy/ensemble_far", "policy/ensemble"))
    return first(far, near)


ADVERSARIAL = first(paired("adversarial/from_sft - sft"), paired("adversarial/demo - sft"))
CLAIMS = (
    Claim("best_of_n", "Best-of-N by `init_sft` beats sft", "the paper", f"win rate of best-of-{N} less 1/2", win("init_sft", N)),
    Claim("grows", "and gains on from N = 5 to 30", "the paper", "win rate at 30 less that at 5",
          difference(win("init_sft", 30), win("init_sft", 5))),
    Claim("over_preference", "`init_sft` beats a reward of human preferences (Harmless)", "the paper",
          f"win rate at {N}, `init_sft` less `preference`", difference(win("init_sft", N), win("preference", N))),
    Claim("init_demo_below", "Best-of-N by `init_demo` falls below one half (Harmless)", "the paper", f"1/2 less win rate at {N}",
          scaled(win("init_demo", N), -1.0)),
    Claim("sft_demo_below", "and by `sft_demo` (Harmless)", "the paper", f"1/2 less win rate at {N}", scaled(win("sft_demo", N), -1.0)),
    Claim("over_init_demo", "`init_sft` beats `init_demo`", "the paper", f"win rate at {N}, `init_sft` less `init_demo`",
          difference(win("init_sft", N), win("init_demo", N))),
    Claim("over_sft_demo", "`init_sft` beats `sft_demo`", "the paper", f"win rate at {N}, `init_sft` less `sft_demo`",
          difference(win("init_sft", N), win("sft_demo", N))),
    Claim("heterogeneity", "because demonstrations are heterogeneous to the model's own text", "the paper",
          "the lead over `init_demo` at dialect strength 1 less that at 0", difference(win("init_sft", N), win("init_demo", N)),
          ("dialect-1", "dialect-0")),
    Claim("surface", "`init_sft` leans less on surface features than `init_demo`", "the paper",
          "share of the AUC explained by them, `init_demo` less `init_sft`",
          difference(number("analyses", "probes", "init_demo", "explained", stderr="explained_stderr"),
                     number("analyses", "probes", "init_sft", "explained", stderr="explained_stderr"))),
    Claim("less_length", "and less on length", "the paper", "absolute rank correlation with length, `init_demo` less `init_sft`",
          difference(absolute(number("results", "rewards", "init_demo", "spearman_length", stderr="spearman_length_stderr")),
                     absolute(number("results", "rewards", "init_sft", "spearman_length", stderr="spearman_length_stderr")))),
    Claim("over_length", "`init_sft` is more than length", "this page", f"win rate at {N}, `init_sft` less `length`",
          difference(win("init_sft", N), win("length", N))),
    Claim("closed_form", "What `init_sft` estimates, log sft - log init, does as well without training", "this page",
          f"win rate at {N}, `log_ratio` less `init_sft`, plus {MARGIN}",
          shifted(difference(win("log_ratio", N), win("init_sft", N)), MARGIN)),
    Claim("compounding", "Errors of sft compound along the response", "the paper",
          "fall of the demonstrator's log-prob a token from first to last third of positions: sft's samples less the demonstrator's own",
          difference(scaled(late_less_early("sft", "demo_log_prob"), -1.0), scaled(late_less_early("demo", "demo_log_prob"), -1.0))),
    Claim("less_compounding", "and a policy trained by the reward suffers less", "the paper", "the same fall, sft less `policy/init_sft`",
          difference(scaled(late_less_early("sft", "demo_log_prob"), -1.0),
                     scaled(late_less_early("policy/init_sft", "demo_log_prob"), -1.0))),
    Claim("policy", "A policy trained by `init_sft` goes beyond sft", "the paper", "golden, `policy/init_sft` less sft",
          paired("policy/init_sft - sft")),
    Claim("adversarial", "Adversarial training goes beyond sft", "the paper", "golden, the adversarial loop from sft less sft",
          ADVERSARIAL),
    Claim("few_demonstrations", "and gains most with few demonstrations", "the paper", "that gain with 50 demonstrations less with 5,000",
          ADVERSARIAL, ("demonstrations-50", "demonstrations-5000")),
    Claim("over_policy", "A refreshed reward beats one fixed once", "the paper", "golden, the adversarial loop less `policy/init_sft`",
          first(paired("adversarial/from_sft - policy/init_sft"), paired("adversarial/demo - policy/init_sft"))),
    Claim("over_optimised", "A reward fixed once is over-optimised in the end", "this page",
          "golden, sft less the policy trained longest on `init_sft`",
          scaled(first(paired("policy/far - sft"), paired("policy/init_sft - sft")), -1.0)),
    Claim("foresees", "which an ensemble's disagreement foresees", "this page",
          "rank correlation of disagreement and golden's fall over training", foreseen("spearman")),
    Claim("beyond_kl", "better than the KL does", "this page", "that correlation less that of the KL and golden's fall",
          difference(foreseen("spearman"), foreseen("by_kl"))),
    Claim("dpo", "DPO on sft's over init's samples goes beyond sft", "this page", "golden, `dpo/init_sft` less sft",
          paired("dpo/init_sft - sft")),
    Claim("spin", "Self-play (SPIN) goes beyond sft", "this page", "golden, `spin/demo` less sft", paired("spin/demo - sft")),
    Claim("rejection", "Rejection fine-tuning by `init_sft` goes beyond sft", "this page", "golden, `rejection/init_sft` less sft",
          paired("rejection/init_sft - sft")),
)


class Tested(NamedTuple):
    """A claim with what was found. base: {experiment: effect}. levels: {factor: {level: effect}}, of the testbed."""

    claim: Claim
    base: Mapping[str, Effect]
    levels: Mapping[str, Mapping[float, Effect]]

    @property
    def verdict(self) -> str:
        """The verdict over everything that was measured with more than one seed."""
        said = {name: decided(one, self.claim.margin) for name, one in self.base.items()}
        clear = {of for of in said.values() if of in (HOLDS, FAILS)}
        turning = [name for name, of in self.levels.items()
                   if {HOLDS, FAILS} <= {decided(one, self.claim.margin) for one in of.values()}]
        if len(clear) == 2:
            groups = "; ".join(f"{of} on {', '.join(name for name, one in said.items() if one == of)}" for of in (HOLDS, FAILS))
            return f"depends on the data ({groups})" + (f" and on {', '.join(turning)}" if turning else "")
        if turning:
            return f"depends on {', '.join(turning)}"
        return clear.pop() if clear else UNKNOWN if said else UNTESTED


def test(claim: Claim, studies: Mapping[str, Study]) -> Tested:
    """The claim's effects and verdicts over all experiments and, within each factor, over its levels."""
    base = {name: found for name, study in studies.items() if (found := claim.effect(study)) is not None}
    levels: dict[str, dict[float, Effect]] = {}
    for study in studies.values() if not claim.cells else ():
        for name, factor in study.planned.factors.items():
            levels[name] = {level: found for level, cell in factor.cells.items() if (found := claim.effect(study, cell)) is not None}
    return Tested(claim, base, levels)


def test_all(studies: Mapping[str, Study]) -> dict[str, Tested]:
    """{key: Tested} of every claim, in order."""
    return {claim.key: test(claim, studies) for claim in CLAIMS}
