"""Your own demonstrations: JSONL of {prompt, response} (or {messages}) and a Hugging Face model of one of nine families.

  python -m irl_jax run --config=configs/demonstrations.py --workdir=runs/mine \
      --config.model.path=gpt2 --config.data.source=demonstrations.jsonl

There is no golden reward: the report shows held-out AUC, the closed form and the correlation with length for every recipe. Add
`--config.data.preference_source=pairs.jsonl` ({prompt, chosen, rejected}) and "preference" to reward.recipes where you have labels.
Hours on a CPU for GPT-2 (124M), minutes on an accelerator; start with `configs/demonstrations.py:smoke`.
"""

from irl_jax.config import default


def get_config(name: str = ""):
    c = default()
    c.model.path = "gpt2"
    c.data.source = "demonstrations.jsonl"
    c.data.max_prompt_tokens = 256
    c.data.max_response_tokens = 256
    c.golden.kind = "none"
    c.sft.row_tokens = 512
    c.sft.learning_rate = 5e-4
    c.adapter.rank = 16
    c.adapter.alpha = 32.0
    c.reward.recipes = ("init_sft", "init_demo", "sft_demo")
    c.reward.learning_rate = 5e-4
    c.sample.eval_samples = 16
    c.eval.prompts = 64
    if name == "smoke":
        _smoke(c)
    elif name:
        raise ValueError(f"configs/demonstrations.py: unknown variant '{name}'; only 'smoke'")
    return c


def _smoke(c):
    c.data.max_prompt_tokens = 64
    c.data.truncate_prompts = True
    c.data.max_response_tokens = 32
    c.data.max_records = 200
    c.sft.row_tokens = 128
    c.sft.batch_size = 4
    c.sft.steps = 4
    c.sample.reward_prompts = 16
    c.sample.reward_samples = 1
    c.sample.eval_samples = 4
    c.sample.policy_samples = 2
    c.reward.steps = 4
    c.reward.batch_size = 8
    c.reward.eval_every = 2
    c.policy.steps = 2
    c.policy.batch_size = 2
    c.policy.samples = 2
    c.eval.prompts = 4
