"""Runs an experiment: python -m benchmarks.evidence.run EXPERIMENT [--seeds=0,1,2] [--cells=NAME,...] [--smoke] [--list]

Every cell and seed is one `irl_jax run`, a process of its own, in OUT/EXPERIMENT/CELL/seed-S, one after another; then its record is
written to RECORDS/EXPERIMENT/CELL/seed-S.json (benchmarks/evidence/record.py). A cell whose record was made with the same settings is not
run again, an interrupted run goes on from its last checkpoint: the same command finishes what is left. The first cell that fails ends the
command.
`python -m benchmarks.evidence.write` makes docs/evidence.md from the records. --list prints the cells, their state and their seconds.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import sys
import time

from benchmarks.evidence import plan
from irl_jax import checks, sweep, workdir
from irl_jax.errors import UserError

RECORDS = plan.ROOT / "docs" / "evidence" / "records"


def state(cell: plan.Cell, smoke: bool, out: pathlib.Path, records: pathlib.Path) -> tuple[str, float | None]:
    """How far a cell is: ("done" | "other settings" | "begun" | "not begun", seconds of its record or None).

    Raises:
      UserError: its record is broken, or its config cannot be made.
    """
    file = records / f"{cell.path}.json"
    if file.is_file():
        try:
            stored = json.loads(file.read_text())
            made_with, seconds = stored["settings"], sum(stored["seconds"].values())
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{file}: is no record ({error}); remove it") from None
        return ("done" if made_with == plan.settings(cell, smoke) else "other settings"), seconds
    return ("begun" if (out / cell.path / workdir.CONFIG).is_file() else "not begun"), None


def run_cell(cell: plan.Cell, smoke: bool, out: pathlib.Path, records: pathlib.Path, prepared: dict[str, str]) -> int:
    """Runs one cell and writes its record; returns the exit status of what failed, or 0."""
    folder = out / cell.path
    overrides = {**cell.overrides, **prepared, "seed": str(cell.seed)}
    command = [sys.executable, "-m", "irl_jax", "run", f"--config={cell.config_of(smoke)}", f"--workdir={folder}",
               *(f"--config.{key}={text}" for key, text in overrides.items())]
    recording = [sys.executable, "-m", "benchmarks.evidence.record", cell.experiment, cell.name, str(cell.seed), str(folder),
                 str(records / f"{cell.path}.json"), *["--smoke"] * smoke]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(plan.ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])}
    return (sweep.apart(command, env=environment, cwd=plan.ROOT)
            or sweep.apart(recording, env=environment, cwd=plan.ROOT))


def run(cells, smoke: bool, out: pathlib.Path, records: pathlib.Path) -> int:
    """Runs the cells that are not done, of one experiment; all of their configs are checked first. Returns the exit status.

    Raises:
      UserError: a config that no run would take, or a broken record.
    """
    left = [cell for cell in cells if state(cell, smoke, out, records)[0] != "done"]
    prepare = plan.EXPERIMENTS[cells[0].experiment].prepare
    prepared = prepare(out / cells[0].experiment) if prepare and left else {}
    for cell in left:
        checks.check(plan.config(cell, smoke, prepared))
    print(f"{len(cells) - len(left)} of {len(cells)} cells are done", flush=True)
    for number, cell in enumerate(left, start=1):
        print(f"{number} of {len(left)}: {cell.path}", flush=True)
        start = time.perf_counter()
        status = run_cell(cell, smoke, out, records, prepared)
        if status:
            print(f"benchmarks.evidence: {cell.path} ended with status {status}; the same command goes on with it", file=sys.stderr)
            return status
        print(f"{cell.path}: {time.perf_counter() - start:.0f} s", flush=True)
    return 0


def table(cells, smoke: bool, out: pathlib.Path, records: pathlib.Path) -> str:
    """The cells, one a line, with their states and seconds, and the sum."""
    rows, total = [], 0.0
    for cell in cells:
        at, seconds = state(cell, smoke, out, records)
        total += seconds or 0.0
        rows.append(f"{cell.path:45s} {at:15s} {'' if seconds is None else f'{seconds:8.0f} s'}".rstrip())
    return "\n".join([*rows, f"{'together':61s} {total:8.0f} s"])


def chosen(experiment: str, seeds: str, names: str) -> list[plan.Cell]:
    """The cells that the flags name.

    Raises:
      UserError: an experiment or a cell that there is not, or a seed that is no whole number.
    """
    if experiment not in plan.EXPERIMENTS:
        raise UserError(f"no experiment '{experiment}'; one of {', '.join(plan.EXPERIMENTS)}")
    try:
        numbers = tuple(int(seed) for seed in seeds.split(","))
    except ValueError:
        raise UserError(f"--seeds={seeds}: takes whole numbers separated by commas") from None
    known = plan.EXPERIMENTS[experiment].cells
    wanted = names.split(",") if names else list(known)
    if unknown := [name for name in wanted if name not in known]:
        raise UserError(f"--cells: {experiment} has no cell '{unknown[0]}'; it has {', '.join(known)}")
    return [cell for cell in plan.EXPERIMENTS[experiment].of(experiment, numbers) if cell.name in wanted]


def main(argv) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.evidence.run", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiment", help=f"one of {', '.join(plan.EXPERIMENTS)}")
    parser.add_argument("--out", type=pathlib.Path, help="of the runs; default runs/paper, with --smoke runs/paper-smoke")
    parser.add_argument("--records", type=pathlib.Path, help="default docs/evidence/records, with --smoke OUT/records")
    parser.add_argument("--seeds", default=",".join(map(str, plan.SEEDS)))
    parser.add_argument("--cells", default="", help="default all")
    parser.add_argument("--smoke", action="store_true", help="the miniature of every cell; its numbers mean nothing")
    parser.add_argument("--list", action="store_true", help="prints how far the cells are, and runs nothing")
    given = parser.parse_args(argv)
    out = (given.out or pathlib.Path("runs", "paper-smoke" if given.smoke else "paper")).absolute()
    records = (given.records or (out / "records" if given.smoke else RECORDS)).absolute()
    try:
        cells = chosen(given.experiment, given.seeds, given.cells)
        if given.list:
            print(table(cells, given.smoke, out, records))
            return 0
        return run(cells, given.smoke, out, records)
    except UserError as error:
        print(f"benchmarks.evidence: error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
