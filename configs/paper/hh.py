"""Harmless replies: rewards learnt from demonstrations, judged by agreement with human preferences that none of them saw.

  python -m benchmarks.evidence.hh prepare --transcripts=PATH/harmless-base/test.jsonl.gz --out=runs/paper/hh   # makes its files
  python -m irl_jax run --config=configs/paper/hh.py --workdir=runs/paper/hh/seed-0 --config.seed=0
  python -m benchmarks.evidence.hh baselines runs/paper/hh/seed-0       # beside chance, length and a bag of words, on the same pairs
  python -m irl_jax run --config=configs/paper/hh.py:smoke --workdir=runs/paper/hh/smoke

A seed takes 61 to 82 minutes on one CPU core, 10 to 14 of them the analyses that `python -m benchmarks.evidence.run hh` adds
(with an allocator that keeps its pages: docs/speed.md).

No golden reward stands behind these data. A quarter of the pairs' prompts is held out for the judging and another for early stopping. The
seed draws which, and everything else but which conversations lend demonstrations and which pairs (see benchmarks/evidence/hh.py). The model
has 6M parameters and has read nothing but movie reviews.
"""

import os

from irl_jax.config import default

FOLDER = os.path.join("runs", "paper", "hh", "data")  # of benchmarks/evidence/hh.py


def get_config(name: str = ""):
    if name not in ("", "smoke"):
        raise ValueError(f"configs/paper/hh.py: unknown variant '{name}'; only 'smoke'")
    c = default()
    shared = os.environ.get("IRL_JAX_SHARED", os.path.join("..", "shared"))
    c.model.path = os.path.join(shared, "models", "imdb-gpt2-6m")
    c.data.source = os.path.join(FOLDER, "demonstrations.jsonl")
    c.data.preference_source = os.path.join(FOLDER, "pairs.jsonl")
    c.data.max_prompt_tokens = 128
    c.data.truncate_prompts = True
    c.data.max_response_tokens = 96
    c.data.heldout_fraction = 0.05
    c.data.development_fraction = 0.05
    c.golden.kind = "none"
    c.sft.epochs = 3.0
    c.sft.batch_size = 8
    c.sft.learning_rate = 1e-3
    c.sft.row_tokens = 256
    c.adapter.rank = 16
    c.adapter.alpha = 32.0
    c.sample.reward_prompts = 1000  # all there are
    c.sample.reward_samples = 2
    c.sample.eval_samples = 8
    c.sample.policy_samples = 8
    c.reward.controls = ("log_ratio", "length", "random")
    c.reward.heldout_fraction = 0.5
    c.reward.steps = 100
    c.reward.batch_size = 48
    c.policy.recipes = ()
    c.eval.prompts = 40
    if name == "smoke":
        _smoke(c)
    return c


def _smoke(c):
    c.data.max_records = 200
    c.data.max_prompt_tokens = 64
    c.data.max_response_tokens = 24
    c.sft.epochs = 1.0
    c.sft.row_tokens = 128
    c.sample.reward_prompts = 48
    c.sample.reward_samples = 1
    c.sample.eval_samples = 4
    c.sample.policy_samples = 2
    c.reward.recipes = ("init_sft", "preference")
    c.reward.steps = 4
    c.reward.batch_size = 8
    c.reward.eval_every = 2
    c.eval.prompts = 8
