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
WORDS = ["<eos>", "<pad>", "<unk>", "is", "plus", "?", *map(str, range(10))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--records", type=int, default=10_000_000)
    parser.add_argument("--epochs", type=float, default=1.0, help="passes of SFT over the records; default 1")
    parser.add_argument("--folder", default=None, help="where the temporary folder is made; default: the system's")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        folder = pathlib.Path(name)
        write_records(folder / "d.jsonl", arguments.records)
        write_model(folder / "model")
        measured("prepare", folder, ["prepare", "--kind=demonstrations", f"--data={folder}/d.jsonl", f"--out={folder}/tfds"])
        size = sum(path.stat().st_size for path in (folder / "tfds").rglob("*") if path.is_file())
        print(f"{arguments.records:,} records: {(folder / 'd.jsonl').stat().st_size / 2**20:,.0f} MiB as JSONL, {size / 2**20:,.0f} MiB "
              "prepared", flush=True)
        (folder / "d.jsonl").unlink()
        measured("pretrain,sft", folder, [
            "run", f"--workdir={folder}/w", f"--config={ROOT}/configs/demonstrations.py", "--stages=pretrain,sft", *(
                f"--config.{setting}" for setting in (
                    f"model.path={folder}/model", "data.source=tfds:demonstrations", f"data.tfds_data_dir={folder}/tfds",
                    "data.streaming=True", "data.truncate_prompts=True", "data.max_prompt_tokens=32", "data.max_response_tokens=32",
                    f"sft.epochs={arguments.epochs}", "sft.batch_size=256", "sft.row_tokens=64", "adapter.rank=2",
                    "reward.recipes=init_demo", "policy.recipes=", "checkpoint.every_seconds=600"))])
        lines = [json.loads(line) for line in (folder / "w" / "sft" / "metrics.jsonl").read_text().splitlines()]
        print(f"{len(lines):,} updates; {sum(line['left_out'] for line in lines):,.0f} records found no room; loss "
              f"{lines[0]['loss']:.3f} -> {lines[-1]['loss']:.3f}")


def write_records(path: pathlib.Path, number: int) -> None:
    """Sums in digits, each written once in so many records."""
    with open(path, "w") as file:
        for i in range(number):
            left, right = i, (i * 7919) % 1000
            question, answer = " ".join(str(left)), " ".join(str(left + right))
            file.write(f'{{"prompt": "{question} plus {" ".join(str(right))} ?", "response": " is {answer}"}}\n')


def write_model(folder: pathlib.Path) -> None:
    """A GPT-2 of a few thousand parameters, and its tokenizer of words."""
    code = "import sys; sys.path.insert(0, sys.argv[1]); import streaming; streaming.make_model(sys.argv[2])"
    subprocess.run([sys.executable, "-c", code, str(pathlib.Path(__file__).parent), str(folder)], check=True, env=environment())


def make_model(folder: str) -> None:
    """What `write_model` has a process of its own do, which keeps jax out of this one."""
    import jax
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    from irl_jax import hf
    from irl_jax.models import transformer

    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<eos>", pad_token="<pad>", unk_token="<unk>")
    model = transformer.ModelConfig(vocab_size=len(WORDS), num_layers=1, width=16, num_heads=2, num_kv_heads=2, head_dim=8, mlp_width=32,
                                    max_positions=64)
    hf.save_folder(folder, model, transformer.init_trunk(jax.random.key(0), model), tokenizer)


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
