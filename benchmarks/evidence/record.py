"""The compact record of one finished run: what docs/evidence.md needs of it, small enough to be committed.

  python -m benchmarks.evidence.record EXPERIMENT CELL SEED WORKDIR FILE [--smoke]

FILE becomes {"experiment", "cell", "seed", "commit", "cores", "settings", "seconds", "results", "over_training", "analyses"}: `commit` of
the code that made the run and `cores` that it had, `settings` as in plan.settings, `seconds` of the run's stages and of the analyses,
`results` the run's results.json, `over_training` the curves of its evaluate/report.json, `analyses` what benchmarks/evidence/analyse.py
finds (and "baselines", where the experiment has some). Floats have DIGITS significant digits. It is a process of its own for the reason
that every run is one: its memory goes back, and nothing that another has compiled changes its roundings.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import sys
import time
from collections.abc import Mapping

from benchmarks.evidence import plan
from irl_jax import artifacts, cli, paths, workdir
from irl_jax.errors import UserError
from irl_jax.stages import evaluated

DIGITS = 6
ANALYSES = "analyses"  # of `seconds`, beside the stages


def rounded(value):
    """Nested containers with every float at DIGITS significant digits."""
    if isinstance(value, Mapping):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [rounded(item) for item in value]
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value


def record(cell: plan.Cell, smoke: bool, folder: pathlib.Path) -> dict:
    """The record of a cell's finished workdir.

    Raises:
      UserError: the run is not finished, or its files are broken.
    """
    from benchmarks.evidence import analyse

    stored = artifacts.read_json(folder / workdir.CONFIG, workdir.WRITTEN)
    results = artifacts.read_json(folder / "results.json", evaluated.RESULTS | {"timing!": {}})
    report = artifacts.read_json(folder / "evaluate" / "report.json")
    start = time.perf_counter()
    analyses = analyse.analyse(folder)
    if baselines := plan.EXPERIMENTS[cell.experiment].baselines:
        analyses = {**analyses, "baselines": baselines(folder)}
    seconds = {stage: timing["seconds"] for stage, timing in results["timing"].items()} | {ANALYSES: time.perf_counter() - start}
    return rounded(artifacts.plain({
        "experiment": cell.experiment, "cell": cell.name, "seed": cell.seed, "commit": stored.get("git_commit"),
        "cores": stored.get("cores"), "settings": plan.settings(cell, smoke), "seconds": seconds, "results": results,
        "over_training": report.get("over_training") or {}, "analyses": analyses}))


def write(file: pathlib.Path, content: Mapping) -> None:
    """Writes a record, one line a top-level key, whole or not at all."""
    lines = ",\n".join(f"{json.dumps(key)}: {json.dumps(value, allow_nan=False, separators=(',', ':'))}" for key, value in content.items())
    file.parent.mkdir(parents=True, exist_ok=True)
    paths.write(file, lambda opened: opened.write(f"{{\n{lines}\n}}\n".encode()))


def main(argv) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, kind in (("experiment", str), ("cell", str), ("seed", int), ("workdir", pathlib.Path), ("file", pathlib.Path)):
        parser.add_argument(name, type=kind)
    parser.add_argument("--smoke", action="store_true")
    given = parser.parse_args(argv)
    cells = plan.EXPERIMENTS[given.experiment].of(given.experiment, (given.seed,)) if given.experiment in plan.EXPERIMENTS else []
    cell = next((cell for cell in cells if cell.name == given.cell), None)
    if cell is None:
        parser.error(f"no cell {given.experiment}/{given.cell}")
    cli.keep_compiled(None)  # the run's own programs score here again
    try:
        write(given.file, record(cell, given.smoke, given.workdir))
    except UserError as error:
        print(f"benchmarks.evidence: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
