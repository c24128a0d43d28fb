"""More prompts at the same demonstrations, on the testbed: python -m benchmarks.more_prompts run|table [--seeds=200,...]

`run` makes a run of each number of prompts and seed (one after another, resumable) and its record, docs/evidence/prompts/NAME-SEED.json;
`table` prints what docs/data.md has of them. Init, sft and the demonstrations are the same in all runs of a seed, and so are the steps of
the reward and of the policy: only the prompts that init and sft are sampled for, and that the policy trains on, are more.
"""

from __future__ import annotations

import argparse
import pathlib
import sys

import numpy as np

from benchmarks import robust
from irl_jax.errors import UserError

RECORDS = robust.ROOT / "docs" / "evidence" / "prompts"
SEEDS = (200, 201, 202)
DEMONSTRATIONS = 200
RECIPE = "init_sft"
SAME = {"data.testbed.demonstrations": str(DEMONSTRATIONS), "sft.epochs": "7.5",  # as many steps as on the quickstart's 1,200
        "sample.reward_prompts": str(10 * DEMONSTRATIONS), "reward.recipes": RECIPE, "policy.recipes": RECIPE}
SETS = {f"times-{times}": ("configs/testbed.py", SAME | {"data.testbed.prompts": str((times - 1) * DEMONSTRATIONS)})
        for times in (1, 3, 10)}
SHOWN = {f"best-of-{robust.N} by `{RECIPE}` at T = 1": f"best-of-{robust.N} by {RECIPE}",
         f"best-of-{robust.N} by `{RECIPE}` at T = 0.5": f"best-of-{robust.N} by {RECIPE} at T = 0.5",
         f"`policy/{RECIPE}` at T = 1": f"policy/{RECIPE}", f"`policy/{RECIPE}@0.5`": f"policy/{RECIPE}@0.5"}


def table(found: dict[str, list[dict]]) -> str:
    """Golden of each thing and number of prompts, and the most prompts less the fewest, in Markdown."""
    head = ["golden", *(f"{name.removeprefix('times-')} x {DEMONSTRATIONS} prompts" for name in found), "most less fewest"]
    rows = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for title, name in {"sft at T = 1": "sft", "sft at T = 0.5": "sft@0.5", **SHOWN}.items():
        values = [[np.array(record["golden_by_prompt"][name]) for record in records] for records in found.values()]
        less = robust.compared([most - fewest for most, fewest in zip(values[-1], values[0], strict=True)])
        rows.append("| " + " | ".join([title, *(f"{np.mean(one):.3f}" for one in values), less.text()]) + " |")
    return "\n".join(rows)


def main(argv) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.more_prompts", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("run", "table"))
    parser.add_argument("--seeds", default=",".join(map(str, SEEDS)))
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("runs", "prompts"))
    given = parser.parse_args(argv)
    wanted = [(name, int(seed)) for seed in given.seeds.split(",") for name in SETS]
    try:
        if given.what == "table":
            print(table(robust.load(wanted, RECORDS)))
            return 0
        return robust.run(wanted, given.out.absolute(), SETS, RECORDS)
    except UserError as error:
        print(f"benchmarks.more_prompts: error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
