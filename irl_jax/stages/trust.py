"""Which reward to trust, by diagnostics that don't use a golden reward.

They can reject a reward. They can't tell if what it has learnt is quality, and the page says so.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

from irl_jax.config import CONTROLS
from irl_jax.stages.page import Cell, Raw, details, escape, named, number_table, table
from irl_jax.stages.plot_style import number

LEARNT_Z = 2.0  # standard errors by which a held-out AUC must exceed one half
LEAK_Z = 3.0  # standard errors above the exact log-ratio's AUC, which only a leak can exceed
PERFECT = 0.99  # held-out AUC above which a tell is more likely than quality
FOLLOWS_LENGTH, LEANS_ON_LENGTH = 0.5, 0.3  # rank correlation with length among the samples of a prompt
DISAGREEMENT = 1.0  # of an ensemble's members, in standard deviations of their mean among a prompt's samples
VERDICTS = {"stands": "nothing against it", "caution": "with caution", "rejected": "do not trust"}
_CONTROLS = {"log_ratio": "the closed form: the highest AUC that there can be of sft against init",
             "mean_logprob": "what sft is sure of, a token", "length": "counts tokens", "ended": "whether an EOS ended it",
             "random": "knows nothing"}
_STYLES = {"stands": "good", "caution": "mixed", "rejected": "bad"}


class Judgement(NamedTuple):
    """The diagnostics' verdict on one reward.

    verdict: a key of VERDICTS. against: reasons to reject it. cautions: reasons for care. length: its rank correlation with length; NaN
    if unknown.
    """

    name: str
    verdict: str
    against: tuple[str, ...]
    cautions: tuple[str, ...]
    length: float


def judge(results: Mapping) -> list[Judgement]:
    """Judges every learnt reward by its held-out AUC, the log-ratio's bound on it, its correlation with length and its members.

    Args:
      results: results.json. Numbers that involve the golden reward are not read.

    Returns:
      One Judgement per learnt reward, the best verdict first; among equals, the one that follows length least.
    """
    rewards = {name: row or {} for name, row in (results.get("rewards") or {}).items()}
    judged = [_judge(name, row, rewards.get("length") or {}) for name, row in rewards.items() if name not in CONTROLS]
    order = list(VERDICTS)
    return sorted(judged, key=lambda one: (order.index(one.verdict), abs(one.length) if math.isfinite(one.length) else 1.0))


def _judge(name: str, row: Mapping, length_control: Mapping) -> Judgement:
    against, cautions = [], []
    auc, stderr = number(row.get("heldout_auc")), number(row.get("heldout_auc_stderr"))
    if not math.isfinite(auc):
        cautions.append("its held-out AUC is not known")
    elif not stderr > 0:
        cautions.append("too few held-out responses for a standard error of its AUC")
    elif auc - 0.5 < LEARNT_Z * stderr:
        against.append(f"held-out AUC {auc:.2f} ± {stderr:.2f}: not above one half by {LEARNT_Z:g} standard errors, so it has learnt "
                       "nothing that shows on other prompts")
    elif auc > PERFECT:
        cautions.append(f"held-out AUC {auc:.3f}: what separates so well is likely a tell, a phrase or a format that only one side has")
    gap = row.get("auc_minus_log_ratio") or {}
    if number(gap.get("z")) > LEAK_Z:
        against.append(f"it tells sft from init better than their exact log-ratio by {number(gap['difference']):.3f} "
                       f"(z = {number(gap['z']):.1f}), which nothing can: it sees something that it should not")
    if (beside := _beside_length(row, length_control)) is not None and beside < 0:
        against.append("it tells sft from init no better than counting tokens does")
    length = number(row.get("spearman_length"))
    if abs(length) >= FOLLOWS_LENGTH:
        against.append(f"it follows length: rank correlation {length:+.2f} among samples of one prompt")
    elif abs(length) >= LEANS_ON_LENGTH:
        cautions.append(f"it leans on length: rank correlation {length:+.2f} among samples of one prompt")
    if number(row.get("disagreement")) > DISAGREEMENT:
        cautions.append(f"its members disagree by {number(row['disagreement']):.1f} deviations")
    verdict = "rejected" if against else "caution" if cautions else "stands"
    return Judgement(name, verdict, tuple(against), tuple(cautions), length)


def _beside_length(row: Mapping, control: Mapping) -> float | None:
    """AUC minus the length control's, or None if they are not of the same held-out responses."""
    own, same, length = (number(value) for value in (row.get("heldout_auc"), row.get("auc_sft_against_init"), control.get("heldout_auc")))
    return own - length if math.isfinite(own + length) and own == same else None


def section(results: Mapping) -> str:
    """HTML of the verdicts, their table and limits, and what optimising did; "" if nothing was learnt."""
    judged = judge(results)
    if not judged:
        return ""
    return (_advice(judged) + _table(results, judged) + _LIMITS + _policies(results)
            + details("What the golden reward says of them, afterwards", _afterwards(results, judged)))


def _advice(judged: list[Judgement]) -> str:
    def names(verdict):
        return ", ".join(f"<b>{named(one.name)}</b>" for one in judged if one.verdict == verdict)

    stands, caution = names("stands"), names("caution")
    if stands:
        text = f"Nothing here speaks against {stands}" + (
            "; the diagnostics cannot tell which of them is better, and name the one first that follows length least." if ", " in stands
            else ".") + (f" With caution: {caution}." if caution else "")
    elif caution:
        text = f"None without reserve. With caution: {caution}."
    else:
        text = "None of them: each has something against it."
    return f"<p>{text}</p>"


