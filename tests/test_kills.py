"""SIGKILL at random moments of every stage: the same command goes on and ends bitwise where a run that nobody disturbed ends.

A trial starts from what the undisturbed run had before the stage, is killed in it, started again, killed again and started once more. Run
with -s to see the moments.
"""

import filecmp
import json
import random
import shutil
import signal
import subprocess
import sys
import time

import events
import pytest
from hosts import environment

from irl_jax import cli
from irl_jax.stages import STAGES
from irl_jax.workdir import DONE

CONFIG = """
from tiny import tiny_config
def get_config(name=""):
    return tiny_config(checkpoint__every_steps=1, pretrain__steps=30, sft__steps=20, reward__recipes=("init_sft",), reward__steps=12,
                       policy__steps=6, policy__keep_rollouts_every=2, adversarial__recipes=("demo",), adversarial__rounds=6,
                       adversarial__warmup_rounds=2, dpo__recipes=("sft_demo",), dpo__steps=12, spin__recipes=("demo",), spin__steps=6,
                       spin__prompts=16, rejection__recipes=("init_sft",), rejection__prompts=12, rejection__samples=4)
"""
KILLS = 2  # in a stage, one after the other; and two more while a checkpoint is written
TRIES = 12  # to meet the stage before its end
SKIPPED = (".lock", "progress.json", "index.html")  # with pids and times in them
VOLATILE = ("timing", "seconds", "compile_seconds", "tokens_per_second")


def arguments(config, workdir, stage):
    return ["run", f"--config={config}", f"--workdir={workdir}", f"--stages={stage}"]


def run(config, workdir, stage):
    """Runs the stage to its end, here: half of a process's time would go into its imports."""
    assert cli.main(arguments(config, workdir, stage)) == 0


def is_at(workdir, stage):
    """Whether a process has noted that it is at the stage."""
    lock = workdir / ".lock"
    return lock.exists() and f'"stage": "{stage}"' in lock.read_text()


