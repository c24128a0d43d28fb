"""The train loop: exact resume, early stopping, preemption, metrics."""

import json
import os
import signal
import subprocess
import sys
import time
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict

from irl_jax import loop
from irl_jax.errors import UserError
from irl_jax.types import TrainState

OPTIMIZER = optax.adamw(0.05)
TARGET = jnp.arange(4.0)


def checkpointing(every_steps=0, every_seconds=1e9, keep=2):
    return ConfigDict({"every_steps": every_steps, "every_seconds": every_seconds, "keep": keep})


def start():
    leaves = {"w": jnp.zeros(4)}
    return TrainState(leaves, OPTIMIZER.init(leaves), jnp.zeros((), jnp.int32))


def plain_step(state, trunk, batch, rng):
    def loss(leaves):
        noise = 0.1 * jax.random.normal(rng, (4,))
        return jnp.sum((leaves["w"] * trunk + noise - batch) ** 2)

    value, grads = jax.value_and_grad(loss)(state.leaves)
    updates, opt_state = OPTIMIZER.update(grads, state.opt_state, state.leaves)
    metrics = {"loss": value, "grad_norm": optax.global_norm(grads), "tokens": jnp.asarray(10.0)}
    return TrainState(optax.apply_updates(state.leaves, updates), opt_state, state.step + 1), metrics


STEP = jax.jit(plain_step, donate_argnums=0)


def feed(number):
    return TARGET + 0.1 * jax.random.normal(jax.random.fold_in(jax.random.key(9), number), (4,))


def run(directory, steps=12, step=STEP, feed=feed, checkpoint=None, **options):
    return loop.train(
        step, start(), jnp.ones(4), feed, steps=steps, key=jax.random.key(0), directory=directory,
        checkpoint=checkpoint or checkpointing(), name="sft", **options,
    )  # fmt: skip


def lines(directory):
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def assert_same(a, b):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


class Killed(Exception):
    """Stands for kill -9: whatever was on disk stays, nothing else."""


def killing(at, feed=feed):
    def killed(number):
        if number == at:
            raise Killed
        return feed(number)

    return killed


def distance(state):
    return {"heldout_loss": jnp.sum((state.leaves["w"] - TARGET) ** 2)}


def test_equals_a_plain_python_loop(tmp_path):
    state = start()
    losses = []
    for number in range(5):
        state, metrics = STEP(state, jnp.ones(4), feed(number), jax.random.fold_in(jax.random.key(0), number))
        losses.append(float(metrics["loss"]))
    trained, info = run(tmp_path, steps=5)
    assert_same(trained, state)
    assert [line["step"] for line in lines(tmp_path)] == [1, 2, 3, 4, 5]
    assert [line["loss"] for line in lines(tmp_path)] == losses
    assert info["steps"] == 5 and info["seconds"] > info["compile_seconds"] >= 0
    np.testing.assert_allclose(info["tokens_per_second"], 50 / (info["seconds"] - info["compile_seconds"]))


@pytest.mark.parametrize("at", [1, 5, 11])
def test_killed_and_resumed_is_bitwise_the_same(tmp_path, at):
    options = {"evaluate": distance, "eval_every": 2, "patience": 20}
    expected, expected_info = run(tmp_path / "a", **options)
    with pytest.raises(Killed):
        run(tmp_path / "b", feed=killing(at), checkpoint=checkpointing(every_steps=3), **options)
    resumed, info = run(tmp_path / "b", checkpoint=checkpointing(every_steps=3), **options)
    assert_same(resumed, expected)
    assert {k: info[k] for k in ("best_step", "heldout_loss", "steps")} == {
        k: expected_info[k] for k in ("best_step", "heldout_loss", "steps")
    }
    assert lines(tmp_path / "b") == lines(tmp_path / "a")


def test_finished_run_does_nothing(tmp_path):
    trained, _ = run(tmp_path, evaluate=distance, eval_every=4)
    before = lines(tmp_path)
    again, info = run(tmp_path, evaluate=distance, eval_every=4, feed=killing(0, None))
    assert_same(again, trained)
    assert lines(tmp_path) == before and info["best_step"] == 12


