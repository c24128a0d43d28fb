"""The tables of docs/evidence.md, in Markdown; each is "" where no record has what it shows."""

from __future__ import annotations

import math
from collections.abc import Mapping

from benchmarks.evidence import claims, foretell, laws, plan, shortcut
from benchmarks.evidence.drawing import RECIPES
from benchmarks.evidence.effects import Effect, Study, golden_of, number, paired, win
from benchmarks.evidence.figures import COMPARED
from irl_jax.config import LEARNT
from irl_jax.stages import run_tables
from irl_jax.stages.run_tables import markdown

DASH = "–"
BEATEN = {"length": "length, longer or shorter as the training pairs prefer", "bag_of_words": "bag of words"}
BASELINES = {"chance": "chance", **BEATEN}  # of benchmarks/evidence/hh.py; the control `length` takes the longer one


def _cell(one: Effect | None, offset: float = 0.0, digits: int = 3) -> str:
    """mean ± half the interval, by whichever records there are."""
    if one is None:
        return DASH
    return f"{one.mean + offset:.{digits}f}" + ("" if math.isnan(one.high) else f" ± {one.high - one.mean:.{digits}f}")


def _tables(head, rows) -> str:
    return markdown(head, rows) if rows else ""


def state(studies: Mapping[str, Study]) -> str:
    """What was run: cells, seeds, commits, cores and hours."""
    rows = []
    for name, experiment in plan.EXPERIMENTS.items():
        study = studies.get(name)
        records = [record for of in (study.records if study else {}).values() for record in of.values()]
        commits = ", ".join(sorted({f"`{str(record.get('commit'))[:10]}`" for record in records})) or DASH
        cores = ", ".join(sorted({str(record.get("cores") or DASH) for record in records})) or DASH
        hours = sum(sum(record["seconds"].values()) for record in records) / 3600
        planned = len(experiment.of(name))
        rows.append([f"`{name}`", experiment.title, experiment.golden, f"{planned - len(study.missing()) if study else 0} of {planned}",
                     commits, cores, f"{hours:.2f}" if records else DASH])
    return markdown(["experiment", "", "golden", "cells and seeds", "commit", "cores", "hours"], rows)


def seconds(studies: Mapping[str, Study]) -> str:
    """Mean seconds of a cell, stage by stage."""
    rows = []
    for name, study in studies.items():
        for cell, of in study.records.items():
            stages = [record["seconds"] for record in of.values()]
            total = sum(sum(each.values()) for each in stages) / len(stages)
            longest = sorted({stage for each in stages for stage in each}, key=lambda s: -sum(each.get(s, 0) for each in stages))[:4]
            parts = ", ".join(f"{stage} {sum(each.get(stage, 0) for each in stages) / len(stages):.0f}" for stage in longest)
            rows.append([f"`{name}/{cell}`", str(len(stages)), f"{total:.0f}", parts])
    return _tables(["cell", "seeds", "seconds, mean", "of which most"], rows)


def claim_table(tested: Mapping[str, claims.Tested]) -> str:
    """A row for each claim and experiment."""
    rows = []
    for found in tested.values():
        claim = found.claim
        first = [claim.says, claim.whose, claim.test]
        if not found.base:
            rows.append([*first, DASH, DASH, DASH, DASH, claims.UNTESTED])
        for index, (name, one) in enumerate(found.base.items()):
            prompts = DASH if math.isnan(one.over_prompts) else f"± {one.over_prompts:.3f}"
            overall = f"**{found.verdict}**" if index == 0 else ""
            rows.append([*(first if index == 0 else ["", "", ""]), f"`{name}`", one.text(), prompts,
                         claims.marked(one, claims.verdict(one, claim.margin)), overall])
    return markdown(["claim", "whose", "our test", "where", "effect, 95% over seeds and prompts", "over prompts alone", "there", "verdict"],
                    rows)


SIGNS = {claims.HOLDS: "+", claims.FAILS: "−", claims.UNKNOWN: "·"}
SIGNS_SAID = "+ holds, − does not hold, · cannot tell; in brackets what one seed says."


