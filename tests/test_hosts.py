"""Several processes as one run, on 127.0.0.1: the same numbers, one writer, and an end where one of them dies, hangs or is stopped."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from hosts import ROOT, environment, finish, free_port, start
from test_eight_devices import CASES, KINDS, TOLERANCE

CONFIG = """
import sys
from tiny import tiny_config
def get_config(name=""):
    return tiny_config(pretrain__steps=60, sft__steps=12, checkpoint__every_steps=7, checkpoint__every_seconds=1e9)
"""


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    path = tmp_path_factory.mktemp("config") / "tiny_run.py"
    path.write_text(CONFIG)
    return path


def command(config, workdir, *more):
    return ["-m", "irl_jax", "run", f"--config={config}", f"--workdir={workdir}", "--stages=pretrain,sft,sample", "--patience=40", *more]


def run_alone(config, workdir, devices):
    done = subprocess.run([sys.executable, *command(config, workdir)[:-1]], env=environment(devices), capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr[-3000:]


def run_together(config, workdir, processes=2, devices=1):
    ends = finish(start(command(config, workdir), processes, devices, stdout=subprocess.DEVNULL))
    assert [status for status, _ in ends] == [0] * processes, ends


def metrics(workdir, stage):
    lines = (workdir / stage / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def leaves_bytes(workdir, stage):
    """Every leaf of a finished role, bit by bit."""
    from irl_jax import checkpoint

    folder = workdir / stage / "leaves"
    described = json.loads((folder / str(checkpoint.latest_step(folder)) / "manifest.json").read_text())["leaves"]
    tree = checkpoint.load_tree(folder, {name: np.zeros(shape, dtype) for name, (shape, dtype) in described.items()})
    return {name: leaf.tobytes() for name, leaf in tree.items()}


@pytest.fixture(scope="module")
def together(config, tmp_path_factory):
    """The run by two processes, not disturbed."""
    workdir = tmp_path_factory.mktemp("together") / "w"
    run_together(config, workdir)
    return workdir


def wait_for(workdir, stage, step, running, seconds=300):
    """Returns once `stage` has logged `step`."""
    path, until = workdir / stage / "metrics.jsonl", time.monotonic() + seconds
    while time.monotonic() < until:
        assert all(process.poll() is None for process in running), [process.stderr.read()[-2000:] for process in running if process.poll()]
        if path.exists() and f'"step": {step},' in path.read_text():
            return
        time.sleep(0.05)
    raise AssertionError(f"{stage} did not reach step {step}")


@pytest.mark.slow
def test_two_processes_give_one_processs_losses_and_samples(config, together, tmp_path):
    run_alone(config, tmp_path / "w", devices=2)
    for stage in ("pretrain", "sft"):
        one, two = metrics(tmp_path / "w", stage), metrics(together, stage)
        assert [line["step"] for line in two] == [line["step"] for line in one]
        for name in ("loss", "grad_norm"):
            np.testing.assert_allclose([line[name] for line in two], [line[name] for line in one], rtol=TOLERANCE)
    for role in ("init", "sft"):
        one, two = (np.load(workdir / "samples" / role / "reward.npz") for workdir in (tmp_path / "w", together))
        first_unlike = ((one["tokens"] != two["tokens"]).any(-1)).sum()  # at most one token a response differs first
        assert first_unlike <= 1 + one["mask"].sum() / 10_000
    assert not list(together.rglob("*.tmp")) and not list(together.rglob(".unfinished*"))


@pytest.mark.slow
@pytest.mark.parametrize("lost", [0, 1])
def test_where_one_process_dies_the_other_ends_and_a_new_pair_goes_on(config, together, tmp_path, lost):
    """The restarted pair ends bitwise as the one that nobody disturbed; process 0 coordinates, so both are tried."""
    running = start(command(config, tmp_path / "w"), 2, 1, stdout=subprocess.DEVNULL)
    wait_for(tmp_path / "w", "pretrain", 20, running)
    running[lost].kill()
    died = time.monotonic()
    status, said = finish([running[1 - lost]], timeout=60)[0]
    running[lost].wait()
    assert status == 75 and time.monotonic() - died < 60
    last = said.strip().splitlines()[-1]
    assert last.startswith(f"irl_jax: error: process {1 - lost} at pretrain, step") and f"process {lost}" in last.split(": ", 3)[3], last
    run_together(config, tmp_path / "w")
    for stage in ("pretrain", "sft"):
        assert leaves_bytes(tmp_path / "w", stage) == leaves_bytes(together, stage)
        assert metrics(tmp_path / "w", stage) == metrics(together, stage)


@pytest.mark.slow
def test_where_one_process_hangs_both_end(config, tmp_path):
    running = start(command(config, tmp_path / "w"), 2, 1, stdout=subprocess.DEVNULL)
    wait_for(tmp_path / "w", "pretrain", 10, running)
    running[1].send_signal(signal.SIGSTOP)
    stopped = time.monotonic()
    status, said = finish(running[:1], timeout=60)[0]
    assert status == 75 and time.monotonic() - stopped < 60 and "process 1" in said.strip().splitlines()[-1]
    running[1].send_signal(signal.SIGCONT)
    assert finish(running[1:], timeout=60)[0][0] == 75  # its coordinator has gone meanwhile


def test_a_thread_that_stands_still_is_noticed_too(tmp_path):
    """The process lives and gives its signs of life, but its main thread does not go on."""
    script = tmp_path / "stuck.py"
    script.write_text("""
