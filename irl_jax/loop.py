"""The only train loop: feeding, logging, checkpoints, early stopping, preemption, exact resume."""

from __future__ import annotations

import contextlib
import math
import os
import pathlib
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from irl_jax import checkpoint as checkpoints
from irl_jax import distributed, paths, progress
from irl_jax.errors import UserError
from irl_jax.feeding import Ahead, Trace
from irl_jax.tracking import Tracker
from irl_jax.types import Array, PyTree

State = TypeVar("State")  # a TrainState, or any pytree of arrays
Evaluate = Callable[[Any], Mapping[str, Any]]  # state -> metrics
Stop = Callable[[dict[str, float]], str | None]  # a step's metrics -> the reason to stop

CHECKPOINTS, TRACE = "checkpoints", "trace"
COMPILING = (  # jax's names for the work before a new shape runs
    "/jax/core/compile/jaxpr_trace_duration",
    "/jax/core/compile/jaxpr_to_mlir_module_duration",
    "/jax/core/compile/backend_compile_duration",
)


class Book(NamedTuple):
    """What a resumed run needs besides the state: numpy scalars, saved in every checkpoint.

    stop_at: the step after which training ends. best_loss, best_step: of the best leaves (infinity and 0 if there are none yet). looks:
    evaluations since then. seconds, compile_seconds, tokens: totals so far, over all sessions.
    """

    stop_at: np.ndarray
    best_loss: np.ndarray
    best_step: np.ndarray
    looks: np.ndarray
    seconds: np.ndarray
    compile_seconds: np.ndarray
    tokens: np.ndarray


def train(
    step: Callable[..., tuple[State, Mapping[str, Array]]],
    state: State,
    trunk: PyTree,
    feed: Callable[[int], Any],
    *,
    steps: int,
    key: Array,
    directory: str | os.PathLike[str],
    checkpoint: ConfigDict,
    name: str,
    evaluate: Evaluate | None = None,
    eval_every: int = 0,
    patience: int = 0,
    stop: Stop | None = None,
    profile: ConfigDict | None = None,
    log: ConfigDict | None = None,
) -> tuple[State, dict]:
    """Runs `step` until `steps` updates are done or there is a reason to stop. Resumes from `directory` if it holds a checkpoint.

    A run killed at any moment and restarted gives bitwise the state of an uninterrupted run. Metrics are fetched one step late, so
    the host never waits for the step in flight. `stop` therefore acts one step after the metrics it saw.

    Args:
      step: step(state, trunk, batch, rng) -> (state, metrics), compiled or made of compiled parts. `state` may be donated.
      state: the state before the first update: a TrainState with `evaluate`, else any pytree of arrays.
      trunk: the frozen trunk.
      feed: feed(number) -> the batch of update `number` (from 0), on device; or a plain tuple (batch, extra metrics to log). Must depend
        only on its argument. Called in order, in its own thread, ahead of the update (see `feeding.Ahead`).
      steps: total updates, over all resumes.
      key: PRNG key; update i gets fold_in(key, i).
      directory: the stage's folder, for metrics.jsonl, events and checkpoints/.
      checkpoint: config.checkpoint: every_seconds, every_steps, keep.
      name: the stage's name, for messages.
      evaluate: evaluate(state) -> dict with "heldout_loss" (nats; lower is better), called every `eval_every` steps and at the end. The
        leaves with the lowest loss are returned; without `evaluate`, the last ones.
      eval_every: steps between evaluations; 0 evaluates only at the end.
      patience: evaluations without improvement before stopping; 0 never stops early.
      stop: stop(metrics of one step as floats) -> the reason to stop, or None.
      profile: config.profile: which updates to trace into `directory`/trace. None traces nothing.
      log: config.log: where metrics go besides metrics.jsonl. None: nowhere.

    Returns:
      (state, info). info has seconds, compile_seconds, tokens_per_second (tokens counted by the loss, compile time excluded), steps, and
      with `evaluate` best_step and heldout_loss.

    Raises:
      UserError: a loss or gradient norm is not finite (nothing is saved after it), or the checkpoint has another structure.
      SystemExit: on SIGTERM or SIGINT, after finishing the step and saving a checkpoint. The status is 128 + the signal.
    """
    if steps < 1:
        raise ValueError(f"{name}: steps must be at least 1, not {steps}")
    folder = paths.of(directory)
    folder.mkdir(parents=True, exist_ok=True)
    done, state, best, book = _restore(folder, state, steps, evaluate is not None)
    tracker = Tracker(folder, name, log, done, steps)
    clock = _Clock(book)
    saver = checkpoints.Saver(folder / CHECKPOINTS, checkpoint.keep)
    run = _Run(step, trunk, Ahead(feed, done, int(book.stop_at)), key, folder, checkpoint, name, evaluate, eval_every, patience, stop,
               clock, saver, Trace(folder / TRACE, profile), tracker)
    with (clock.compiling, _Signals() as signals, progress.bar(total=steps, initial=done, desc=name, unit="step") as bar,
          contextlib.closing(run.tracker), contextlib.closing(run.saver), contextlib.closing(run.feed), contextlib.closing(run.trace)):
        final, best, book = _updates(run, done, state, best, book, signals, bar)
    info = _info(clock, book, evaluate is not None)
    if distributed.is_primary():
        print(_summary(name, info), file=sys.stderr)
    return (final._replace(leaves=best) if evaluate else final), info


