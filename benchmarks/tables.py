"""The README's tables from one or several finished runs that differ in their seed: python benchmarks/tables.py RUN [RUN ...]

A figure is the mean over runs. Behind +- stand its standard error over prompts (of the mean over runs) and, with several runs, its
standard error over seeds: 0.71 +- 0.01 / 0.02.
"""

from __future__ import annotations

import json
import pathlib
import sys

import numpy as np


def pooled(values, stderrs=None, digits: int = 3) -> str:
    """`mean +- over prompts / over seeds`; a dash where a run has no such figure."""
    if any(value is None for value in values):
        return "–"
    values = np.asarray(values, float)
    text = f"{values.mean():.{digits}f}"
    parts = []
    if stderrs is not None and all(stderr is not None for stderr in stderrs):
        parts.append(f"{np.sqrt(np.square(stderrs).sum()) / len(values):.{digits}f}")
    if len(values) > 1:
        parts.append(f"{values.std(ddof=1) / np.sqrt(len(values)):.{digits}f}")
    return text + (" ± " + " / ".join(parts) if parts else "")


def table(head, rows) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join(lines + ["| " + " | ".join(map(str, row)) + " |" for row in rows])


def policies(runs) -> str:
    rows = []
    for name in runs[0]["policies"]:
        of = [run["policies"][name] for run in runs]

        def field(key, stderr=None, digits=3, of=of):
            return pooled([row[key] for row in of], [row[stderr] for row in of] if stderr else None, digits)

        rows.append([f"`{name}`", field("golden_mean", "golden_stderr"), field("length_mean", digits=1),
                     field("kl_to_sft", "kl_to_sft_stderr", 2), field("distinct_2"), field("init_logprob", digits=2)])
    return table(["policy", "golden", "tokens", "KL to sft, nats", "distinct-2", "init's log-prob a token"], rows)


def rewards(runs, n: int = 16) -> str:
    rows = []
    for name in runs[0]["rewards"]:
        of = [run["rewards"][name] for run in runs]
        best = [next((p for p in row["best_of_n"] if p["n"] == n), None) for row in of]

        def field(key, of=of):
            return pooled([row[key] for row in of], [row[f"{key}_stderr"] for row in of])

        point = [pooled([p[key] for p in best], [p[err] for p in best]) if all(best) else "–"
                 for key, err in (("golden", "stderr"), ("win_rate", "win_rate_stderr"))]
        accuracy = pooled([row["pair_accuracy"] for row in of])
        rows.append([f"`{name}`", field("heldout_auc"), field("spearman_golden"), field("spearman_length"), *point, accuracy])
    head = ["reward", "held-out AUC", "Spearman with golden", "with length", f"golden of best-of-{n}", f"win rate of best-of-{n}",
            "accuracy on held-out pairs"]
    return table(head, rows)


def paired(runs) -> str:
    rows = []
    for index, first in enumerate(runs[0]["paired"]):
        of = [run["paired"][index] for run in runs]
        each = ", ".join(f"{row['z']:+.1f}" if row["z"] is not None else "–" for row in of)
        rows.append([first["name"], pooled([row["difference"] for row in of], [row["stderr"] for row in of]), each])
    return table(["difference on the same prompts", "mean", "in standard errors, each run"], rows)


def divergences(runs) -> str:
    rows = []
    for name in runs[0]["divergences"]:
        of = [run["divergences"][name] for run in runs]
        keys = ("forward_kl", "reverse_kl", "jensen_shannon")
        if "forward_kl" not in of[0]:  # the demonstrator's own row: its coverage only
            continue
        cells = [pooled([row[key] for row in of], [row[f"{key}_stderr"] for row in of], 2) for key in keys]
        cells += [pooled([row[key] for row in of]) for key in ("noise_rate", "off_grammar_share")]
        rows.append([f"`{name}`", *cells])
    return table(["policy", "forward KL", "reverse KL", "Jensen-Shannon", "noise rate", "off the grammar"], rows)


def main(paths) -> int:
    runs = [json.loads((pathlib.Path(path) / "results.json").read_text()) for path in paths]
    parts = [policies(runs), rewards(runs), paired(runs)]
    if runs[0]["divergences"]:
        parts.append(divergences(runs))
    print("\n\n".join(parts))
    gaps = [run["rewards"].get("init_sft", {}).get("auc_minus_log_ratio") for run in runs]
    if all(gaps):
        text = ", ".join(f"{gap['difference']:+.3f} ± {gap['stderr']:.3f}" for gap in gaps)
        print(f"\nAUC of the learnt `init_sft` minus that of the exact log-ratio, each run: {text}")
    print(f"\nseconds, each run: {', '.join(str(round(sum(t['seconds'] for t in run['timing'].values()))) for run in runs)}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
