"""Controlled sentiment: from a language model of movie reviews and the positive ones among them to a positive writer.

  python -m irl_jax run --config=configs/imdb.py --workdir=runs/imdb            # under 40 minutes on 2 CPU cores
  python -m irl_jax run --config=configs/imdb.py:smoke --workdir=runs/imdb-smoke  # under 3 minutes

init: a GPT-2-architecture model pretrained on unlabelled reviews; `--config.model.path=gpt2` takes the hub's GPT-2 instead.
Elsewhere, set IRL_JAX_SHARED or the three paths below. Data: the Large Movie Review Dataset as JSONL of {rating, text};
`--config.data.source=tfds:imdb_reviews --config.data.fields.rating=label --config.data.min_rating=1` reads TensorFlow Datasets' copy where
it is prepared.
Golden: a text classifier fitted to the human stars of the other split, on windows as long as the responses.
"""

import os

from irl_jax.config import default


def get_config(name: str = ""):
    c = default()
    shared = os.environ.get("IRL_JAX_SHARED", os.path.join("..", "shared"))
    c.model.path = os.path.join(shared, "models", "imdb-gpt2-6m")
    c.data.source = os.path.join(shared, "data", "imdb", "train.jsonl.gz")
    c.data.kind = "continuations"
    c.data.min_rating = 7.0
    c.data.prompt_words = (8, 16)
    c.data.max_prompt_tokens = 48
    c.data.truncate_prompts = True
    c.data.max_response_tokens = 64
    c.data.max_demonstrations = 3000
    c.data.heldout_fraction = 0.05
    c.data.development_fraction = 0.02
    c.golden.kind = "classifier"
    c.golden.source = os.path.join(shared, "data", "imdb", "test.jsonl.gz")
    c.sft.epochs = 2.0
    c.sft.batch_size = 12
    c.sft.learning_rate = 1e-3
    c.sft.row_tokens = 256  # three demonstrations of about 82 tokens: 95% of the positions
    c.adapter.rank = 16
    c.adapter.alpha = 32.0
    c.sample.reward_prompts = 750
    c.sample.reward_samples = 4
    c.sample.eval_samples = 64
    c.sample.policy_samples = 8
    c.sample.rows = 256
    c.reward.recipes = ("init_sft", "init_demo", "sft_demo")  # no preference labels exist for these reviews
    c.reward.steps = 100
    c.reward.batch_size = 48
    c.policy.steps = 60
    c.policy.batch_size = 8
    c.policy.samples = 8
    c.eval.prompts = 80
    if name == "smoke":
        _smoke(c)
    elif name:
        raise ValueError(f"configs/imdb.py: unknown variant '{name}'; only 'smoke'")
    return c


def _smoke(c):
    c.data.max_records = 1500
    c.data.max_demonstrations = 200
    c.data.max_response_tokens = 32
    c.golden.window_words = 24
    c.sft.epochs = 1.0
    c.sample.reward_prompts = 64
    c.sample.reward_samples = 2
    c.sample.policy_samples = 2
    c.sample.eval_samples = 8
    c.reward.steps = 6
    c.reward.batch_size = 16
    c.reward.eval_every = 3
    c.policy.steps = 3
    c.policy.batch_size = 4
    c.policy.samples = 4
    c.eval.prompts = 12
