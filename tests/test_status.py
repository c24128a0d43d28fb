"""`irl_jax status`: done, running, left, by looking alone."""

import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import time

import pytest
from hosts import environment
from tiny import tiny_config

from irl_jax import cli, status, workdir
from irl_jax.stages import STAGES

ROOT = pathlib.Path(__file__).resolve().parent.parent


def told(path, capsys) -> list[str]:
    assert cli.main(["status", str(path)]) == 0
    return [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]


def snapshot(path):
    return {file: (file.read_bytes(), file.stat().st_mtime_ns) for file in path.rglob("*") if file.is_file()}


def begun(path, done=(), **changes) -> pathlib.Path:
    """A workdir in which some stages are done."""
    opened = workdir.Workdir(path, tiny_config(**changes))
    for stage in done:
        opened.mark_done(stage, {"seconds": 75.0})
    opened.close()
    return path


def training(folder, steps, at, seconds=10.0, ago=0.0, checkpoint=0):
    """What the loop leaves in a stage's folder: the first of the session's steps was told `seconds` before the last."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps({"step": step, "loss": 1.0}) + "\n" for step in range(1, at + 1))
    (folder / "metrics.jsonl").write_text(lines + '{"step": 99')
    last = time.time() - ago
    os.utime(folder / "metrics.jsonl", (last, last))
    (folder / "progress.json").write_text(json.dumps({"steps": steps, "step": 1, "time": last - seconds}))
    (folder / "checkpoints" / str(checkpoint)).mkdir(parents=True)


def test_a_run_that_stands_still(tmp_path, capsys):
    path = begun(tmp_path / "w", ["pretrain", "sft", "reward/init_sft"], reward__recipes=("init_sft", "init_demo"))
    training(path / "reward" / "init_demo", steps=40, at=21, checkpoint=15)
    before = snapshot(path)
    shown = told(path, capsys)
    assert shown[0] == f"{path}: not running, 2 of {len(STAGES)} stages done; the same command goes on"
    assert shown[1:3] == ["pretrain done 1 min 15 s", "sft done 1 min 15 s"]
    assert shown[3:7] == ["sample left", "reward stopped 1 of 2 done", "reward/init_sft done 1 min 15 s",
                          "reward/init_demo stopped step 21 of 40; goes on from step 15"]
    assert "policy left 0 of 1 done" in shown and "adversarial left no methods" in shown and shown[-1] == "report left"
    assert snapshot(path) == before


def test_what_runs_now_with_its_rate_and_the_time_that_is_left(tmp_path, capsys):
    path = begun(tmp_path / "w", ["pretrain"])
    training(path / "sft", steps=60, at=21, seconds=10.0)
    with workdir.Workdir(path, tiny_config()) as opened:
        opened.note("sft")
        shown = told(path, capsys)
        with pytest.raises(workdir.UserError, match="another irl_jax process"):  # the lock is where it was
            workdir.Workdir(path, tiny_config())
    assert shown[0].startswith(f"{path}: running: sft: step 21 of 60, 2 steps/s, 19.5 s left; 1 of {len(STAGES)} stages done "
                               f"(process {os.getpid()} on {socket.gethostname()} since 20")
    assert shown[2] == "sft running step 21 of 60, 2 steps/s, 19.5 s left"
    assert told(path, capsys)[2] == "sft stopped step 21 of 60; goes on from its beginning"


def test_samples_that_are_being_drawn(tmp_path, capsys):
    path = begun(tmp_path / "w", ["pretrain", "sft"])
    (path / "samples" / "sft").mkdir(parents=True)
    for number in range(3):
        (path / "samples" / "sft" / f"eval.part{number}-of-7.npz").write_bytes(b"")
    with workdir.Workdir(path, tiny_config()) as opened:
        opened.note("sample")
        assert "sample running sft/eval: 3 of 7 batches" in told(path, capsys)


def test_iterations(tmp_path, capsys):
    path = begun(tmp_path / "w", ["spin/demo/iteration-0"], spin__recipes=("demo",), spin__iterations=3)
    assert "spin/demo stopped iteration 2 of 3" in told(path, capsys)
    training(path / "spin" / "demo" / "iteration-1", steps=50, at=30, checkpoint=30)
    assert "spin/demo stopped iteration 2 of 3, step 30 of 50; goes on from step 30" in told(path, capsys)


def test_a_copy_of_a_run_does_not_run(tmp_path, capsys):
    path = begun(tmp_path / "w", ["pretrain"])
    with workdir.Workdir(path, tiny_config()) as opened:
        opened.note("sft")
        shutil.copytree(path, tmp_path / "copy")
        assert "running" in told(path, capsys)[0] and "not running" in told(tmp_path / "copy", capsys)[0]


@pytest.mark.parametrize("change", [
    lambda note, other: {**note, "pid": other}, lambda note, other: {**note, "pid": 2**31}, lambda note, other: {**note, "pid": 2**33 - 1},
    lambda note, other: {**note, "pid": 0}, lambda note, other: {**note, "born": "0" * 36 + note["born"][36:]},
    lambda note, other: {key: value for key, value in note.items() if key != "born"}, lambda note, other: {**note, "born": ""},
], ids=["another's number", "2^31", "2^33", "0", "another boot", "an older version's", "nothing said"])  # fmt: skip
def test_a_number_that_is_now_another_processs(change, tmp_path, capsys):
    """It is alive and has a lock, but of something else."""
    path = begun(tmp_path / "w", ["pretrain"])
    holds = "import fcntl, sys; f = open(sys.argv[1], 'w'); fcntl.flock(f, fcntl.LOCK_EX); print('up', flush=True); sys.stdin.readline()"
    with subprocess.Popen([sys.executable, "-c", holds, str(tmp_path / "x")], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == b"up\n"
        with workdir.Workdir(path, tiny_config()) as opened:
            opened.note("sft")
            assert "running" in told(path, capsys)[0]
            note = json.loads((path / ".lock").read_text())
            (path / ".lock").write_text(json.dumps(change(note, other.pid)))
            assert "not running" in told(path, capsys)[0]
        other.stdin.close()


def test_a_dead_process_that_nobody_has_waited_for(tmp_path, capsys):
    path = begun(tmp_path / "w", ["pretrain"])
    script = "import sys; from irl_jax.workdir import Workdir; from tiny import tiny_config\nw = Workdir(sys.argv[1], tiny_config())\n" \
             "w.note('sft'); print('up', flush=True); sys.stdin.readline()"
    with subprocess.Popen([sys.executable, "-c", script, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                          env=environment(1)) as process:
        assert process.stdout.readline() == b"up\n" and f"(process {process.pid} on" in told(path, capsys)[0]
        process.send_signal(signal.SIGKILL)
        until = time.monotonic() + 20
        while workdir.born(process.pid) and time.monotonic() < until:
            time.sleep(0.01)
        assert "not running" in told(path, capsys)[0] and process.returncode is None


@pytest.mark.parametrize("make", [lambda lock: os.mkfifo(lock), lambda lock: lock.symlink_to("/dev/zero"), lambda lock: lock.mkdir()])
def test_a_lock_that_is_no_file_says_nothing(make, tmp_path, capsys):
    path = begun(tmp_path / "w", ["pretrain"])
    (path / ".lock").unlink()
    make(path / ".lock")
    assert "not running" in told(path, capsys)[0]


def test_another_machines_process_cannot_be_asked(tmp_path, capsys, monkeypatch):
    path = begun(tmp_path / "w", ["pretrain"])
    training(path / "sft", steps=60, at=21, ago=100.0)
    with workdir.Workdir(path, tiny_config()) as opened:
        opened.note("sft")
        monkeypatch.setattr(socket, "gethostname", lambda: "here")
        shown = told(path, capsys)
    assert "perhaps running: sft: step 21 of 60" in shown[0] and "cannot be asked from here" in shown[0]
    assert "last written 1 min 40 s ago" in shown[2]
    assert "not running" in told(path, capsys)[0]  # nobody is noted where it has ended


def test_a_finished_run_and_an_older_versions(tmp_path, capsys):
    path = begun(tmp_path / "w", STAGES)
    stored = json.loads((path / "config.json").read_text())
    del stored["config"]["log"]
    stored["config"]["sft"]["gone"] = 1
    (path / "config.json").write_text(json.dumps(stored))
    assert told(path, capsys)[0] == f"{path}: finished"


def test_files_that_say_nothing_of_use(tmp_path, capsys):
    path = begun(tmp_path / "w", ["pretrain"])
    training(path / "sft", steps=60, at=21)
    for name, content in (("pretrain/done.json", "[]"), ("sft/progress.json", "{"), (".lock", "\0" * 9)):
        (path / name).write_text(content)
    assert told(path, capsys)[1:3] == ["pretrain done", "sft stopped step 21; goes on from its beginning"]
    (path / "sft" / "metrics.jsonl").write_text("\0\n")
    assert told(path, capsys)[2] == "sft left"


@pytest.mark.parametrize("number", [
    "NaN", "Infinity", "-Infinity", "1e300", "-1", "9" * 400, "9" * 5000, "[]", "null", "true", "[" * 60_000])
def test_numbers_that_are_none(number, tmp_path, capsys):
    path = begun(tmp_path / "w", ["pretrain"])
    training(path / "sft", steps=60, at=21)
    (path / "sft" / "checkpoints" / ("9" * 5000)[:200]).mkdir(parents=True)
    for name, content in (
        (".lock", f'{{"pid": 1, "host": "elsewhere", "since": {number}, "stage": "sft"}}'),
        ("sft/progress.json", f'{{"steps": {number}, "step": {number}, "time": {number}}}'),
        *([("pretrain/done.json", f'{{"timing": {{"seconds": {number}}}}}')] if len(number) < 1000 else []),  # is refused as broken
    ):
        (path / name).write_text(content)
    shown = told(path, capsys)
    assert "not running" in shown[0] and shown[1].startswith("pretrain done")
    assert shown[2] == "sft stopped step 21; goes on from its beginning"
    (path / "sft" / "metrics.jsonl").write_text(f'{{"step": 1}}\n{{"step": {number}}}\n')
    assert told(path, capsys)[2] == "sft left"


def test_a_terminals_commands_are_shown_not_obeyed(tmp_path, capsys):
    path = begun(tmp_path / "w", ["pretrain"])
    (path / ".lock").write_text(json.dumps({"pid": 1, "host": "\x1b[2J\x07", "since": 1.0, "stage": "sft"}))
    assert "on \\x1b[2J\\x07 since" in told(path, capsys)[0]


def test_a_sweep(tmp_path, capsys):
    path = tmp_path / "sweep"
    begun(path / "seed=0", STAGES)
    begun(path / "seed=1", ["pretrain"])
    (path / "sweep.json").write_text(json.dumps({"members": ["seed=0", "seed=1", "seed=2"]}))
    assert told(path, capsys) == [f"{path}: a sweep, 1 of 3 members finished", "seed=0: finished",
                                  f"seed=1: not running, 1 of {len(STAGES)} stages done; the same command goes on", "seed=2: left"]


@pytest.mark.parametrize("make, words", [
    (lambda path: None, "no such folder"), (lambda path: path.mkdir(), "not a workdir (no config.json there)"),
    (lambda path: path.write_text("x"), "not a workdir"),
    (lambda path: (path.mkdir(), (path / "config.json").write_text("{")), "broken JSON"),
    (lambda path: (path.mkdir(), (path / "sweep.json").write_text("[]")), "not a sweep.json"),
])
def test_what_is_no_workdir_is_one_line(make, words, tmp_path, capsys):
    make(tmp_path / "w")
    before = snapshot(tmp_path)
    assert cli.main(["status", str(tmp_path / "w")]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and words in err and snapshot(tmp_path) == before


def test_it_loads_no_jax(tmp_path):
    path = begun(tmp_path / "w", ["pretrain"])
    command = [sys.executable, "-c", f"import sys, irl_jax.cli as c; c.main(['status', {str(path)!r}]); sys.exit('jax' in sys.modules)"]
    assert subprocess.run(command, cwd=ROOT, stdout=subprocess.DEVNULL).returncode == 0


@pytest.mark.slow
def test_beside_a_real_run_that_is_killed(tmp_path, capsys):
    path = tmp_path / "w"
    (tmp_path / "c.py").write_text("from tiny import tiny_config\ndef get_config(name=''):\n    return tiny_config(pretrain__steps=4000)\n")
    process = subprocess.Popen([sys.executable, "-m", "irl_jax", "run", f"--config={tmp_path / 'c.py'}", f"--workdir={path}"],
                               env=environment(1), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    until = time.monotonic() + 120
    while "steps/s" not in (shown := told(path, capsys) if (path / "config.json").exists() else [""])[0]:
        assert process.poll() is None and time.monotonic() < until, shown
        time.sleep(0.2)
    assert shown[0].startswith(f"{path}: running: pretrain: step ") and f"process {process.pid} on" in shown[0] and " of 4000, " in shown[0]
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert "pretrain stopped step" in told(path, capsys)[1] and status.holder(path).where == ""
