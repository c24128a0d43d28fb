"""Sweeps: the product of values, each a run of its own, checked before anything begins, and gone on with."""

import fcntl
import json
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import pytest
from hosts import environment

from irl_jax import cli, sweep
from irl_jax.config import default
from irl_jax.errors import UserError

ROOT = pathlib.Path(__file__).resolve().parent.parent


@pytest.fixture
def runs(monkeypatch):
    """The arguments of the members' processes, instead of the processes; .status is what they end with."""

    class Calls(list):
        status = 0

        def __call__(self, flags):
            self.append(flags)
            return self.status

    calls = Calls()
    monkeypatch.setattr(sweep, "_run_apart", calls)
    return calls


def test_the_product_of_the_values_each_in_its_folder(tmp_path, runs, capsys):
    path = tmp_path / "s"
    config = tmp_path / "c.py"
    config.write_text("from irl_jax.config import default\ndef get_config():\n    c = default()\n    c.sft.steps = 7\n    return c\n")
    assert cli.main(["run", f"--config={config}", f"--workdir={path}", "--sweep=seed=0,1", "--sweep=sft.learning_rate=1e-3, 2e-3",
                     "--config.eval.prompts=8", "--stages=pretrain", "--patience=30", "--compilation_cache="]) == 0  # fmt: skip
    names = ["seed=0,sft.learning_rate=0.001", "seed=0,sft.learning_rate=0.002", "seed=1,sft.learning_rate=0.001",
             "seed=1,sft.learning_rate=0.002"]
    assert json.loads((path / "sweep.json").read_text()) == {"members": names}
    passed = ["--stages=pretrain", "--patience=30.0", "--compilation_cache="]
    assert runs[0] == [f"--workdir={path}/{names[0]}", *passed, "--config.eval.prompts=8", "--config.sft.learning_rate=0.001",
                       "--config.sft.steps=7"]
    assert "--config.seed=1" in runs[3] and [flags[0] for flags in runs] == [f"--workdir={path}/{name}" for name in names]
    assert "sweep: 3 of 4: seed=1,sft.learning_rate=0.001\n" in capsys.readouterr().out
    assert cli.main(["run", f"--workdir={path}", "--sweep=seed=1,5"]) == 0  # more members
    assert json.loads((path / "sweep.json").read_text()) == {"members": [*names, "seed=1", "seed=5"]}


def test_a_member_is_told_its_config_as_it_was_checked():
    config = default()
    config.variants = ("policy/a = init_sft policy.epochs=1",)
    (member,) = sweep.members(config, ["reward.recipes=(init_sft,init_demo)"], {})
    arguments, overrides = cli.parse(["run", "--workdir=w", *sweep.arguments(member.config)])
    again = cli._configured(arguments, overrides)
    assert again == member.config and again.reward.recipes == ("init_sft", "init_demo")


@pytest.mark.parametrize("given, names", [
    (["policy.recipes=(init_sft),(init_sft,init_demo),()"],
     ["policy.recipes=init_sft", "policy.recipes=init_sft+init_demo", "policy.recipes="]),
    (["eval.best_of=(1,2),[4]"], ["eval.best_of=1+2", "eval.best_of=4"]),
    (["data.source=a,'b,c.jsonl',../../etc/X"], ["data.source=a", "data.source=b_c.jsonl-", "data.source=.._.._etc_x-"]),
    (["mesh.data=-1,1"], ["mesh.data=-1", "mesh.data=1"]),
    (["sft.packing=true,False"], ["sft.packing=True", "sft.packing=False"]),
], ids=lambda part: part[0] if isinstance(part, list) else "")  # fmt: skip
def test_values_and_the_names_of_their_folders(given, names):
    found = [member.name for member in sweep.members(default(), given, {})]
    assert len(found) == len(names) == len(set(found))
    for name, start in zip(found, names, strict=True):
        assert name == start or start.endswith("-") and name.startswith(start) and len(name) == len(start) + 8, found
        assert "/" not in name and name.isascii() and not name.startswith(".")


