"""What can be followed: events and Weights & Biases say what metrics.jsonl says, also after a kill; bars on terminals only."""

import json
import os
import pathlib
import pty
import subprocess
import sys
import termios
import types

import events
import numpy as np
import pytest
from ml_collections import ConfigDict
from test_loop import Killed, checkpointing, distance, killing, lines, run

from irl_jax import cli, distributed, tracking
from irl_jax.errors import UserError


def settings(tensorboard=True, wandb=""):
    return ConfigDict({"tensorboard": tensorboard, "wandb": wandb})


def assert_events_are_the_lines(folder):
    """One event a line of metrics.jsonl, with its step and (as float32) its numbers."""
    told = lines(folder)
    found = events.rows(folder)
    assert [step for step, _ in found] == [line["step"] for line in told]
    for (_, values), line in zip(found, told, strict=True):
        assert set(values) == set(line) - {"step"}
        assert all(np.float32(line[name]) == np.float32(value) for name, value in values.items())


def test_events_say_what_metrics_jsonl_says(tmp_path):
    run(tmp_path, steps=5, log=settings(), evaluate=distance, eval_every=2)
    assert len(lines(tmp_path)) == 8  # three looks
    assert_events_are_the_lines(tmp_path)
    (file,) = tmp_path.glob("*tfevents*")
    assert events.of_file(file)[0].file_version == "brain.Event:2"
    assert json.loads((tmp_path / "progress.json").read_text())["steps"] == 5


