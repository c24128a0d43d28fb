"""The accelerator's cases: SFT's share of the chip's peak, decoding's share of its bandwidth, sampling beside transformers."""

from __future__ import annotations

import argparse
import gc
import json
import pathlib
import sys
import tempfile
import time
from typing import NamedTuple

import numpy as np

from benchmarks.speed import sizes, table, timing

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
CASES = ("sft", "decode", "sampling")
PEAKS = {  # of the chip's name: dense bfloat16 FLOP/s, bytes/s of its memory, by their makers' data sheets
    "H200": (989e12, 4.8e12), "H100 PCIe": (756e12, 2.0e12), "H100": (989e12, 3.35e12), "A100-SXM4-80GB": (312e12, 2.04e12),
    "A100": (312e12, 1.56e12), "L40S": (362e12, 0.864e12), "L4": (121e12, 0.3e12), "TPU v5 lite": (197e12, 0.82e12),
    "TPU v6 lite": (918e12, 1.64e12),
}  # fmt: skip
LLAMA_1B = {"model_type": "llama", "num_hidden_layers": 16, "hidden_size": 2048, "num_attention_heads": 32, "num_key_value_heads": 8,
            "head_dim": 64, "intermediate_size": 8192, "max_position_embeddings": 2048, "vocab_size": 128256, "rms_norm_eps": 1e-5,
            "rope_theta": 5e5, "tie_word_embeddings": True}


class Shape(NamedTuple):
    """A model and what it is run on: rows x tokens of training; prompt and response tokens of sampling; prompts; decoded rows."""

    hf: dict
    rows: int = 16
    tokens: int = 1024
    prompt: int = 128
    response: int = 128
    prompts: int = 8
    decoded: int = 64
    rounds: int = 5


TINY = Shape(LLAMA_1B | {"num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
                         "intermediate_size": 128, "max_position_embeddings": 128, "vocab_size": 256}, 4, 64, 32, 16, 2, 8, 2)


def parameters(hf: dict) -> int:
    """Of the matrices, the tied embedding counted once: those whose products take the time."""
    width, head = hf["hidden_size"], hf["head_dim"]
    attention = 2 * width * head * (hf["num_attention_heads"] + hf["num_key_value_heads"])
    return hf["num_hidden_layers"] * (attention + 3 * width * hf["intermediate_size"]) + hf["vocab_size"] * width


def training_flops(hf: dict, rows: int, tokens: int) -> float:
    """Of a forward and a backward pass: 6 a parameter and token, causal attention's 6 L H E T^2 a row, nothing for recomputation."""
    attention = 6 * hf["num_hidden_layers"] * hf["num_attention_heads"] * hf["head_dim"] * tokens**2
    return rows * (6.0 * parameters(hf) * tokens + attention)


def decoding_bytes(hf: dict, rows: int, prompts: int, prompt: int, response: float) -> float:
    """Read by one step at 2 bytes a number: all parameters, each prompt's cache once, and each row's own cache."""
    cache = 2 * hf["num_hidden_layers"] * hf["num_key_value_heads"] * hf["head_dim"]
    return 2.0 * (parameters(hf) + cache * (prompts * prompt + rows * response))


def peaks(arguments) -> tuple[str, float | None, float | None]:
    """(the chip's name, FLOP/s, bytes/s), None where neither the flags nor PEAKS say."""
    import jax

    name = jax.devices()[0].device_kind
    known = next((peak for part, peak in PEAKS.items() if part.lower() in name.lower()), (None, None))
    return name, arguments.peak_flops or known[0], arguments.peak_bytes or known[1]


def write_folder(shape: Shape, root: pathlib.Path) -> pathlib.Path:
    """The model's folder, random weights in bfloat16."""
    import jax

    from irl_jax import hf_export
    from irl_jax.models import families, tensors, transformer

    config = families.from_hf_config(shape.hf)
    trunk = jax.tree.map(np.asarray, transformer.init_trunk(jax.random.key(0), config))
    fields = families.to_hf_config(config) | {"pad_token_id": sizes.PAD, "eos_token_id": sizes.EOS, "bos_token_id": None}
    hf_export.write_folder(root / "model", fields, tensors.stored_tensors(config, {"params": trunk}), dtype="bfloat16")
    return root / "model"


def _median(function, rounds: int) -> tuple[float, list[float]]:
    function()
    found = [timing.once(function) for _ in range(rounds)]
    return float(np.median(found)), found


def sft(shape: Shape, folder, chip) -> dict:
    """Tokens a second of the SFT step and the share of the peak that its necessary operations are."""
    from benchmarks.speed import ours

    rows = np.random.default_rng(2).integers(sizes.SPECIAL, shape.hf["vocab_size"], (shape.rows, shape.tokens)).astype(np.int32)
    mine = ours.load(folder, "bfloat16", scan_layers=True, remat="full", loss_chunk=4096)
    update = ours.sft(mine, rows)
    seconds, found = _median(lambda: update() and None, shape.rounds)
    flops = training_flops(shape.hf, shape.rows, shape.tokens)
    return {"case": "SFT step", "work": f"{shape.rows} x {shape.tokens} tokens, remat full", "seconds": seconds, "rounds": found,
            "tokens_per_second": shape.rows * shape.tokens / seconds, "tflops": flops / seconds / 1e12,
            "share_of_peak": flops / seconds / chip[1] if chip[1] else None}


