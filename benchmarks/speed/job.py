"""The whole job, compilation included: SFT, samples of init and sft, a reward from them, best-of-16, policy gradient; beside TRL.

Each side is a process of its own that reads spec.json and prints its stages' seconds as the last line:
python -m benchmarks.speed.job {ours|trl} SPEC.json
"""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys
import time

import numpy as np

from benchmarks.speed import sizes
from benchmarks.speed.table import Target, row
from benchmarks.speed.timing import Others, Timed

TRL = Target(">= 4x", 4.0)
RESPONSE = 64  # tokens, EOS included
FULL = {"sft_steps": 64, "sample_prompts": 512, "samples": 8, "reward_steps": 50, "best_prompts": 32, "policy_steps": 50}
SHAPES = {"sft_rows": 16, "reward_pairs": 16, "policy_prompts": 8, "policy_samples": 8, "best_of": 16, "beta": 0.05}


def cases(setting):
    """Yields a row a size."""
    if setting.without("trl"):
        return
    for size in setting.sizes:
        yield _case(setting, size)


def _case(setting, size):
    spec = make_spec(setting, size)
    mine, theirs, others, stages = [], [], Others(), {"ours": [], "trl": []}
    rounds = setting.repeats or 1
    for number in range(rounds):
        for side in ("ours", "trl") if number % 2 == 0 else ("trl", "ours"):
            seconds, parts = _run(side, spec)
            (mine if side == "ours" else theirs).append(seconds)
            stages[side].append(parts)
    drawn = 2 * spec["sample_prompts"] * spec["samples"]
    work = (f"SFT {spec['sft_steps']} x {spec['sft_rows']} rows, {drawn:,} samples, reward {spec['reward_steps']} x {spec['reward_pairs']} "
            f"pairs, best-of-16 of {spec['best_prompts']} prompts, policy {spec['policy_steps']} x {spec['policy_prompts']} x "
            f"{spec['policy_samples']}")
    note = (f"two processes, imports and compilation in the time, no cache of compiled programs; prompts of up to {sizes.PROMPT_TOKENS} "
            f"tokens, responses of up to {RESPONSE}; whole trunks; TRL: SFTTrainer, transformers generate, RewardTrainer, RLOOTrainer; "
            "irl_jax besides keeps checkpoints and text, scores held-out data and has the BCE loss on as many rows")
    return row("the whole job", setting.label(size), "TRL", Timed(mine, theirs, others.share()), work, target=TRL, stages=stages,
               share=spec["share"], note=note + ("" if spec["share"] == 1 else "; where fewer samples are given, that share of the job"))


def make_spec(setting, size) -> pathlib.Path:
    """Writes the data and spec.json of a size's job; returns the spec, "path" its place."""
    share = size.job * (1 / 16 if setting.quick else 1)
    counts = {name: max(2, round(count * share)) for name, count in FULL.items() if name != "samples"} | {"samples": FULL["samples"]}
    folder = setting.root / f"job-{size.name}"
    folder.mkdir(exist_ok=True)
    spec = {"model": str(setting.folder(size)), "folder": str(folder), "response": RESPONSE, "prompt": sizes.PROMPT_TOKENS,
            "share": share, **counts, **SHAPES,
            "path": str(folder / "spec.json")}
    records = max(counts["sft_steps"] * SHAPES["sft_rows"], counts["sample_prompts"]) + 32
    rng = np.random.default_rng(6)
    words = lambda length: " ".join(f"w{number}" for number in rng.integers(sizes.SPECIAL, size.vocabulary, length))
    lengths = rng.integers(sizes.PROMPT_TOKENS // 2, sizes.PROMPT_TOKENS + 1, records)
    _write(folder / "demonstrations.jsonl", [{"prompt": words(length), "response": " " + words(RESPONSE - 1)} for length in lengths])
    _write(folder / "prompts.jsonl", [{"prompt": words(length)} for length in lengths[: counts["best_prompts"]]])
    pathlib.Path(spec["path"]).write_text(json.dumps(spec))
    return spec


def _write(path: pathlib.Path, records) -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def read(path) -> list[dict]:
    """The records of a JSONL file."""
    return [json.loads(line) for line in pathlib.Path(path).read_text().splitlines()]


def _run(side: str, spec: dict) -> tuple[float, dict]:
    """(wall-clock seconds of the side's process, {stage: seconds})."""
    environment = {key: value for key, value in os.environ.items() if key != "JAX_COMPILATION_CACHE_DIR"}
    environment |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "TQDM_DISABLE": "1"}
    start = time.perf_counter()
    command = [sys.executable, "-m", "benchmarks.speed.job", side, spec["path"]]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"the whole job, {side}: status {done.returncode}\n{done.stderr[-4000:]}")
    return time.perf_counter() - start, json.loads(done.stdout.splitlines()[-1])