def test_lines_past_the_checkpoint_are_dropped(tmp_path):
    with pytest.raises(Killed):
        run(tmp_path, feed=killing(7), checkpoint=checkpointing(every_steps=4))
    assert [line["step"] for line in lines(tmp_path)] == [1, 2, 3, 4, 5, 6]
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 7, "lo')
    with pytest.raises(Killed):
        run(tmp_path, feed=killing(4), checkpoint=checkpointing(every_steps=4))
    assert [line["step"] for line in lines(tmp_path)] == [1, 2, 3, 4]


def scripted(losses):
    """evaluate() that gives the listed losses, by step."""
    return lambda state: {"heldout_loss": losses[int(state.step)]}


def test_best_leaves_are_returned_and_patience_stops(tmp_path):
    losses = {2: 3.0, 4: 1.0, 6: 1.0, 8: 2.0, 10: 0.0, 12: 0.0}
    trained, info = run(tmp_path / "a", evaluate=scripted(losses), eval_every=2, patience=2)
    assert info["best_step"] == 4 and info["heldout_loss"] == 1.0 and info["steps"] == 8
    assert_same(trained.leaves, run(tmp_path / "b", steps=4)[0].leaves)
    assert int(trained.step) == 8


@pytest.mark.parametrize("at", [3, 5, 6, 7])
def test_patience_survives_a_kill(tmp_path, at):
    losses = {2: 3.0, 4: 1.0, 6: 1.5, 8: 2.0, 10: 0.0, 12: 0.0}
    options = {"evaluate": scripted(losses), "eval_every": 2, "patience": 2, "checkpoint": checkpointing(every_steps=1)}
    expected, _ = run(tmp_path / "a", **options)
    with pytest.raises(Killed):
        run(tmp_path / "b", feed=killing(at), **options)
    resumed, info = run(tmp_path / "b", **options)
    assert_same(resumed, expected)
    assert (info["best_step"], info["steps"]) == (4, 8)


def test_evaluates_once_at_the_end(tmp_path):
    seen = []

    def evaluate(state):
        seen.append(int(state.step))
        return {"heldout_loss": 1.0, "accuracy": 0.5}

    run(tmp_path, steps=5, evaluate=evaluate, eval_every=2)
    assert seen == [2, 4, 5]
    assert [line for line in lines(tmp_path) if "accuracy" in line][-1] == {"step": 5, "heldout_loss": 1.0, "accuracy": 0.5}


@pytest.mark.parametrize("every_steps", [0, 1, 2, 5])
def test_stop_acts_at_the_same_step_however_often_one_saves(tmp_path, every_steps, capfd):
    reasons = lambda metrics: "far enough" if metrics["reward"] >= 4 else None
    fed = lambda number: (feed(number), {"reward": number})
    trained, info = run(tmp_path, feed=fed, stop=reasons, checkpoint=checkpointing(every_steps=every_steps))
    assert info["steps"] == 6 and int(trained.step) == 6  # reward 4 is update 5's; one more is in flight
    assert "far enough" in capfd.readouterr().err
    assert [line["reward"] for line in lines(tmp_path)] == [0, 1, 2, 3, 4, 5]
    again, _ = run(tmp_path, feed=killing(0, None), stop=reasons)
    assert_same(again, trained)


def test_metrics_are_fetched_one_step_late(tmp_path):
    events = []

    class Metric:
        def __init__(self, number):
            self.number = number

        def __float__(self):
            events.append(("fetched", self.number))
            return 0.0

    def step(state, trunk, batch, rng):
        number = int(state.step) + 1
        events.append(("ran", number))
        return state._replace(step=jnp.asarray(number)), {"loss": Metric(number)}

    run(tmp_path, steps=3, step=step)
    assert events == [("ran", 1), ("ran", 2), ("fetched", 1), ("ran", 3), ("fetched", 2), ("fetched", 3)]