class _Run(NamedTuple):
    """The arguments of `train` that do not change."""

    step: Callable[..., tuple[Any, Mapping[str, Array]]]
    trunk: PyTree
    feed: Ahead
    key: Array
    directory: pathlib.Path
    checkpoint: ConfigDict
    name: str
    evaluate: Evaluate | None
    eval_every: int
    patience: int
    stop: Stop | None
    clock: _Clock
    saver: checkpoints.Saver
    trace: Trace
    tracker: Tracker


def _updates(run: _Run, done: int, state, best, book: Book, signals, bar) -> tuple:
    """Runs the updates from `done` on; returns (state, best leaves or None, book)."""
    saved_at, saved_step, pending = time.monotonic(), done, None
    while done < book.stop_at:
        distributed.at(run.name, done + 1)
        run.trace.before(done + 1)
        with jax.profiler.StepTraceAnnotation(run.name, step_num=done + 1):
            batch, extra = _split(run.feed(done))
            state, metrics = run.step(state, run.trunk, batch, jax.random.fold_in(run.key, done))
            done += 1
            book = _record(run, pending, book, bar)
        run.trace.after(done, state)
        pending = (done, metrics, extra)
        interrupted = distributed.anyone(signals.seen)
        last = done == book.stop_at
        looks = run.evaluate and (last or (run.eval_every and done % run.eval_every == 0))
        saves = (
            (last or interrupted)
            or (run.checkpoint.every_steps and done - saved_step >= run.checkpoint.every_steps)
            or distributed.agree(time.monotonic() - saved_at >= run.checkpoint.every_seconds)
        )
        if looks or saves:
            book, pending = _record(run, pending, book, bar), None
        if looks:
            best, book = _look(run, done, state, best, book)
        if saves or done == book.stop_at:
            tree = {"state": state, "book": run.clock.into(book)} | ({"best": best} if run.evaluate else {})
            run.tracker.flush()
            run.saver.save(done, tree)
            saved_at, saved_step = time.monotonic(), done
        if interrupted:
            run.saver.wait()
            _leave(run.name, done, interrupted)
    return state, best, book


def _leave(name: str, done: int, number: int) -> None:
    word = signal.Signals(number).name
    print(f"irl_jax: {name}: {word} after step {done}; checkpoint saved, the same command goes on from there", file=sys.stderr)
    raise SystemExit(128 + number)


def _split(fed) -> tuple:
    """(batch, extra metrics). Batches are named tuples, so a plain tuple is this pair."""
    return fed if type(fed) is tuple else (fed, {})


def _record(run: _Run, pending, book: Book, bar) -> Book:
    """Fetches and writes the metrics of a finished step, refuses non-finite numbers, and asks `stop`."""
    if pending is None:
        return book
    done, metrics, extra = pending
    values = {key: float(value) for key, value in jax.device_get(dict(**metrics, **extra)).items()}
    run.tracker.add(done, values)
    for key, value in values.items():
        if key.endswith(("loss", "grad_norm")) and not math.isfinite(value):
            raise UserError(_diverged(run, key, value, done))
    run.clock.tokens += values.get("tokens", 0.0)
    bar.set_postfix_str(f"loss {values['loss']:.4g}" if "loss" in values else "", refresh=False)
    bar.update(1)
    if run.stop is not None and done + 1 < book.stop_at:
        reason = run.stop(values)
        if reason:
            bar.write(f"irl_jax: {run.name}: stopping after step {done + 1}: {reason}", file=sys.stderr)
            book = book._replace(stop_at=np.asarray(done + 1))
    return book


def _diverged(run: _Run, key: str, value: float, done: int) -> str:
    """The message for a non-finite number. Nothing after the last good checkpoint is kept."""
    run.saver.wait()
    section = run.name.split("/")[0]
    last = checkpoints.latest_step(run.directory / CHECKPOINTS)
    kept = f"the last good checkpoint is {run.directory / CHECKPOINTS / str(last)}" if last else "there is no checkpoint before it"
    advice = f"lower config.{'policy' if section == 'adversarial' else section}.learning_rate (or its clip_norm)"
    return f"{run.name}: {key} became {value} at step {done}; {kept}; {advice} and start again in a new workdir"


