"""The report's tables of policies, rewards, paired differences and divergences."""

from __future__ import annotations

from collections.abc import Mapping

from irl_jax.config import CONTROLS
from irl_jax.stages.page import Cell, details, number_table, table
from irl_jax.stages.plot_style import golden_label, number

BEST_OF = (4, 16, 50)  # columns of the best-of-n table, where measured
OPEN_COMPARISONS = 40  # rows of paired comparisons shown unfolded


def policies(results: Mapping) -> str:
    """Golden, length, KL, diversity and mean rewards of every policy."""
    rows = {name: numbers or {} for name, numbers in (results.get("policies") or {}).items()}
    known = [("golden_mean", golden_label(results), "golden_stderr"), ("length_mean", "length (tokens)", "length_stderr"),
             ("kl_to_sft", "KL to sft (nats/sequence)", "kl_to_sft_stderr"), ("distinct_2", "distinct-2 (share)", ""),
             ("n", "prompts", "")]
    means = {name: numbers["rewards"] for name, numbers in rows.items() if numbers.get("rewards")}
    return (number_table("Each policy on the evaluation prompts; ± is one standard error over prompts.", "policy", rows, known)
            + number_table("Mean reward of each policy's responses (logit, nats), a column a reward.", "policy", means, []))


def rewards(results: Mapping) -> str:
    """Quality of every reward, best-of-n, ensemble members, tilting."""
    every_reward = {name: numbers or {} for name, numbers in (results.get("rewards") or {}).items()}
    known = [("heldout_auc", "held-out AUC", "heldout_auc_stderr"),
             ("spearman_golden", "Spearman with golden, within prompts", "spearman_golden_stderr"),
             ("spearman_length", "Spearman with length, within prompts", "spearman_length_stderr"),
             ("pair_accuracy", "accuracy on preference pairs", "pair_accuracy_stderr")]
    quality = number_table(f"Learnt rewards, then controls ({', '.join(CONTROLS)}).", "reward", every_reward, known)
    curves = {name: {row["n"]: row for row in numbers.get("best_of_n") or []} for name, numbers in every_reward.items()}
    ns = sorted({n for rows in curves.values() for n in rows})
    chosen = [n for n in BEST_OF if n in ns] or ns[-1:]

    def best(columns, wins):
        return [[name] + [Cell(rows.get(n, {}).get("golden"), rows.get(n, {}).get("stderr")) for n in columns]
                + [Cell(rows.get(n, {}).get("win_rate"), rows.get(n, {}).get("win_rate_stderr")) for n in wins]
                for name, rows in curves.items() if rows]

    chosen_ns = table(f"Best-of-n: {golden_label(results)} of the sft sample that each reward picks, and its win rate over one sft "
                   "sample (ties half); ± is one standard error over prompts.",
                   ["reward"] + [f"best-of-{n}" for n in chosen] + [f"win rate, n = {n}" for n in chosen], best(chosen, chosen))
    every = table("Golden reward of best-of-n at every n.", ["reward"] + [f"n = {n}" for n in ns], best(ns, []))
    tilting = [[f"{name}, β = {number(row.get('beta')):g}", Cell(row.get("kl"), row.get("kl_stderr")),
                Cell(row.get("golden"), row.get("stderr")), row.get("ess"), bool(row.get("trusted", True))]
               for name, numbers in every_reward.items() for row in numbers.get("tilting") or []]
    tilted = table("Sft samples weighted by exp(h/β): the optimum of the KL-regularised objective, without reinforcement "
                    "learning.", ["reward", "KL to sft (nats/sequence)", golden_label(results), "effective samples a prompt",
                                  "trusted"], tilting)
    return (quality + chosen_ns + _at_temperatures(results, every_reward) + _ensembles(results) + details("Every n", every)
            + details("Tilting", tilted))


def _at_temperatures(results: Mapping, rewards: Mapping) -> str:
    """Best-of-16 (or nearest n) from sft's samples at each temperature."""
    found = {name: {t: min(rows, key=lambda row: abs(row["n"] - 16)) for t, rows in (row.get("best_of_n_at") or {}).items() if rows}
             for name, row in rewards.items()}
    columns = list(dict.fromkeys(t for row in found.values() for t in row))
    rows = [[name, *(Cell(row.get(t, {}).get("golden"), row.get(t, {}).get("stderr")) for t in columns)]
            for name, row in found.items() if row]
    policies = results.get("policies") or {}
    own = [policies.get(f"sft@{t}") or {} for t in columns]
    rows = [["sft itself", *(Cell(row.get("golden_mean"), row.get("golden_stderr")) for row in own)], *rows] if rows else []
    n = next((row["n"] for each in found.values() for row in each.values()), 16)
    return table(f"Best-of-{n} from sft's samples at other temperatures: {golden_label(results)}; ± is one standard error over prompts.",
                 ["reward", *(f"T = {t}" for t in columns)], rows)


def _ensembles(results: Mapping) -> str:
    """The members of each ensemble, and best-of-n that stops where they disagree next to plain best-of-n."""
    ensembles = {name: numbers for name, numbers in (results.get("rewards") or {}).items() if (numbers or {}).get("members")}
    members = {f"{name}, member {i}": member for name, numbers in ensembles.items() for i, member in enumerate(numbers["members"], start=1)}
    known = [("heldout_auc", "held-out AUC", "heldout_auc_stderr"),
             ("spearman_golden", "Spearman with golden, within prompts", "spearman_golden_stderr")]
    agreed = {name: numbers.get("best_of_agreed") for name, numbers in ensembles.items()}
    rows = [[f"{name}, best of up to {row['max_n']}", Cell(row.get("golden"), row.get("stderr")),
             Cell(row.get("plain_golden"), row.get("plain_stderr")), Cell(row.get("mean_n"), digits=1)]
            for name, row in agreed.items() if row]
    return number_table("Members of the ensembles, one by one.", "reward", members, known) + table(
        "Best-of-n that goes on to more samples only while the members agree on the gain, and without stopping, on the same samples.",
        ["reward", golden_label(results), "without stopping", "samples looked at"], rows)


def paired(results: Mapping) -> str:
    """Differences on the same prompts."""
    rows = [[row["name"], Cell(row.get("difference"), row.get("stderr")), Cell(row.get("z"), digits=1), row.get("n")]
            for row in results.get("paired") or []]
    head = ["comparison", "difference", "z", "prompts"]
    shown = table("Differences on the same prompts, in golden reward unless the name says otherwise; z is the difference over "
                   "its standard error.", head, rows[:OPEN_COMPARISONS])
    rest = rows[OPEN_COMPARISONS:]
    return shown + details(f"{len(rest)} more comparisons", table("Further differences on the same prompts.", head, rest))


def divergences(results: Mapping) -> str:
    """Divergences from the demonstrator, if it is known exactly."""
    known = [("forward_kl", "forward KL(demo‖policy) (nats/sequence)", "forward_kl_stderr"),
             ("reverse_kl", "reverse KL(policy‖demo) (nats/sequence)", "reverse_kl_stderr"),
             ("jensen_shannon", "Jensen-Shannon (nats, at most 0.693)", "jensen_shannon_stderr")]
    return number_table("From exact log-probabilities of the demonstrator, and from the kinds of sentences responses are made of. The "
                         "reverse KL counts mostly tokens that the demonstrator writes only by noise.", "policy",
                         results.get("divergences") or {}, known)