def test_no_two_values_share_a_folder():
    texts = ["a/b", "a_b", "A_b", "a_b-" + sweep._hash("a/b"), "é", "x" * 300, "x" * 301, " a_b", "a\0b", "a\nb", "", "..", "a+b"]
    names = [sweep.name_of({"model.path": text}) for text in texts] + [sweep.name_of({"model.path": ("a", "b")}),
                                                                     sweep.name_of({"model.path": ("a+b",)})]
    lowered = [name.lower() for name in names]
    assert len(set(lowered[:-2])) == len(texts) and len(set(lowered[-2:])) == 2
    assert all(len(name.encode()) < 255 and not set(name) & set("/\\\0\n :*?\"<>|") for name in names)


@pytest.mark.parametrize("flags, words", [
    (["--sweep=sed=0,1"], "unknown config key 'sed'; did you mean 'seed'"),
    (["--sweep=seed=0,x"], "--sweep=seed=x: takes a whole number"),
    (["--sweep=seed=0,0"], "the value 0 is given twice"),
    (["--sweep=sft.learning_rate=1e-3,0.001"], "the value 0.001 is given twice"),
    (["--sweep=seed=0,1", "--sweep=seed=2"], "seed is given twice"),
    (["--sweep=seed=0,1", "--config.seed=3"], "seed is given twice"),
    (["--sweep=seed"], "--sweep=KEY=V1,V2"), (["--sweep=seed="], "--sweep=KEY=V1,V2"), (["--sweep="], "--sweep=KEY=V1,V2"),
    (["--sweep=sft=1,2"], "--sweep=sft is a section"),
    (["--sweep=reward.recipes=init_sft,init_demo"], "write each choice in brackets: reward.recipes=(a,b),(c),()"),
    (["--sweep=reward.recipes=(init_sft"], "not closed"),
    (["--sweep=sft.steps=5,-1"], "sft.steps=-1: config.sft.steps = -1: must not be negative"),
    (["--sweep=seed=0,1", "--stages=sfft"], "unknown stage 'sfft'"),
    (["--sweep=seed=0,1", "--sweep=policy.recipes=(init_sft),(init_dem)"], "unknown 'init_dem'"),
])
def test_everything_is_checked_before_anything_runs(flags, words, tmp_path, runs, capsys):
    assert cli.main(["run", f"--workdir={tmp_path / 's'}", *flags]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and words in err, err
    assert runs == [] and not (tmp_path / "s").exists()


@pytest.mark.parametrize("make, words", [
    (lambda path: path.write_text(""), "is a file"), (lambda path: (path.mkdir(), (path / "config.json").write_text("{}")), "one run"),
    (lambda path: (path.mkdir(), (path / "notes").write_text("")), "not a sweep's folder"),
])
def test_a_folder_that_is_something_else(make, words, tmp_path, runs, capsys):
    make(tmp_path / "s")
    assert cli.main(["run", f"--workdir={tmp_path / 's'}", "--sweep=seed=0,1"]) == 2
    assert words in capsys.readouterr().err and runs == []


def test_two_sweeps_at_once_keep_each_others_members(tmp_path, monkeypatch):
    write, others = sweep.paths.write, []

    def write_beside_another(path, fill):
        if not others:  # another begins just when the first has read what is there
            others.append(threading.Thread(target=sweep._note, args=(path.parent, ["seed=1", "seed=2"])))
            others[0].start()
            others[0].join(0.5)
        write(path, fill)

    monkeypatch.setattr(sweep.paths, "write", write_beside_another)
    sweep._note(tmp_path / "s", ["seed=0", "seed=2"])
    others[0].join()
    assert sorted(sweep.names_in(tmp_path / "s")) == ["seed=0", "seed=1", "seed=2"]


def test_a_sweeps_folder_that_somebody_keeps_to_himself(tmp_path, runs, monkeypatch, capsys):
    monkeypatch.setattr(sweep, "_PATIENCE", 0.1)
    (tmp_path / "s").mkdir()
    with open(tmp_path / "s" / ".lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert cli.main(["run", f"--workdir={tmp_path / 's'}", "--sweep=seed=0,1"]) == 2
    assert "s: another irl_jax process is using this folder; wait for it" in capsys.readouterr().err and runs == []
    assert cli.main(["run", f"--workdir={tmp_path / 's'}", "--sweep=seed=0,1"]) == 0


def test_a_sweeps_folder_is_no_runs_workdir(tmp_path, runs):
    assert cli.main(["run", f"--workdir={tmp_path / 's'}", "--sweep=seed=0,1"]) == 0
    from irl_jax.workdir import Workdir

    with pytest.raises(UserError, match="not a workdir"):
        Workdir(tmp_path / "s", default())


@pytest.mark.parametrize("status", [1, 2, 143])
def test_the_first_that_fails_ends_the_sweep(status, tmp_path, runs, capsys):
    runs.status = status
    assert cli.main(["run", f"--workdir={tmp_path / 's'}", "--sweep=seed=0,1"]) == status
    assert len(runs) == 1 and f"irl_jax: sweep: seed=0 ended with status {status}; the same command" in capsys.readouterr().err


def _script(body: str) -> str:
    """A parent whose members are this Python code instead of a run."""
    return f"import subprocess, sys\nfrom irl_jax import sweep\nbody = {body!r}\nplain = subprocess.Popen\n" \
           "sweep.subprocess.Popen = lambda command, **how: plain([sys.executable, '-c', body], **how)\nsys.exit(sweep._run_apart([]))\n"


@pytest.mark.parametrize("number, body, ends", [
    (signal.SIGTERM, "import time; print('up', flush=True); time.sleep(60)", 143),
    (signal.SIGINT, "import time; print('up', flush=True); time.sleep(60)", 130),
    (signal.SIGTERM, "import signal, sys, time\nsignal.signal(15, lambda *_: sys.exit(143))\nprint('up', flush=True)\ntime.sleep(60)", 143),
    (signal.SIGTERM, "import signal, time\nseen = []\nsignal.signal(15, lambda *_: seen.append(1))\nprint('up', flush=True)\n"
                     "while not seen: time.sleep(0.01)", 143),
    (0, "print('up', flush=True); raise SystemExit(2)", 2), (0, "import os\nprint('up', flush=True)\nos.kill(os.getpid(), 9)", 137),
])  # fmt: skip
def test_signals_are_passed_on_and_the_member_is_waited_for(number, body, ends):
    process = subprocess.Popen([sys.executable, "-c", _script(body)], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout.readline() == b"up\n"
    if number:
        process.send_signal(number)
    process.communicate(timeout=20)
    assert process.returncode == ends


@pytest.mark.slow
def test_a_real_sweep_that_is_stopped_and_goes_on(tmp_path):
    """SIGTERM in the second member saves a checkpoint there; the same command does what is left and nothing twice."""
    path = tmp_path / "s"
    (tmp_path / "c.py").write_text("from tiny import tiny_config\ndef get_config(name=''):\n    return tiny_config(pretrain__steps=300)\n")
    command = [sys.executable, "-m", "irl_jax", "run", f"--config={tmp_path / 'c.py'}", f"--workdir={path}", "--sweep=seed=0,1",
               "--stages=pretrain"]
    process = subprocess.Popen(command, env=environment(1), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    until = time.monotonic() + 200
    while not (path / "seed=1" / "pretrain" / "progress.json").exists():
        assert process.poll() is None and time.monotonic() < until
        time.sleep(0.05)
    process.terminate()
    out, err = process.communicate(timeout=60)
    assert process.returncode == 143 and "SIGTERM after step" in err and "sweep: seed=1 ended with status 143" in err, err
    (tmp_path / "c.py").write_text((tmp_path / "c.py").read_text().replace("300", "300 "))
    before = os.stat(path / "seed=0" / "pretrain" / "done.json").st_mtime_ns
    done = subprocess.run(command, env=environment(1), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "nothing to do: pretrain done already" in done.stdout and (path / "seed=1" / "pretrain" / "done.json").exists()
    assert os.stat(path / "seed=0" / "pretrain" / "done.json").st_mtime_ns == before
    shown = subprocess.run([sys.executable, "-m", "irl_jax", "status", str(path)], cwd=ROOT, capture_output=True, text=True).stdout
    assert "seed=1: not running, 1 of" in shown