def levels(tested: Mapping[str, claims.Tested]) -> str:
    """The verdicts at each level of the factors, as SIGNS, of the claims that are tested at more than one."""
    moved = [found for found in tested.values() if any(len(of) > 1 for of in found.levels.values())]
    columns = dict.fromkeys((name, level) for found in moved for name, of in found.levels.items() if len(of) > 1 for level in of)
    rows = [[found.claim.says, *(_sign(found.levels[name].get(level), found.claim.margin) for name, level in columns)] for found in moved]
    return _tables(["claim", *(f"{name} {level:g}" for name, level in columns)], rows)


def _sign(found: Effect | None, margin: float) -> str:
    if found is None:
        return ""
    sign = SIGNS[claims.verdict(found, margin)]
    return f"({sign})" if found.seeds == 1 else sign


def factors(study: Study) -> str:
    """Golden of sft, and what best-of-16 and the trained policies gain over it, at each level of each factor."""
    columns = {"sft's golden": golden_of("sft"),
               **{f"`{reward}`": paired(f"best-of-16 by {reward} - sft") for reward in RECIPES},
               **{f"`{role}`": paired(f"{role} - sft") for role in COMPARED}}
    rows = []
    for name, factor in study.planned.factors.items():
        for level, cell in factor.cells.items():
            if cell in study.records:
                rows.append([name, f"{level:g}", *(_cell(study.effect(of, cell)) for of in columns.values())])
    return _tables(["factor", "level", *columns], rows)


def foretold(studies: Mapping[str, Study]) -> str:
    """What is known of a reward beside what best-of-N by it gains: rank correlations over all runs' rewards."""
    rows = [[key, str(count), *(DASH if one is None else one.text(2) for one in both)]
            for key, count, *both in foretell.correlations(foretell.points(studies)) if any(both)]
    return _tables(["of a reward", "rewards", "between runs and rewards", "among the rewards of a run"], rows)


def beside_paper(studies: Mapping[str, Study]) -> str:
    """Win rates of best-of-N, the paper's and ours."""
    ours = {name: study for name, study in studies.items() if study.effect(win("init_sft", claims.PAPER_NS[0]))}
    rows = []
    for reward in RECIPES:
        for place, n in enumerate(claims.PAPER_NS):
            cells = []
            for title, recipes in claims.PAPER.items():
                low_high = claims.PAPER_RANGES.get(title, {}).get(reward)
                cells.append(f"{recipes[reward][place]:g}" if reward in recipes else
                             f"{low_high[0]:g} to {low_high[1]:g}" if low_high else DASH)
            found = [study.effect(win(reward, n)) for study in ours.values()]
            if any(found):
                rows.append([f"`{reward}`" if place == 0 else "", str(n), *cells, *(_cell(one, 0.5) for one in found)])
    return _tables(["reward", "N", *(f"the paper, {title}" for title in claims.PAPER), *(f"`{name}`" for name in ours)], rows)


def sampling_laws(studies: Mapping[str, Study]) -> str:
    """Win rates of best-of-N at temperature 1 and at top-p 0.95, and their difference."""
    rows = []
    for plain, other in laws.twins(studies):
        for reward in RECIPES:
            of = win(reward, claims.N)
            if change := laws.change(of, plain, other):
                rows.append([f"`{plain.name}`", f"`{reward}`", _cell(plain.effect(of), 0.5), _cell(other.effect(of), 0.5),
                             claims.marked(change, change.text())])
    return _tables(["experiment", "reward", "temperature 1", "top-p 0.95", "change, by the seeds of both"], rows)


def rewards(study: Study) -> str:
    """AUCs, rank correlations and best-of-16 of every reward, learnt ones and controls."""
    return run_tables.rewards(_groups(study)).markdown()


