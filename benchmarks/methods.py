"""The tables of docs/methods.md and docs/divergences.md, over seeds.

  python benchmarks/methods.py RUN [RUN ...]                        # tables of finished runs of configs/methods.py
  python benchmarks/methods.py --run OUT [--seeds=0,1,2] [--smoke]  # runs them first, into OUT/seed-<s>; goes on where it was stopped

A figure is the mean over runs. Behind +- stand its standard error over prompts and, with several runs, over seeds.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import subprocess
import sys

from irl_jax.evaluation.pooling import pooled
from irl_jax.stages.run_tables import markdown as table

CONFIG = pathlib.Path(__file__).resolve().parent.parent / "configs" / "methods.py"


def methods(runs) -> str:
    """golden, its difference to sft, KL, length, distinct-2 and seconds of every policy."""
    rows = []
    for role in runs[0]["policies"]:
        of = [run["policies"][role] for run in runs]
        paired = [_find(run["paired"], f"{role} - sft") for run in runs]
        difference = pooled([p["difference"] for p in paired], [p["stderr"] for p in paired]) if all(paired) else "–"
        kl = pooled([row["kl_to_sft"] for row in of], [row["kl_to_sft_stderr"] for row in of], 2)
        same = pooled([row.get("at_same_kl") for row in of], [row.get("at_same_kl_stderr") for row in of])
        each = ", ".join(f"{p['z']:+.1f}" if p["z"] is not None else "–" for p in paired) if all(paired) else "–"
        seconds = [_seconds(run, role) for run in runs]
        rows.append([f"`{role}`", pooled([row["golden_mean"] for row in of], [row["golden_stderr"] for row in of]), difference, each, kl,
                     same, pooled([row["length_mean"] for row in of], digits=1),
                     pooled([row["distinct_2"] for row in of]), round(sum(seconds) / len(seconds)) if all(seconds) else "–"])
    return table(["policy", "golden", "less sft's", "in standard errors, each run", "KL to sft, nats", "less `policy/init_sft` at that KL",
                  "tokens", "distinct-2", "seconds"], rows)


def rewards(runs, n: int = 16) -> str:
    """AUC, rank correlations and best-of-n of every reward."""
    rows = []
    for name in runs[0]["rewards"]:
        of = [run["rewards"][name] for run in runs]
        best = [next((p for p in row["best_of_n"] if p["n"] == n), None) for row in of]

        def field(key, of=of):
            return pooled([row[key] for row in of], [row[f"{key}_stderr"] for row in of])

        rows.append([f"`{name}`", field("heldout_auc"), field("spearman_golden"), field("spearman_length"),
                     pooled([p["golden"] for p in best], [p["stderr"] for p in best]) if all(best) else "–"])
    return table(["reward", "held-out AUC", "Spearman with golden", "with length", f"golden of best-of-{n}"], rows)


def ensembles(runs) -> str:
    """The members of each ensemble, and best-of-n that stops where they disagree."""
    parts = []
    for name, first in runs[0]["rewards"].items():
        if not first.get("members"):
            continue
        of = [run["rewards"][name] for run in runs]
        rows = [[f"member {i + 1}", pooled([row["members"][i]["heldout_auc"] for row in of]),
                 pooled([row["members"][i]["spearman_golden"] for row in of], [row["members"][i]["spearman_golden_stderr"] for row in of])]
                for i in range(len(first["members"]))]
        parts += [f"`{name}`:", table(["", "held-out AUC", "Spearman with golden"], rows)]
        agreed = [row.get("best_of_agreed") for row in of]
        if not all(agreed):
            continue
        text = pooled([a["golden"] for a in agreed], [a["stderr"] for a in agreed])
        plain = pooled([a["plain_golden"] for a in agreed], [a["plain_stderr"] for a in agreed])
        parts += [f"Best-of-{agreed[0]['max_n']} of it that stops where members disagree: golden {text}, "
                  f"{pooled([a['mean_n'] for a in agreed], digits=1)} samples looked at; without stopping {plain}."]
    return "\n\n".join(parts)


def divergences(runs) -> str:
    """Forward and reverse KL to the demonstrator and what of it is covered."""
    rows = []
    for role in runs[0]["divergences"]:
        of = [run["divergences"][role] for run in runs]
        cells = [pooled([row.get(key) for row in of], [row.get(f"{key}_stderr") for row in of], digits)
                 for key, digits in (("forward_kl", 2), ("reverse_kl", 2), ("jensen_shannon", 3), ("coverage", 3),
                                     ("coverage_unweighted", 3), ("kind_entropy", 3), ("other_kinds", 3))]
        rows.append([f"`{role}`", *cells])
    return table(["policy", "forward KL", "reverse KL", "Jensen-Shannon", "coverage", "coverage, mean over kinds",
                  "entropy over kinds", "other kinds"], rows)


def _find(rows, name: str):
    return next((row for row in rows if row["name"] == name), None)


def _seconds(run, role: str):
    path = pathlib.Path(run["path"]) / role / "done.json"
    return json.loads(path.read_text())["timing"]["seconds"] if path.is_file() else None


def run_all(out: str, seeds, smoke: bool) -> list[str]:
    """Runs every seed, one after another; a finished one is not run again. Returns the workdirs."""
    paths = []
    config = str(CONFIG) + (":smoke" if smoke else "")
    for seed in seeds:
        paths.append(f"{out}/seed-{seed}")
        subprocess.run([sys.executable, "-m", "irl_jax", "run", f"--config={config}", f"--workdir={paths[-1]}", f"--config.seed={seed}"],
                       check=True, stdout=sys.stderr)
    return paths


def main(argv) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="*")
    parser.add_argument("--run", metavar="OUT")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--smoke", action="store_true")
    arguments = parser.parse_args(argv)
    if bool(arguments.run) == bool(arguments.runs):
        parser.error("give the folders of finished runs, or --run OUT")
    paths = run_all(arguments.run, arguments.seeds.split(","), arguments.smoke) if arguments.run else arguments.runs
    runs = [json.loads((pathlib.Path(path) / "results.json").read_text()) | {"path": path} for path in paths]
    parts = [methods(runs), rewards(runs), ensembles(runs)] + ([divergences(runs)] if runs[0]["divergences"] else [])
    print("\n\n".join(part for part in parts if part))
    print(f"\nseconds, each run: {', '.join(str(round(sum(t['seconds'] for t in run['timing'].values()))) for run in runs)}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