def test_they_import_no_torch(tmp_path):
    (tmp_path / "torch.py").write_text("")
    script = "import sys\nfrom irl_jax import tracking\ntracking._event({'a': 1.0}, step=1)\nassert 'torch' not in sys.modules\nimport torch"
    root = pathlib.Path(__file__).resolve().parent.parent
    subprocess.run([sys.executable, "-c", script], check=True, env=os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{root}"})


def test_without_them_there_is_metrics_jsonl_alone(tmp_path):
    run(tmp_path, steps=2, log=settings(tensorboard=False))
    run(tmp_path, steps=4, log=settings(tensorboard=False))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoints", "metrics.jsonl", "progress.json"]


@pytest.mark.parametrize("at", [1, 5, 11])
def test_killed_and_resumed_events_repeat_and_contradict_nothing(tmp_path, at):
    """Also where a session had written more than its last checkpoint, and a kill cut the last record short."""
    options = {"evaluate": distance, "eval_every": 2, "log": settings()}
    with pytest.raises(Killed):
        run(tmp_path, feed=killing(at), checkpoint=checkpointing(every_steps=3), **options)
    before = {event.step: event.wall_time for file in tmp_path.glob("*tfevents*") for event in events.of_file(file)}
    assert at < 3 or max(before) > at // 3 * 3  # past the checkpoint, these come again
    for file in tmp_path.glob("*tfevents*"):
        file.write_bytes(file.read_bytes() + b"\x20\0\0\0\0\0\0\0cut sho")
    run(tmp_path, checkpoint=checkpointing(every_steps=3), **options)
    assert_events_are_the_lines(tmp_path)
    (file,) = tmp_path.glob("*tfevents*")
    told = events.of_file(file)
    assert file.name.endswith("000002" if before else "000001")
    kept = {event.step: event.wall_time for event in told if event.HasField("summary") and event.step <= at // 3 * 3}
    assert kept == {step: time for step, time in before.items() if step in kept}  # at the time that they were first told
    if before:  # who has read more forgets it
        assert (told[1].session_log.status, told[1].step) == (1, 1)


def test_events_come_with_a_run_that_had_none(tmp_path):
    with pytest.raises(Killed):
        run(tmp_path, feed=killing(7), checkpoint=checkpointing(every_steps=3), log=settings(tensorboard=False))
    run(tmp_path, checkpoint=checkpointing(every_steps=3), log=settings())
    assert_events_are_the_lines(tmp_path)


def test_events_that_were_switched_off_still_do_not_contradict(tmp_path):
    with pytest.raises(Killed):
        run(tmp_path, feed=killing(8), checkpoint=checkpointing(every_steps=3), log=settings())
    run(tmp_path, checkpoint=checkpointing(every_steps=3), log=settings(tensorboard=False))
    assert [step for step, _ in events.rows(tmp_path)] == [1, 2, 3, 4, 5, 6] and len(lines(tmp_path)) == 12


def test_other_files_of_that_kind_are_left_alone(tmp_path):
    (tmp_path / "events.out.tfevents.1700000000.somewhere").write_bytes(b"")
    run(tmp_path, steps=2, log=settings())
    run(tmp_path, steps=2, log=settings())
    assert {path.name.removeprefix(tracking.EVENTS) for path in tmp_path.glob("*tfevents*")} == {"000002", "1700000000.somewhere"}


def test_only_process_0_writes(tmp_path, monkeypatch):
    monkeypatch.setattr(distributed, "is_primary", lambda: False)
    tracker = tracking.Tracker(tmp_path, "sft", settings(), 0, 5)
    tracker.add(1, {"loss": 1.0})
    tracker.close()
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------------------------------------------ Weights & Biases


@pytest.fixture
def wandb(monkeypatch):
    """A stand-in that keeps rows as the service does: of one run by its id, steps only growing."""
    stand_in = types.ModuleType("wandb")
    stand_in.__spec__ = types.SimpleNamespace(origin="here")
    stand_in.runs, stand_in.inits, stand_in.logged_in, stand_in.failure, stand_in.mode = {}, [], True, None, "online"
    stand_in.setup = lambda: types.SimpleNamespace(settings=types.SimpleNamespace(mode=stand_in.mode))
    stand_in.errors = types.SimpleNamespace(Error=type("Error", (Exception,), {}))
    stand_in.Settings = lambda **how: how
    stand_in.login = lambda prompt, verify: stand_in.logged_in

    class Run:
        url, offline = "https://wandb.example/run", False

        def __init__(self, history):
            self.history, self.finished = history, False

        def log(self, values, step):
            if step >= max(self.history, default=0):
                self.history.setdefault(step, {}).update(values)

        def finish(self):
            self.finished = True

    def init(**how):
        if stand_in.failure:
            raise stand_in.failure
        stand_in.inits.append(how)
        return Run(stand_in.runs.setdefault(how["id"], {}))

    stand_in.init = init
    monkeypatch.setitem(sys.modules, "wandb", stand_in)
    return stand_in


def test_a_resumed_stage_goes_on_with_its_run(tmp_path, wandb, capsys):
    folder, log = tmp_path / "w" / "sft", settings(wandb="alignment")
    (tmp_path / "w").mkdir()
    (tmp_path / "w" / "config.json").write_text(json.dumps({"config": {"seed": 3}}))
    with pytest.raises(Killed):
        run(folder, feed=killing(8), checkpoint=checkpointing(every_steps=3), log=log)
    run(folder, checkpoint=checkpointing(every_steps=3), log=log, evaluate=None)
    one, two = wandb.inits
    assert one == two and (one["project"], one["group"], one["name"], one["job_type"]) == ("alignment", "w", "w/sft", "sft")
    assert one["config"] == {"seed": 3} and one["dir"] == str(folder) and one["resume"] == "allow"
    (history,) = wandb.runs.values()
    assert [{"step": step, **row} for step, row in history.items()] == lines(folder)
    assert "irl_jax: sft: https://wandb.example/run" in capsys.readouterr().err
    run(folder, steps=12, checkpoint=checkpointing(every_steps=3), log=settings(wandb="another"))
    assert len({how["id"] for how in wandb.inits}) == 2  # a project of its own, a run of its own


def test_without_a_connection_training_goes_on(tmp_path, wandb, capsys):
    wandb.failure = wandb.errors.Error("no\nnetwork")
    run(tmp_path, steps=3, log=settings(wandb="p"))
    assert "sft: no Weights & Biases (no network); going on without" in capsys.readouterr().err
    assert_events_are_the_lines(tmp_path)


def test_a_connection_that_goes_ends_no_training(tmp_path, wandb, capsys):
    def gone(run, values, step):
        raise BrokenPipeError("the service has gone")

    type(wandb.init(id="x")).log = gone
    run(tmp_path, steps=3, log=settings(wandb="p"))
    assert capsys.readouterr().err.count("no Weights & Biases (the service has gone); going on without") == 1
    assert_events_are_the_lines(tmp_path)


def refused(capsys, tmp_path, *flags) -> str:
    assert cli.main(["run", f"--workdir={tmp_path / 'w'}", *flags]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and not (tmp_path / "w").exists()
    return error


def test_a_missing_package_is_one_line_before_anything(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    monkeypatch.setattr(tracking.importlib.util, "find_spec", lambda name: None)
    assert "pip install 'irl_jax[wandb]'" in refused(capsys, tmp_path, "--config.log.wandb=p")


def test_a_folder_of_that_name_is_not_the_package(tmp_path, capsys, monkeypatch):
    (tmp_path / "wandb").mkdir()
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    with pytest.raises(UserError, match="not installed"):
        tracking.check(settings(wandb="p"))


def test_no_login_is_one_line_before_anything(tmp_path, capsys, wandb):
    wandb.logged_in = False
    assert "not logged in" in refused(capsys, tmp_path, "--config.log.wandb=p")
    wandb.mode = "offline"
    tracking.check(settings(wandb="p"))


@pytest.mark.parametrize("project", ["a/b", " ", "x" * 200, "a?b"])
def test_a_project_that_cannot_be(project, tmp_path, capsys, wandb):
    assert "a project's name" in refused(capsys, tmp_path, f"--config.log.wandb={project}")


# ----------------------------------------------------------------------------------------------------------------- bars

_BARS = """
import sys, time
from irl_jax import progress
for _ in progress.bar(range(5), desc="score", unit="batch"):
    time.sleep(0.03)
with progress.bar(total=60, initial=3, desc="sft", unit="step") as bar:
    for _ in range(20):
        time.sleep(0.01)
        bar.update(1)
"""


def test_bars_tell_rate_and_time_left_on_a_terminal_and_are_quiet_elsewhere():
    from conftest import ROOT

    done = subprocess.run([sys.executable, "-c", _BARS], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    mine, theirs = pty.openpty()
    termios.tcsetwinsize(mine, (24, 100))
    process = subprocess.Popen([sys.executable, "-c", _BARS], cwd=ROOT, stderr=theirs)
    os.close(theirs)
    shown = b""
    while True:
        try:
            part = os.read(mine, 4096)
        except OSError:  # its end is closed
            break
        if not part:
            break
        shown += part
    os.close(mine)
    assert process.wait() == 0
    assert b"score:" in shown and b"batch/s]" in shown and b"/60 [" in shown and b"step/s" in shown
    assert any(b"<" in line and b"/60" in line for line in shown.split(b"\r"))  # elapsed<left


def test_a_process_that_is_not_the_first_shows_no_bar(monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    from irl_jax import progress

    assert not progress.bar(range(3)).disable
    monkeypatch.setattr(distributed, "is_primary", lambda: False)
    assert progress.bar(range(3)).disable