def policies(study: Study) -> str:
    """Golden, its difference to sft, KL, length and what the learnt rewards say, of every policy."""
    roles = study.names("results", "policies")
    judged = [reward for reward in LEARNT if any(study.effect(number("analyses", "judged_by", role, reward)) for role in roles)]
    rows = []
    for role in roles:
        golden = study.effect(golden_of(role))
        if golden is None:
            continue
        less = study.effect(paired(f"{role} - sft"))
        kl = study.effect(number("results", "policies", role, "kl_to_sft", stderr="kl_to_sft_stderr"))
        length = study.effect(number("results", "policies", role, "length_mean"))
        said = [study.effect(number("analyses", "judged_by", role, reward)) for reward in judged]
        rows.append([f"`{role}`", _cell(golden), less.text() if less else DASH, _cell(kl, digits=2), f"{length.mean:.1f}",
                     *(DASH if one is None else f"{one.mean:+.2f}" for one in said)])
    return _tables(["policy", "golden", "less sft's, on the same prompts", "KL to sft, nats", "tokens",
                    *(f"judged by `{reward}`" for reward in judged)], rows)


def probes(study: Study) -> str:
    """AUCs with and without surface features, and what the features are worth among the samples of one prompt, to rewards and golden."""
    rows = []
    for name in study.names("analyses", "probes"):
        own = [study.effect(number("analyses", "probes", name, key, stderr=f"{key}_stderr"))
               for key in ("auc", "features_auc", "residual_auc", "explained")]
        rows.append([f"`{name}`", *map(_cell, own), *_within(study, "probes", name, "on_sft")])
    if rows:
        rows.append(["`golden`", *[DASH] * 4, *_within(study, "golden_probe")])
    return _tables(["reward", "AUC", "features alone", "reward without features", "share explained", "R² within prompts",
                    "largest coefficients there"], rows)


def _within(study: Study, *keys: str, most: int = 3) -> list[str]:
    """R² and the features with the largest standardised coefficients among the samples of one prompt, means over seeds."""
    largest = study.by_size("analyses", *keys, "coefficients")[:most]
    listed = ", ".join(f"{shortcut.said(name)} {one.mean:+.2f}" for name, one in largest)
    return [_cell(study.effect(number("analyses", *keys, "r2", stderr="r2_stderr"))), listed or DASH]


def matched_pairs(study: Study) -> str:
    """What a reward pays for each feature where golden is the same, and for golden where the features are."""
    found = {reward: {feature: study.effect(number("analyses", "matched_pairs", reward, feature, "difference", stderr="stderr"))
                      for feature in features}
             for reward in study.names("analyses", "matched_pairs") if (features := study.names("analyses", "matched_pairs", reward))}
    columns = list(dict.fromkeys(feature for of in found.values() for feature in of))
    rows = [[f"`{reward}`", *(_cell(of.get(name), digits=2) for name in columns)] for reward, of in found.items()]
    return _tables(["reward", *columns], rows)


def preferences(study: Study) -> str:
    """Agreement with held-out human preferences, of baselines, rewards and controls; of learnt rewards also less the baselines'."""
    found = {title: (study.effect(number("analyses", "baselines", name, "accuracy", stderr="stderr")), [])
             for name, title in BASELINES.items()}
    for name in study.names("results", "rewards"):
        less = [study.effect(number("analyses", "baselines", "rewards", name, f"less_{other}", stderr=f"less_{other}_stderr"))
                for other in BEATEN]
        found[f"`{name}`"] = (study.effect(number("results", "rewards", name, "pair_accuracy", stderr="pair_accuracy_stderr")), less)
    rows = []
    for name, (one, less) in found.items():
        if one is not None:
            above = claims.verdict(one._replace(mean=one.mean - 0.5, low=one.low - 0.5, high=one.high - 0.5), claims.MARGIN)
            said = claims.marked(one, {claims.HOLDS: "above chance", claims.FAILS: "not above chance"}.get(above, above))
            cells = [DASH if other is None else other.text() for other in less] or [DASH] * len(BEATEN)
            rows.append([name, _cell(one), said if name != "chance" else DASH, *cells])
    head = ["judge", "agreement with held-out preferences", "", *(f"less that of {name.replace('_', ' ')}" for name in BEATEN)]
    return _tables(head, rows)


def _groups(study: Study) -> dict[str, list[Mapping]]:
    return {"a": [record["results"] for record in study.records[plan.BASE].values()]}