@pytest.mark.parametrize("metric", ["loss", "grad_norm"])
def test_numbers_that_are_not_finite_stop_the_run(tmp_path, metric):
    def step(state, trunk, batch, rng):
        state, metrics = plain_step(state, trunk, batch, rng)
        return state, metrics | {metric: jnp.where(state.step == 3, jnp.nan, 1.0)}

    with pytest.raises(UserError, match=rf"sft: {metric} became nan at step 3; .*; lower config\.sft\.learning_rate"):
        run(tmp_path, step=step, checkpoint=checkpointing(every_steps=3))
    assert not (tmp_path / "checkpoints").exists()  # the spoilt state was not saved
    with pytest.raises(UserError, match="heldout_loss became nan at step 2"):
        run(tmp_path / "b", evaluate=lambda state: {"heldout_loss": float("nan")}, eval_every=2)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_finish_the_step_and_save(tmp_path, number, capfd):
    expected, _ = run(tmp_path / "a")
    handlers = [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)]

    def interrupted(state, *rest):
        if state.step == 4:
            os.kill(os.getpid(), number)
        return STEP(state, *rest)

    with pytest.raises(SystemExit) as left:
        run(tmp_path / "b", step=interrupted)
    assert left.value.code == 128 + number
    assert f"{number.name} after step 5; checkpoint saved" in capfd.readouterr().err
    assert [line["step"] for line in lines(tmp_path / "b")] == [1, 2, 3, 4, 5]
    assert [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)] == handlers
    resumed, _ = run(tmp_path / "b", feed=lambda at: feed(at) if at >= 5 else 1 / 0)
    assert_same(resumed, expected)


def test_saves_by_time(tmp_path, monkeypatch):
    saved = []
    monkeypatch.setattr(loop.checkpoints.Saver, "save", lambda saver, step, tree: saved.append((step, saver.keep)))
    clock = types.SimpleNamespace(now=0.0, monotonic=lambda: clock.now)
    monkeypatch.setattr(loop, "time", clock)

    def slow_step(*arguments):
        clock.now += 0.06
        return STEP(*arguments)

    run(tmp_path, steps=6, step=slow_step, checkpoint=checkpointing(every_seconds=0.1, keep=7))
    assert saved == [(2, 7), (4, 7), (6, 7)]


def test_one_summary_line_and_no_bar_without_a_terminal(tmp_path, capfd):
    run(tmp_path, evaluate=distance)
    out, err = capfd.readouterr()
    assert out == "" and len(err.splitlines()) == 1
    assert err.startswith("sft: 12 steps, ") and "s compiling" in err and "tokens/s" in err and "held-out loss" in err


def test_compile_time_is_a_union_of_spans():
    with loop.CompileTime() as compiling:
        trace, compile = loop.COMPILING[0], loop.COMPILING[2]
        for event, start, end in [(trace, 2, 3), (trace, 0, 10), (compile, 9, 11), (compile, 20, 21.5), ("/jax/other", 30, 40)]:
            jax.monitoring.record_event_time_span(event, start, end)
        assert compiling.seconds() == 12.5
    jax.monitoring.record_event_time_span(trace, 50, 60)
    assert compiling.seconds() == 12.5


def test_compile_time_sees_jax():
    function = jax.jit(lambda x: (time.sleep(0.05), x + 1)[1])  # the sleep is in the trace
    with loop.CompileTime() as compiling:
        function(jnp.ones(3)).block_until_ready()
        first = compiling.seconds()
        assert first >= 0.05
        function(jnp.ones(3)).block_until_ready()
        assert compiling.seconds() == first


KILLED_SCRIPT = """
import sys, os, signal
sys.path.insert(0, sys.argv[1])
import test_loop
from test_loop import *
path, at = pathlib.Path(sys.argv[2]), int(sys.argv[3])
def fed(number):
    if number == at:
        os.kill(os.getpid(), signal.SIGKILL)
    return feed(number)
state, _ = run(path, feed=fed, checkpoint=checkpointing(every_steps=2), evaluate=distance, eval_every=3)
np.save(path / "w.npy", np.asarray(state.leaves["w"]))
"""


@pytest.mark.slow
def test_kill_nine(tmp_path):
    def go(directory, at):
        script = "import pathlib\n" + KILLED_SCRIPT
        arguments = [sys.executable, "-c", script, os.path.dirname(__file__), str(directory), str(at)]
        return subprocess.run(arguments, cwd=os.path.dirname(os.path.dirname(__file__))).returncode

    assert go(tmp_path / "a", -1) == 0
    assert go(tmp_path / "b", 5) == -signal.SIGKILL
    assert go(tmp_path / "b", 9) == -signal.SIGKILL
    assert go(tmp_path / "b", -1) == 0
    assert (tmp_path / "a" / "w.npy").read_bytes() == (tmp_path / "b" / "w.npy").read_bytes()
    assert lines(tmp_path / "a") == lines(tmp_path / "b")
