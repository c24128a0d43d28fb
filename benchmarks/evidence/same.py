"""Compares two records of a cell and seed: python -m benchmarks.evidence.same ONE.json OTHER.json

Every value must be the same to the last digit. What is not compared: the commit, the seconds of `seconds`, and the seconds and rates of
`results.timing`. Prints the values that differ, with their paths, and how many they are; exit status 1 where any does.
"""

from __future__ import annotations

import argparse
import pathlib
import sys
from collections.abc import Mapping

import jax

from benchmarks.evidence import effects
from irl_jax.errors import UserError

ABSENT = "absent"


def values(record: Mapping) -> dict[str, object]:
    """{path: value} of everything in a record that a full re-run gives again."""
    results = {key: of for key, of in record["results"].items() if key != "timing"}
    kept = {**{key: of for key, of in record.items() if key not in ("commit", "seconds")}, "results": results}
    return {jax.tree_util.keystr(path): value for path, value in jax.tree_util.tree_leaves_with_path(kept, is_leaf=lambda x: x is None)}


def main(argv) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.evidence.same", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("records", type=pathlib.Path, nargs=2, metavar="RECORD")
    try:
        one, other = (values(effects.read(file)) for file in parser.parse_args(argv).records)
    except UserError as error:
        print(f"benchmarks.evidence: error: {error}", file=sys.stderr)
        return 2
    paths = dict.fromkeys((*one, *other))
    apart = [path for path in paths if path not in one or path not in other or one[path] != other[path]]
    print("\n".join([*(f"{path}: {one.get(path, ABSENT)} | {other.get(path, ABSENT)}" for path in apart),
                     f"{len(paths):,} values, {len(apart):,} differ"]))
    return 1 if apart else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
