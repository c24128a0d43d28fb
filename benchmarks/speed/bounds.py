"""What bounds our steps on a CPU: python -m benchmarks.speed.bounds [SIZE], of the benchmarks' environment.

Prints the rate of matrix products of the sizes that training and sampling have, in XLA and in torch, and what the operations of one SFT
step (16 rows of 256 tokens, whole trunk) are, by a trace of `jax.profiler`: the share of their time, by kind.
"""

from __future__ import annotations

import collections
import gzip
import json
import pathlib
import sys
import tempfile
import time

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.speed import ours, sizes, timing

PRODUCTS = ((4096, 96, 384), (4096, 256, 1024), (4096, 1024, 256), (4096, 256, 4096), (128, 256, 1024), (4096, 768, 3072))
KINDS = {  # of fusions and operations, by what their names hold, the first that fits
    "matrix products": ("ynn", "dot", "gemm", "matmul"), "exponentials and logarithms": ("exponential", "log"), "gelu": ("tanh",),
    "copies, slices, transpositions": ("copy", "slice", "transpose", "concatenate", "pad", "bitcast", "broadcast"),
}


def rates() -> None:
    """GFLOP/s of float32 products [m, k] x [k, n], the best of some calls."""
    import torch

    for m, k, n in PRODUCTS:
        a, b = (np.random.default_rng(0).standard_normal(shape, np.float32) for shape in ((m, k), (k, n)))
        multiply, mine, theirs = jax.jit(jnp.matmul), (jnp.asarray(a), jnp.asarray(b)), (torch.tensor(a), torch.tensor(b))
        xla = _best(lambda pair=mine, multiply=multiply: multiply(*pair).block_until_ready())
        peer = _best(lambda pair=theirs: pair[0] @ pair[1])
        operations = 2 * m * k * n / 1e9
        print(f"  {m:5} x {k:4} x {n:4}: XLA {operations / xla:4.0f}, torch {operations / peer:4.0f} GFLOP/s")


def _best(call) -> float:
    call()
    seconds = []
    for _ in range(10):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def operations(size) -> None:
    """The shares of one SFT step's operations."""
    with tempfile.TemporaryDirectory() as root:
        folder = pathlib.Path(root)
        update = ours.sft(ours.load(sizes.make_folder(size, folder)), sizes.rows(size))
        update()
        update()
        with jax.profiler.trace(str(folder / "trace")):
            update()
        (file,) = (folder / "trace").rglob("*.trace.json.gz")
        events = json.loads(gzip.decompress(file.read_bytes()))["traceEvents"]
    spent: collections.Counter = collections.Counter()
    for event in events:
        if event.get("ph") == "X" and "hlo_op" in event.get("args", {}):
            spent[next((kind for kind, marks in KINDS.items() if any(mark in event["name"] for mark in marks)), "other")] += event["dur"]
    for kind, microseconds in spent.most_common():
        print(f"  {microseconds / spent.total():4.0%} {kind}")


def main(argv) -> int:
    timing.pin(0)
    size = sizes.SIZES[argv[0] if argv else "6m"]
    print("matrix products")
    rates()
    print(f"operations of an SFT step, {size.label}")
    operations(size)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
