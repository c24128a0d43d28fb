"""Anthropic's HH-RLHF, harmless split: transcripts as published; chosen responses as demonstrations, the pairs for `preference`.

  python -m irl_jax run --config=configs/hh_harmless.py --workdir=runs/hh \
      --config.model.path=gpt2 --config.data.source=hh:harmless-base/train.jsonl.gz

data.source defaults to a copy of the test split in the shared folder ($IRL_JAX_SHARED, or ../shared). Elsewhere fetch
harmless-base/train.jsonl.gz of the published data (https://huggingface.co/datasets/Anthropic/hh-rlhf) and give its path after "hh:", as
above; any JSONL(.gz) of {chosen, rejected} transcripts will do.

The prompt is everything up to the last "Assistant:"; its tail is kept where it is longer than max_prompt_tokens. No golden reward stands
behind these data: rewards are judged by their agreement with held-out human preferences (`pair_accuracy`). A GPT-2 (124M) takes hours on a
CPU; use an accelerator. `configs/hh_harmless.py:smoke` checks the path in a minute with any small model.
"""

import os

from irl_jax.config import default


def get_config(name: str = ""):
    c = default()
    shared = os.environ.get("IRL_JAX_SHARED", os.path.join("..", "shared"))
    c.model.path = "gpt2"
    c.data.source = "hh:" + os.path.join(shared, "data", "hh", "harmless-base.test.jsonl.gz")
    c.data.max_prompt_tokens = 256
    c.data.max_response_tokens = 128
    c.data.truncate_prompts = True
    c.golden.kind = "none"
    c.sft.epochs = 1.0
    c.sft.row_tokens = 512
    c.sft.learning_rate = 5e-4
    c.adapter.rank = 16
    c.adapter.alpha = 32.0
    c.reward.steps = 300
    c.reward.learning_rate = 5e-4
    c.sample.reward_prompts = 1000
    c.sample.reward_samples = 2
    c.sample.eval_samples = 16
    c.eval.prompts = 64
    if name == "smoke":
        smoke(c)
    elif name:
        raise ValueError(f"configs/hh_harmless.py: unknown variant '{name}'; only 'smoke'")
    return c


def smoke(c):
    """Shrinks a config of these data to what any computer runs."""
    shared = os.environ.get("IRL_JAX_SHARED", os.path.join("..", "shared"))
    c.model.path = os.path.join(shared, "models", "imdb-gpt2-6m")
    c.data.max_records = 300
    c.data.max_prompt_tokens = 96
    c.data.max_response_tokens = 32
    c.sft.row_tokens = 128
    c.sft.batch_size = 8
    c.sample.reward_prompts = 48
    c.sample.reward_samples = 1
    c.sample.eval_samples = 4
    c.sample.policy_samples = 2
    c.reward.steps = 6
    c.reward.batch_size = 16
    c.reward.eval_every = 3
    c.policy.steps = 3
    c.policy.batch_size = 4
    c.policy.samples = 4
    c.eval.prompts = 8
