"""Runs the cases, one after another, and keeps what each measured; see benchmarks/run.sh."""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import pathlib
import platform
import sys
import tempfile
import time
from typing import NamedTuple

from benchmarks.speed import table, timing

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
VECTORS = {"avx512f": "AVX-512", "avx2": "AVX2"}  # flags of processors: what the vectors are called, widest first
CASES = ("sampling", "sft", "lora", "reward", "policy", "scoring", "startup", "job", "curves")


class Setting(NamedTuple):
    """What the case modules read: which sizes and dtypes, where models are written, and how patient the timing is."""

    sizes: tuple
    dtypes: tuple[str, ...]
    root: pathlib.Path
    trained: pathlib.Path | None
    threads: int
    repeats: int
    quick: bool
    peers: tuple[str, ...]
    curve_size: object

    def folder(self, size, family: str = "gpt2") -> pathlib.Path:
        """The size's Hugging Face folder, written where it is not there yet."""
        from benchmarks.speed import sizes

        return sizes.make_folder(size, self.root, family, self.trained)

    def label(self, size) -> str:
        """The size's name in the table."""
        from benchmarks.speed import sizes

        return sizes.label(size, self.trained)

    def llama_label(self, size) -> str:
        """The name of the Llama of that size."""
        return f"{size.label.replace(' shape', '').replace(chr(39) + 's', '')}, as a Llama"

    def budget(self, size) -> timing.Budget:
        """Rounds of a case: the size's own, fewer where it must be quick, exactly `repeats` where asked."""
        if self.repeats:
            return timing.Budget(self.repeats, self.repeats, float("inf"))
        least, most, seconds = size.patience
        return timing.Budget(1, 3, seconds / 6) if self.quick else timing.Budget(least, most, seconds)

    def without(self, peer: str) -> bool:
        """Whether a peer is left out."""
        return peer not in self.peers


def parse(argv) -> argparse.Namespace:
    """The flags."""
    parser = argparse.ArgumentParser(prog="bash benchmarks/run.sh", description=__doc__)
    parser.add_argument("--cases", default=",".join(CASES), help=f"of {', '.join(CASES)}; default: all")
    parser.add_argument("--sizes", default="testbed,6m,gpt2", help="of testbed, 6m, gpt2, tiny (for tests); default: the first three")
    parser.add_argument("--peers", default="tunix,trl", help="of tunix and trl, which may be left out; transformers is always there")
    parser.add_argument("--dtypes", default="auto", help="float32, bfloat16; default: float32, and bfloat16 where both sides gain by it")
    parser.add_argument("--repeats", type=int, default=0, help="rounds of every case; default: by size")
    parser.add_argument("--threads", type=int, default=0, help="cores for both sides; default: all that this process may use")
    parser.add_argument("--model", default="", help="folder of the 6M model; default: imdb-gpt2-6m of IRL_JAX_SHARED, or random weights")
    parser.add_argument("--quick", action="store_true", help="few rounds, the small sizes, a small part of the whole job: a few minutes")
    parser.add_argument("--out", default=str(ROOT / "benchmarks" / "results.json"), help="default: benchmarks/results.json")
    parser.add_argument("--plot", default=str(ROOT / "docs" / "sampling_speed.png"), help="default: docs/sampling_speed.png")
    arguments = parser.parse_args(argv)
    arguments.cases, arguments.sizes, arguments.peers = (
        tuple(part for part in text.split(",") if part) for text in (arguments.cases, arguments.sizes, arguments.peers))
    for name, given, known in (("--cases", arguments.cases, CASES), ("--sizes", arguments.sizes, ("testbed", "6m", "gpt2", "tiny")),
                               ("--peers", arguments.peers, ("tunix", "trl"))):
        unknown = [part for part in given if part not in known]
        if unknown:
            parser.error(f"{name}: {unknown[0]!r} is none of {', '.join(known)}")
    return arguments


def setting_of(arguments, root: pathlib.Path, threads: int) -> Setting:
    """The setting that the flags ask for."""
    from benchmarks.speed import precision, sizes

    wanted = [name for name in arguments.sizes if not (arguments.quick and name == "gpt2")]
    dtypes = precision.worth_timing() if arguments.dtypes == "auto" else tuple(arguments.dtypes.split(","))
    chosen = tuple({**sizes.SIZES, "tiny": sizes.TINY}[name] for name in wanted)
    return Setting(chosen, dtypes, root, sizes.found_model(arguments.model), threads, arguments.repeats, arguments.quick, arguments.peers,
                   sizes.SIZES["6m"] if sizes.SIZES["6m"] in chosen else chosen[0])


def machine(threads: int, dtypes) -> dict:
    """What it ran on and with."""
    cpuinfo = pathlib.Path("/proc/cpuinfo").read_text() if os.path.exists("/proc/cpuinfo") else ""
    versions = {name: importlib.metadata.version(name) for name in ("jax", "flax", "torch", "transformers", "trl", "google-tunix")}
    lines = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in cpuinfo.splitlines())}
    vectors = next((name for flag, name in VECTORS.items() if flag in lines.get("flags", "").split()), "")
    return {"processor": lines.get("model name") or platform.processor(), "vectors": vectors, "cores": threads,
            "system": platform.platform(), "python": platform.python_version(), "dtypes": list(dtypes), **versions}


def rows_of(case: str, setting: Setting):
    """The rows of a case, one by one."""
    from benchmarks.speed import job, sampling, startup, training

    if case == "sampling":
        return sampling.cases(setting)
    if case == "startup":
        return startup.cases(setting)
    if case == "job":
        return job.cases(setting)
    return training.cases(setting, case)


def run(arguments) -> list[dict]:
    """Runs the cases and writes after each; returns the rows measured."""
    threads = timing.pin(arguments.threads)
    measured = []
    with tempfile.TemporaryDirectory() as root:
        setting = setting_of(arguments, pathlib.Path(root), threads)
        results = table.read(arguments.out)
        results["machine"] = machine(threads, setting.dtypes)
        for case in arguments.cases:
            start = time.perf_counter()
            if case == "curves":
                from benchmarks.speed import plot, sampling

                results["curves"] = sampling.curves(setting)
                plot.draw(results["curves"], arguments.plot)
            else:
                for r in rows_of(case, setting):
                    r |= {"quick": arguments.quick, "vectors": results["machine"]["vectors"]}
                    measured.append(r)
                    results["rows"] = table.merge(results["rows"], [r])
                    table.write(arguments.out, results)
                    print(table.markdown([r]).splitlines()[2], file=sys.stderr, flush=True)
            table.write(arguments.out, results)
            print(f"benchmarks: {case}: {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)
    return measured


def main(argv) -> int:
    arguments = parse(argv)
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    rows = run(arguments)
    print(table.markdown(rows) if rows else "No case of a table was run.")
    print(f"\nResults are in {arguments.out}.")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