class Stages:
    """Seconds of what is done under each name."""

    def __init__(self):
        self.seconds = {}

    def __call__(self, name: str, function, *arguments, **how):
        start = time.perf_counter()
        out = function(*arguments, **how)
        self.seconds[name] = round(time.perf_counter() - start, 3)
        return out


def ours(spec: dict) -> dict:
    """The job through the stages of irl_jax and its `generate`."""
    from irl_jax import artifacts, cli, config, stages

    timed = Stages()
    c = config.default()
    folder = pathlib.Path(spec["folder"])
    c.model.path, c.data.source, c.golden.kind, c.adapter.rank = spec["model"], str(folder / "demonstrations.jsonl"), "none", 0
    c.data.max_prompt_tokens, c.data.max_response_tokens = spec["prompt"], spec["response"]
    c.data.heldout_fraction, c.data.development_fraction = 0.01, 0.01
    c.sft.steps, c.sft.batch_size, c.sft.packing, c.sft.learning_rate = spec["sft_steps"], spec["sft_rows"], False, 1e-4
    c.sample.reward_prompts, c.sample.reward_samples = spec["sample_prompts"], spec["samples"]
    c.sample.eval_samples = c.sample.policy_samples = spec["samples"]  # of the one evaluation prompt
    c.sample.rows, c.eval.prompts = 128, 1
    c.reward.recipes, c.reward.steps, c.reward.batch_size = ("init_sft",), spec["reward_steps"], 2 * spec["reward_pairs"]
    c.reward.learning_rate, c.reward.eval_every, c.reward.heldout_fraction = 1e-5, spec["reward_steps"], 0.02
    c.policy.steps, c.policy.batch_size, c.policy.samples = spec["policy_steps"], spec["policy_prompts"], spec["policy_samples"]
    c.policy.beta, c.policy.learning_rate, c.policy.keep_rollouts_every = spec["beta"], 1e-6, 0
    run = folder / f"run-{time.time_ns()}"
    timed("pipeline", stages.run_pipeline, c.lock(), run, ("sft", "sample", "reward", "policy"))
    status = timed("best-of-16", cli.main, [
        "generate", f"--workdir={run}", "--role=policy/init_sft", "--reward=init_sft", f"--best_of={spec['best_of']}",
        f"--prompts={folder / 'prompts.jsonl'}", f"--out={folder / 'best.jsonl'}"])
    assert status == 0
    out = {"best-of-16": timed.seconds["best-of-16"]}
    for stage in ("sft", "sample", "reward", "policy"):
        info = artifacts.read_json(run / stage / "done.json")["timing"]
        out |= {stage: round(info["seconds"], 3), f"{stage}, compiling": round(info["compile_seconds"], 3)}
    return out


def main(argv) -> int:
    side, path = argv
    spec = json.loads(pathlib.Path(path).read_text())
    if side == "ours":
        seconds = ours(spec)
    else:
        from benchmarks.speed import peers_trl

        seconds = peers_trl.job(spec, Stages())
    print(json.dumps(seconds))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
