"""Starting: --help, and the quickstart's pipeline cold (no compiled programs kept) and warm (those of the first run kept)."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

from benchmarks.speed.table import Target, row
from benchmarks.speed.timing import Others, Timed

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
HELP, COMPILE = Target("< 1 s", 1.0), Target("second / first < 15%", 1 / 0.15)
# The quickstart's shapes with few steps: what is compiled does not depend on their number.
FEW = ("pretrain.steps=20", "sft.steps=20", "sample.reward_prompts=64", "reward.steps=10", "policy.steps=4",
       "data.testbed.pretrain_responses=2000", "eval.prompts=32", "eval.divergence_prompts=8")
TESTBED = "testbed's (0.4M)"
STILL_FEWER = ("model.num_layers=1", "reward.recipes=init_sft,")


def cases(setting):
    """Yields the rows."""
    others = Others()
    helps = [_seconds([sys.executable, "-m", "irl_jax", "--help"]) for _ in range(2 if setting.quick else 5)]
    yield row("python -m irl_jax --help", "–", "one second", Timed(helps, [1.0] * len(helps), others.share()), "a process", target=HELP)
    overrides = FEW + (STILL_FEWER if setting.quick else ())
    with tempfile.TemporaryDirectory() as folder:
        cold, warm = (_quickstart(pathlib.Path(folder), name, overrides) for name in ("cold", "warm"))
    work = f"configs/testbed.py with few steps{' and one layer' if setting.quick else ''}"
    busy = others.share()
    yield row("quickstart, warm start", TESTBED, "irl_jax, cold start", Timed([warm[0]], [cold[0]], busy), work, overrides=overrides,
              note="wall-clock time of the process; the ratio is cold / warm")
    yield row("quickstart, compile seconds, warm", TESTBED, "irl_jax, cold start", Timed([warm[1]], [cold[1]], busy), work, target=COMPILE,
              note="the stages' own compile_seconds, summed; the ratio is cold / warm")


def _seconds(command, environment=None) -> float:
    start = time.perf_counter()
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: status {done.returncode}\n{done.stderr[-3000:]}")
    return time.perf_counter() - start


def _quickstart(folder: pathlib.Path, name: str, overrides) -> tuple[float, float]:
    """(seconds, compile seconds) of a run in a new workdir; compiled programs are kept in, and taken from, folder/cache."""
    workdir = folder / name
    environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(folder / "cache")}
    seconds = _seconds([sys.executable, "-m", "irl_jax", "run", f"--config={ROOT / 'configs' / 'testbed.py'}", f"--workdir={workdir}",
                        *(f"--config.{override}" for override in overrides)], environment)
    timing = json.loads((workdir / "results.json").read_text())["timing"]
    return seconds, sum(stage.get("compile_seconds", 0.0) for stage in timing.values())