def _look(run: _Run, done: int, state, best, book: Book) -> tuple:
    """Evaluates, keeps the best leaves, and ends the run if patience runs out."""
    assert run.evaluate is not None  # only called if set
    values = {key: float(value) for key, value in jax.device_get(dict(run.evaluate(state))).items()}
    run.tracker.add(done, values)
    loss = values["heldout_loss"]
    if not math.isfinite(loss):
        raise UserError(_diverged(run, "heldout_loss", loss, done))
    if loss < book.best_loss:
        best = _copy(state.leaves)
        book = book._replace(best_loss=np.asarray(loss), best_step=np.asarray(done), looks=np.asarray(0))
    else:
        book = book._replace(looks=book.looks + 1)
    if run.patience and book.looks >= run.patience:
        book = book._replace(stop_at=np.minimum(book.stop_at, done))
    return best, book


def _copy(leaves: PyTree) -> PyTree:
    """A copy that outlives the donation of the state."""
    return jax.tree.map(jnp.copy, leaves)


def _restore(directory: pathlib.Path, state, steps: int, with_best: bool) -> tuple:
    """(steps done, state, best leaves or None, book), from the newest checkpoint or for a fresh start."""
    zero, number = np.asarray(0.0), np.asarray(0)
    book = Book(np.asarray(steps), np.asarray(np.inf), number, number, zero, zero, zero)
    best = _copy(state.leaves) if with_best else None
    like = {"state": state, "book": book} | ({"best": best} if with_best else {})
    found = checkpoints.restore_latest(directory / CHECKPOINTS, like)
    if found is None:
        return 0, state, best, book
    done, tree = found
    return done, tree["state"], tree.get("best"), tree["book"]


def _info(clock, book: Book, with_best: bool) -> dict:
    seconds, compiling = clock.seconds(), clock.compile_seconds()
    info = {
        "seconds": seconds,
        "compile_seconds": compiling,
        "tokens_per_second": clock.tokens / max(seconds - compiling, 1e-9),
        "steps": int(book.stop_at),
    }
    if with_best:
        info |= {"best_step": int(book.best_step), "heldout_loss": float(book.best_loss)}
    return info


def _summary(name: str, info: dict) -> str:
    line = (
        f"{name}: {info['steps']} steps, {info['seconds']:.1f} s ({info['compile_seconds']:.1f} s compiling), "
        f"{info['tokens_per_second']:,.0f} tokens/s"
    )
    return line + (f", held-out loss {info['heldout_loss']:.4f} at step {info['best_step']}" if "best_step" in info else "")


class CompileTime:
    """While entered, measures the wall-clock seconds in which jax traces, lowers or compiles.

    Spans of nested traces overlap, so `seconds()` gives their union, from jax.monitoring's events.
    """

    def __init__(self):
        self._spans: list[tuple[float, float]] = []

    def __enter__(self) -> CompileTime:
        jax.monitoring.register_event_time_span_listener(self._listen)
        return self

    def __exit__(self, *_) -> None:
        jax.monitoring.unregister_event_time_span_listener(self._listen)

    def _listen(self, event: str, start_time: float, end_time: float, **_: str | int) -> None:  # jax's argument names
        if event in COMPILING:
            self._spans.append((start_time, end_time))

    def seconds(self) -> float:
        """Seconds of the union of the spans so far."""
        total, reached = 0.0, -math.inf
        for start, end in sorted(self._spans):
            total += max(0.0, end - max(start, reached))
            reached = max(reached, end)
        return total


class _Clock:
    """Seconds, compile seconds and tokens of a stage, over all its sessions."""

    def __init__(self, book: Book):
        self.compiling = CompileTime()
        self._start = time.monotonic()
        self._seconds, self._compile_seconds, self.tokens = (float(n) for n in (book.seconds, book.compile_seconds, book.tokens))

    def seconds(self) -> float:
        return self._seconds + time.monotonic() - self._start

    def compile_seconds(self) -> float:
        return self._compile_seconds + self.compiling.seconds()

    def into(self, book: Book) -> Book:
        """The book with the totals so far."""
        seconds, compile_seconds, tokens = map(np.asarray, (self.seconds(), self.compile_seconds(), self.tokens))
        return book._replace(seconds=seconds, compile_seconds=compile_seconds, tokens=tokens)


class _Signals:
    """While entered (in the main thread), records SIGTERM and SIGINT instead of dying mid-step. A second one kills as usual."""

    def __init__(self):
        self.seen = 0
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> _Signals:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number, _frame) -> None:
        self.seen = number
        signal.signal(number, self._before[number])