import sys, time
from irl_jax import distributed
flags = dict(argument[2:].partition("=")[::2] for argument in sys.argv[1:])
distributed.initialize(flags["coordinator"], int(flags["processes"]), int(flags["process"]), patience=40)
distributed.at("sft", 3)
if flags["process"] == "1":
    time.sleep(1000)
distributed.barrier()
""")
    (status, said), _ = finish(start([str(script)], 2, 1), timeout=60)
    assert status == 75 and "process 0 at sft, step 3: process 1 has stood still for" in said


@pytest.mark.slow
def test_preemption_of_one_host_saves_and_ends_all(config, together, tmp_path):
    running = start(command(config, tmp_path / "w"), 2, 1, stdout=subprocess.DEVNULL)
    wait_for(tmp_path / "w", "pretrain", 25, running)
    running[1].send_signal(signal.SIGTERM)
    ends = finish(running, timeout=60)
    assert [status for status, _ in ends] == [128 + signal.SIGTERM] * 2, ends
    saved = [int(path.name) for path in (tmp_path / "w" / "pretrain" / "checkpoints").iterdir()]
    assert max(saved) >= 25
    run_together(config, tmp_path / "w")
    assert leaves_bytes(tmp_path / "w", "sft") == leaves_bytes(together, "sft")


def test_a_users_mistake_is_one_line_of_each(config, tmp_path):
    (tmp_path / "w").mkdir()
    (tmp_path / "w" / "foreign.txt").write_text("not ours")
    ends = finish(start(command(config, tmp_path / "w"), 2, 1, stdout=subprocess.DEVNULL), timeout=100)
    for status, said in ends:
        assert status == 2 and "not empty and not a workdir" in said.strip().splitlines()[-1], said


COUNT = 5  # steps of each kind
STEPS = [os.path.join(ROOT, "tests", "test_eight_devices.py"), f"--steps={COUNT}"]


@pytest.fixture(scope="module")
def alone():
    """What every kind of step says on one device."""
    done = subprocess.run([sys.executable, *STEPS, "alone"], env=environment(1), capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.parametrize(("processes", "devices", "kinds"), [(2, 4, KINDS), (4, 2, ("sft", "policy"))])
def test_every_kind_of_step_on_many_hosts_equals_one_device(processes, devices, kinds, alone):
    running = start([*STEPS, f"--kinds={','.join(kinds)}"], processes, devices, stdout=subprocess.PIPE)
    outputs = [process.communicate(timeout=900)[0] for process in running]
    assert [process.returncode for process in running] == [0] * processes
    cases = {f"{kind}/{rank}" for kind, rank in CASES if kind in kinds}
    for output in outputs:
        many = json.loads(output.splitlines()[-1])
        assert set(many) == cases
        for case in cases:
            (here,), (there,) = many[case], alone[case]
            assert len(here["losses"]) == COUNT
            np.testing.assert_allclose(here["losses"], there["losses"], rtol=TOLERANCE, err_msg=case)
            assert here["split"] == (4 if case.endswith("/4") else 8) and here["kept"]


def test_bad_flags_are_one_line():
    base = ["run", "--workdir=w"]
    for flags, word in ([["--coordinator=h:1"], "need --multihost"], [["--multihost", "--processes=2"], "go together"],
                        [["--multihost", "--coordinator=h", "--processes=2", "--process=0"], "HOST:PORT"],
                        [["--multihost", f"--coordinator=h:{free_port()}", "--processes=2", "--process=2"], "counted from 0"]):
        done = subprocess.run([sys.executable, "-m", "irl_jax", *base, *flags], env=environment(1), capture_output=True, text=True, timeout=100)
        assert done.returncode == 2 and word in done.stderr and len(done.stderr.strip().splitlines()) == 1, done.stderr