def decode(shape: Shape, folder, chip) -> dict:
    """Seconds of a decoding step, from the difference of two lengths, and the share of the bandwidth that its reads are."""
    from benchmarks.speed import ours

    mine = ours.load(folder, "bfloat16", param_dtype="bfloat16")
    samples = shape.decoded // shape.prompts
    prompts = _prompts(shape)
    whole, half = (_median(timing.seeded(ours.sampling(mine, prompts, samples, length, (shape.hf["vocab_size"],))), shape.rounds)[0]
                   for length in (shape.response, shape.response // 2))
    step = (whole - half) / (shape.response - shape.response // 2)
    size = decoding_bytes(shape.hf, shape.decoded, shape.prompts, shape.prompt, 0.75 * shape.response)
    return {"case": "decoding step", "work": f"{shape.prompts} prompts x {samples} samples, {shape.prompt} + {shape.response} tokens",
            "seconds": step, "tokens_per_second": shape.decoded / step, "bytes": size,
            "share_of_peak": size / step / chip[2] if chip[2] else None}


def sampling(shape: Shape, folder, chip) -> dict:
    """16 samples a prompt, as for best-of-16, beside transformers' generate, both in bfloat16."""
    import torch

    from benchmarks.speed import ours, peers_torch

    del chip
    device = "cuda" if torch.cuda.is_available() else "cpu"
    mine, theirs = ours.load(folder, "bfloat16", param_dtype="bfloat16"), peers_torch.load(folder, "bfloat16", device)
    prompts, none = _prompts(shape), (shape.hf["vocab_size"],)
    own = ours.sampling(mine, prompts, 16, shape.response, none)
    peer = peers_torch.sampling(theirs, prompts, 16, shape.response, none)
    drawn = own(0)
    rows = np.concatenate([prompts[0], drawn.tokens[0, 0]])[None]
    forward = peers_torch.sequence_logprobs(theirs, rows)[0, len(prompts[0]) - 1 :]
    gap = timing.agree("mean log-prob of our samples", drawn.behaviour_logprobs[0, 0].mean(), forward.mean(), 0.05)
    timed = timing.alternate(timing.seeded(own), timing.seeded(peer), timing.Budget(2, shape.rounds, 60.0))
    return {"case": "sampling, 16 a prompt", "work": f"{shape.prompts} prompts x 16 samples, {shape.prompt} + {shape.response} tokens",
            "beside": "transformers generate", "checked": gap, **timing.summary(timed)}


def _prompts(shape: Shape) -> list[np.ndarray]:
    rng = np.random.default_rng(1)
    return [rng.integers(sizes.SPECIAL, shape.hf["vocab_size"], shape.prompt).astype(np.int32) for _ in range(shape.prompts)]


def line(result: dict) -> str:
    """A result in one line."""
    if "ratio" in result:
        return (f"{result['case']}, {result['work']}: {table.seconds(result['ours_seconds'])}, {result['beside']} "
                f"{table.seconds(result['theirs_seconds'])}, ratio {result['ratio']:.2f}")
    share = "peak not known: give --peak_flops and --peak_bytes"
    if result["share_of_peak"] is not None:
        share = f"{result['share_of_peak']:.1%} of the peak"
    return f"{result['case']}, {result['work']}: {table.seconds(result['seconds'])}, {result['tokens_per_second']:,.0f} tokens/s, {share}"


def main(argv) -> int:
    parser = argparse.ArgumentParser(prog="bash benchmarks/gpu.sh", description=__doc__)
    parser.add_argument("--tiny", action="store_true", help="a tiny model, to try the code anywhere")
    parser.add_argument("--cases", default=",".join(CASES), help=f"of {', '.join(CASES)}; default: all")
    parser.add_argument("--peak_flops", type=float, default=0.0, help="the chip's dense bfloat16 FLOP/s; default: by its name")
    parser.add_argument("--peak_bytes", type=float, default=0.0, help="its memory's bytes/s; default: by its name")
    parser.add_argument("--out", default=str(ROOT / "benchmarks" / "results-gpu.json"), help="default: benchmarks/results-gpu.json")
    arguments = parser.parse_args(argv)
    import jax

    if not arguments.tiny and jax.default_backend() == "cpu":
        print("benchmarks: no accelerator is here; --tiny tries the code on the CPU", file=sys.stderr)
        return 2
    shape, chip = TINY if arguments.tiny else Shape(LLAMA_1B), peaks(arguments)
    results = {"chip": chip[0], "measured": time.strftime("%Y-%m-%d %H:%M"), "tiny": arguments.tiny, "results": []}
    print(f"benchmarks: {chip[0]}, {parameters(shape.hf) / 1e9:.2f}B parameters, bfloat16", flush=True)
    with tempfile.TemporaryDirectory() as root:
        folder = write_folder(shape, pathlib.Path(root))
        for case in arguments.cases.split(","):
            results["results"].append({"sft": sft, "decode": decode, "sampling": sampling}[case](shape, folder, chip))
            print(line(results["results"][-1]), flush=True)
            pathlib.Path(arguments.out).write_text(json.dumps(results, indent=1) + "\n")
            gc.collect()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