def _table(results: Mapping, judged: list[Judgement]) -> str:
    rewards = results["rewards"]
    bound = number((rewards.get("log_ratio") or {}).get("heldout_auc"))
    rows = []
    for one in judged:
        why = "; ".join((*one.against, *one.cautions)) or "has learnt something, no leak seen, does not follow length"
        verdict = Raw(f'<b class="{_STYLES[one.verdict]}">{VERDICTS[one.verdict]}</b>: {escape(why)}', "why")
        rows.append([one.name, verdict, *_numbers(rewards[one.name] or {}, bound)])
    rows += [[name, Raw(f"control: {escape(what)}", "why"), *_numbers(rewards[name], bound)]
             for name, what in _CONTROLS.items() if rewards.get(name)]
    head = ["reward", "verdict", "held-out AUC, its own task", "AUC, sft against init", "share of the log_ratio's", "less the log_ratio's",
            "Spearman with length", "accuracy on pairs (no say)"]
    return table("Diagnostics that need no golden reward; ± is one standard error over held-out prompts. The share is of the way from "
                 "one half to the AUC of the exact log-ratio, the highest that there can be of sft against init.", head, rows)


def _numbers(row: Mapping, bound: float) -> list[Cell]:
    """AUCs and their share of the bound, correlation with length, accuracy on pairs."""
    auc, gap = number(row.get("auc_sft_against_init")), row.get("auc_minus_log_ratio") or {}
    share = (auc - 0.5) / (bound - 0.5) if bound > 0.5 else math.nan
    own, same, length, pairs = (Cell(row.get(key), row.get(f"{key}_stderr")) for key in (
        "heldout_auc", "auc_sft_against_init", "spearman_length", "pair_accuracy"))
    return [own, same, Cell(share if math.isfinite(share) else None, digits=2), Cell(gap.get("difference"), gap.get("stderr")),
            length, pairs]


_LIMITS = """<h3>What these numbers can tell, and what not</h3>
<ul><li>They can tell that a reward has learnt nothing that holds on other prompts, that it separates better than is possible, or that it
follows length.</li>
<li>They cannot tell whether what it has learnt is quality. A reward with nothing against it may pay for dialect, topic or phrases that sft
merely uses more than init.</li>
<li>They do not rank recipes: each held-out AUC is of that recipe's own positives and negatives, and the reward with the highest AUC need
not choose the best samples. The exact log_ratio has the highest that there can be.</li>
<li>Accuracy on labelled pairs, where the data bring them, is about quality. It has no say in the verdict, for on the testbed labels are the
golden reward with noise.</li></ul>
<p>So read the samples below, best-of-n's and the policy's, and label some dozens of pairs of your own.</p>"""


def _policies(results: Mapping) -> str:
    """How each trained policy differs from sft, in numbers that need no judge."""
    policies = {name: row or {} for name, row in (results.get("policies") or {}).items()}
    sft = policies.get("sft") or {}
    rows = {}
    for role, row in policies.items():
        if "/" not in role or "@" in role:
            continue
        rewards, recipe = row.get("rewards") or {}, role.partition("/")[2]
        changes = {key: number(row.get(key)) - number(sft.get(key)) for key in ("length_mean", "distinct_2", "init_logprob", "ended_share")}
        changes["reward"] = number(rewards.get(recipe)) - number((sft.get("rewards") or {}).get(recipe))
        rows[role] = {key: value if math.isfinite(value) else None for key, value in changes.items()} | {
            "kl_to_sft": row.get("kl_to_sft"), "kl_to_sft_stderr": row.get("kl_to_sft_stderr")}
    known = [("reward", "reward that it optimised (nats)", ""), ("kl_to_sft", "KL to sft (nats/sequence)", "kl_to_sft_stderr"),
             ("length_mean", "length (tokens)", ""), ("distinct_2", "distinct-2 (share)", ""),
             ("init_logprob", "log-prob under init (nats/token)", ""), ("ended_share", "ended by EOS (share)", "")]
    return number_table("What optimising a reward did, less sft's own: a policy that gains reward while it grows longer, less varied, "
                        "stranger to init or without end has found what the reward overlooks.", "policy", rows, known)


def _afterwards(results: Mapping, judged: list[Judgement]) -> str:
    """The golden reward's view of the judged rewards. It affects nothing above."""
    paired = {row["name"]: row for row in results.get("paired") or []}
    rows = []
    for one in judged:
        row = results["rewards"][one.name] or {}
        by = f" by {one.name} - sft"
        best: Mapping = next((found for name, found in paired.items() if name.startswith("best-of-") and name.endswith(by)), {})
        if row.get("spearman_golden") is not None or best:
            rows.append([one.name, Cell(row.get("spearman_golden"), row.get("spearman_golden_stderr")),
                         Cell(best.get("difference"), best.get("stderr")), Cell(best.get("z"), digits=1)])
    return table("None of it entered the verdicts.", ["reward", "Spearman with golden, within prompts", "best-of-16 less sft", "z"], rows)
