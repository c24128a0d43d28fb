"""Peak memory of SFT on more records than a process may hold: made, prepared and trained on in a temporary folder, then deleted.

  python benchmarks/streaming.py --records=10000000          # about 3 GB of disk

Each part runs as a process of its own, whose peak resident memory the system tells when it ends. The model is tiny: what is measured is the
data's path, from JSONL through `prepare` to a whole pass of SFT, every record read once by random access.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.speed import sizes  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--records", type=int, default=10_000_000)
    parser.add_argument("--epochs", type=float, default=1.0, help="passes of SFT over the records; default 1")
    parser.add_argument("--folder", default=None, help="where the temporary folder is made; default: the system's")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        folder = pathlib.Path(name)
        write_records(folder / "d.jsonl", arguments.records)
        model = write_model(folder)
        measured("prepare", folder, ["prepare", "--kind=demonstrations", f"--data={folder}/d.jsonl", f"--out={folder}/tfds"])
        size = sum(path.stat().st_size for path in (folder / "tfds").rglob("*") if path.is_file())
        print(f"{arguments.records:,} records: {(folder / 'd.jsonl').stat().st_size / 2**20:,.0f} MiB as JSONL, {size / 2**20:,.0f} MiB "
              "prepared", flush=True)
        (folder / "d.jsonl").unlink()
        measured("pretrain,sft", folder, [
            "run", f"--workdir={folder}/w", f"--config={ROOT}/configs/demonstrations.py", "--stages=pretrain,sft", *(
                f"--config.{setting}" for setting in (
                    f"model.path={model}", "data.source=tfds:demonstrations", f"data.tfds_data_dir={folder}/tfds",
                    "data.streaming=True", "data.truncate_prompts=True", "data.max_prompt_tokens=32", "data.max_response_tokens=32",
                    f"sft.epochs={arguments.epochs}", "sft.batch_size=256", "sft.row_tokens=64", "adapter.rank=2",
                    "reward.recipes=init_demo", "policy.recipes=", "checkpoint.every_seconds=600"))])
        lines = [json.loads(line) for line in (folder / "w" / "sft" / "metrics.jsonl").read_text().splitlines()]
        print(f"{len(lines):,} updates; {sum(line['left_out'] for line in lines):,.0f} records found no room; loss "
              f"{lines[0]['loss']:.3f} -> {lines[-1]['loss']:.3f}")


def write_records(path: pathlib.Path, number: int) -> None:
    """Sums, digit by digit in the words of `sizes.tokenizer`, each written once in so many records."""
    words = lambda value: " ".join(f"w{sizes.SPECIAL + int(digit)}" for digit in str(value))
    plus, equals = (f"w{sizes.SPECIAL + 10 + sign}" for sign in range(2))
    with open(path, "w") as file:
        for i in range(number):
            right = (i * 7919) % 1000
            file.write(f'{{"prompt": "{words(i)} {plus} {words(right)}", "response": " {equals} {words(i + right)}"}}\n')


def write_model(folder: pathlib.Path) -> str:
    """The benchmarks' smallest model, made by a process of its own, which keeps jax out of this one."""
    code = "import pathlib, sys; from benchmarks.speed import sizes; print(sizes.make_folder(sizes.TINY, pathlib.Path(sys.argv[1])))"
    made = subprocess.run([sys.executable, "-c", code, str(folder)], check=True, env=environment(), capture_output=True, text=True)
    return made.stdout.split()[-1]


def environment() -> dict:
    return os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]), "JAX_PLATFORMS": "cpu"}


def measured(name: str, folder: pathlib.Path, command: list[str]) -> None:
    """Runs a verb and prints its seconds and its peak resident memory."""
    start = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", "irl_jax", *command], env=environment(), cwd=folder)
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{name}: status {process.returncode}")
    print(f"{name}: {time.perf_counter() - start:,.0f} s, peak resident {used.ru_maxrss / 1024:,.0f} MiB", flush=True)


if __name__ == "__main__":
    main()
