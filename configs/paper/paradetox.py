"""Detoxifying rewrites: human rewrites of toxic sentences as demonstrations, an init that has never rewritten anything.

  python -m benchmarks.evidence.paradetox --tsv=PATH/paradetox.tsv --out=runs/paper/paradetox      # makes the files named below
  python -m irl_jax run --config=configs/paper/paradetox.py --workdir=runs/paper/paradetox/seed-0 --config.seed=0
  python -m irl_jax run --config=configs/paper/paradetox.py:top_p --workdir=runs/paper/paradetox_top_p/seed-0 --config.seed=0
  python -m irl_jax run --config=configs/paper/paradetox.py:smoke --workdir=runs/paper/paradetox/smoke        # and :top_p_smoke

A seed takes 87 minutes on one CPU core, 9 of them the analyses that `python -m benchmarks.evidence.run paradetox` adds; one of ":top_p"
takes 35 (with an allocator that keeps its pages: docs/speed.md).

Golden is the probability of a toxicity classifier, fitted to sentences that are in no demonstration, that the response is polite, times how
much of the toxic sentence's content it keeps. Labels, for the recipe `preference`: the rewrite over the toxic sentence itself, which is a
pair by nature and not by a rater. The seed draws the split, all training and all samples; the judge's sentences are always the same.
":top_p" asks whether the order of the recipes turns on the sampling law: every sample is drawn at top-p 0.95; the recipes' rewards and
what best-of-N by them is worth are all it has.
"""

import os

from irl_jax.config import default

FOLDER = os.path.join("runs", "paper", "paradetox", "data")  # of benchmarks/evidence/paradetox.py


def get_config(name: str = ""):
    if name not in ("", "top_p", "smoke", "top_p_smoke"):
        raise ValueError(f"configs/paper/paradetox.py: unknown variant '{name}'; one of 'top_p', 'smoke', 'top_p_smoke'")
    c = default()
    shared = os.environ.get("IRL_JAX_SHARED", os.path.join("..", "shared"))
    c.model.path = os.path.join(shared, "models", "imdb-gpt2-6m")
    c.data.source = os.path.join(FOLDER, "demonstrations.jsonl")
    c.data.preference_source = os.path.join(FOLDER, "pairs.jsonl")
    c.data.max_prompt_tokens = 64
    c.data.truncate_prompts = True
    c.data.max_response_tokens = 40
    c.data.heldout_fraction = 0.05
    c.data.development_fraction = 0.05
    c.golden.kind = "classifier"
    c.golden.source = os.path.join(FOLDER, "golden.jsonl")
    c.golden.positive_rating = 1.0
    c.golden.preserves = "prompt"
    c.sft.epochs = 4.0
    c.sft.batch_size = 16
    c.sft.learning_rate = 1e-3
    c.sft.row_tokens = 256
    c.adapter.rank = 0  # whole trunks, by SFT's held-out loss at seed 100: 1.67, with adapters of rank 16 2.91
    c.sample.reward_prompts = 750
    c.sample.policy_samples = 8
    c.reward.steps = 100
    c.reward.learning_rate = 3e-4  # of whole trunks
    c.reward.batch_size = 48
    c.policy.recipes = ("init_sft", "init_demo", "sft_demo", "preference")
    if name.startswith("top_p"):
        c.sample.top_p = 0.95
        c.policy.recipes = ()
    c.policy.batch_size = 8
    c.policy.learning_rate = 2e-4
    c.policy.keep_rollouts_every = 5
    c.eval.best_of = (1, 2, 4, 5, 8, 10, 16, 30, 32, 50, 64)
    if name.endswith("smoke"):
        _smoke(c)
    return c


def _smoke(c):
    c.data.max_records = 400
    c.sft.epochs = 1.0
    c.sft.batch_size = 4
    c.sample.reward_prompts = 64
    c.sample.reward_samples = 2
    c.sample.policy_samples = 2
    c.sample.eval_samples = 8
    c.reward.recipes = ("init_sft", "preference")
    c.reward.steps = 4
    c.reward.batch_size = 8
    c.reward.eval_every = 2
    c.policy.recipes = c.policy.recipes[:1]
    c.policy.steps = 3
    c.policy.batch_size = 4
    c.policy.samples = 4
    c.policy.keep_rollouts_every = 1
    c.eval.prompts = 12