def kill_at(config, workdir, stage, moment):
    """Starts the stage in a process and kills it `moment` seconds after it was there, or when moment() says so.

    Returns: None, or the seconds until then where the stage had ended before.
    """
    (workdir / ".lock").unlink(missing_ok=True)  # an earlier one's note
    command = [sys.executable, "-m", "irl_jax", *arguments(config, workdir, stage)]
    process = subprocess.Popen(command, env=environment(1), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and not is_at(workdir, stage):
        time.sleep(0.01)
    start = time.monotonic()
    while process.poll() is None and not (moment() if callable(moment) else time.monotonic() - start > moment):
        time.sleep(0.0005 if callable(moment) else 0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() in (-signal.SIGKILL, 0)
    return time.monotonic() - start if (workdir / stage / DONE).exists() else None


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """(config file, {stage: the workdir as it was before it}, {stage: seconds it took}, the finished workdir)."""
    folder = tmp_path_factory.mktemp("kills")
    config, workdir, before, seconds = folder / "killed_run.py", folder / "w", {}, {}
    config.write_text(CONFIG)
    for stage in STAGES:
        if workdir.exists():
            before[stage] = shutil.copytree(workdir, folder / f"before-{stage}")
        start = time.monotonic()
        run(config, workdir, stage)
        seconds[stage] = time.monotonic() - start
    return config, before, seconds, workdir


def plain(value):
    """JSON without times."""
    if isinstance(value, dict):
        return {key: plain(inner) for key, inner in value.items() if key not in VOLATILE}
    return [plain(inner) for inner in value] if isinstance(value, list) else value


def leaves(folder):
    """{name: bytes} of the newest checkpoint in a folder of them, less the book's times."""
    import numpy as np

    from irl_jax import checkpoint

    described = json.loads((folder / str(checkpoint.latest_step(folder)) / "manifest.json").read_text())["leaves"]
    _, tree = checkpoint.restore_latest(folder, {name: np.zeros(shape, dtype) for name, (shape, dtype) in described.items()})
    return {name: leaf.tobytes() for name, leaf in tree.items() if not any(word in name for word in VOLATILE)}


def differences(one, two):
    """What differs between two workdirs in all that a stage leaves."""
    found = []
    for path in sorted(path for path in one.rglob("*") if path.is_file() or path.name in ("leaves", "checkpoints")):
        name, other = path.relative_to(one), two / path.relative_to(one)
        if any(part in ("leaves", "checkpoints") for part in name.parts[:-1]) or path.name in SKIPPED or path.suffix == ".png":
            continue
        if "tfevents" in path.name:  # another file for each session, of the same steps and numbers
            found += [str(name)] * (events.rows(path.parent) != events.rows(other.parent))
            continue
        if not other.exists():
            found.append(f"{name} is missing")
        elif path.is_dir():
            found += [f"{name}: {leaf}" for leaf, content in leaves(path).items() if leaves(other).get(leaf) != content]
        elif path.suffix == ".json":
            found += [str(name)] * (plain(json.loads(path.read_text())) != plain(json.loads(other.read_text())))
        elif path.suffix != ".npz":
            found += [str(name)] * (not filecmp.cmp(path, other, shallow=False))
        else:
            found += arrays_that_differ(path, other, name)
    left = [str(path.relative_to(two)) for path in two.rglob("*") if path.name.endswith((".tmp", ".part")) or ".part" in path.stem]
    return found + [f"{name} is left over" for name in left if not (one / name).exists()]


def arrays_that_differ(path, other, name):
    import numpy as np

    with np.load(path) as a, np.load(other) as b:
        return [f"{name}: {key}" for key in a.files if a[key].tobytes() != b[key].tobytes()]


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_killed_twice_in_every_stage(undisturbed, stage, tmp_path):
    config, before, seconds, workdir = undisturbed
    draws, start, moments = random.Random(stage), before.get(stage), []
    for kill in range(KILLS):
        mine, latest = tmp_path / str(kill), seconds[stage]
        for _ in range(TRIES):
            shutil.rmtree(mine, ignore_errors=True)
            if start:
                shutil.copytree(start, mine)
            moment = latest * draws.uniform(0.0, 0.98)
            ended = kill_at(config, mine, stage, moment)
            if ended is None:
                break
            latest = min(latest, ended)  # programs that are compiled already, and what an earlier kill has left, make it shorter
        else:
            pytest.fail(f"{stage} ended before every one of {TRIES} kills")
        moments.append(moment)
        start = mine
    run(config, mine, stage)
    told = ", ".join(f"{moment:.2f}" for moment in moments)
    print(f"\n{stage}: killed after {told} of {seconds[stage]:.2f} s, went on and ended", end="")
    after = workdir if stage == STAGES[-1] else before[STAGES[STAGES.index(stage) + 1]]
    assert differences(after, mine) == []


@pytest.mark.slow
@pytest.mark.parametrize("role", ["sft", "adversarial/demo"])
def test_killed_while_a_checkpoint_is_written(undisturbed, role, tmp_path):
    config, before, _, _ = undisturbed
    stage = role.split("/")[0]
    after = list(before.values())[list(before).index(stage) + 1]
    for trial in range(5):
        mine = tmp_path / str(trial)
        shutil.copytree(before[stage], mine)
        unfinished = mine / role / "checkpoints" / f".unfinished-{3 + trial}"
        if kill_at(config, mine, stage, unfinished.exists) is None and unfinished.exists():
            break
    else:
        pytest.fail("no kill met a checkpoint while it was being written")
    run(config, mine, stage)
    print(f"\n{stage}: killed while checkpoint {3 + trial} was being written, went on and ended", end="")
    assert differences(after, mine) == []


def test_differences_are_seen(tmp_path):
    """The comparison itself: one bit of a leaf, a number of a line or an array, a missing and a forgotten file."""
    import numpy as np

    from irl_jax import artifacts, checkpoint, tracking

    def make(name):
        folder = tmp_path / name / "sft"
        checkpoint.save_tree(folder / "leaves", {"w": np.arange(4.0), "seconds": np.asarray(float(len(name)))})
        artifacts.save_arrays(folder / "a.npz", x=np.arange(3))
        artifacts.write_json(folder / "done.json", {"timing": {"seconds": len(name)}, "n": 1})
        (folder / "metrics.jsonl").write_text('{"step": 1}\n')
        told = tracking.Events(folder, [])
        told.add(1, {"loss": 0.5})
        told.flush()
        return folder

    one = make("one")
    assert differences(one.parent, make("three").parent) == []  # times may differ
    changes = {
        "leaves": lambda two: checkpoint.save_tree(two / "leaves", {"w": np.nextafter(np.arange(4.0), 9), "seconds": np.asarray(0.0)}),
        "a.npz": lambda two: artifacts.save_arrays(two / "a.npz", x=np.arange(3) + 1),
        "done.json": lambda two: artifacts.write_json(two / "done.json", {"n": 2}),
        "metrics.jsonl": lambda two: (two / "metrics.jsonl").unlink(),
        "tfevents": lambda two: tracking.Events(two, [{"step": 1, "loss": 0.5}, {"step": 2, "loss": 0.25}]),
        "left over": lambda two: (two / "b.npz.tmp").write_text(""),
    }
    for number, (name, change) in enumerate(changes.items()):
        two = make(f"other{number}")
        change(two)
        found = differences(one.parent, two.parent)
        assert len(found) == 1 and name in found[0], (name, found)
