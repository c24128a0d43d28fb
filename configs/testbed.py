"""The embedded testbed: a small world of prompts and responses with an exact golden reward; nothing is downloaded.

  python -m irl_jax run --config=configs/testbed.py --workdir=runs/testbed              # under 5 minutes on 2 CPU cores
  python -m irl_jax run --config=configs/testbed.py:smoke --workdir=runs/testbed-smoke  # about a minute

Every setting is irl_jax/config.py's own. The numbers to expect stand in the README's testbed table; `:smoke` only shows
that every stage runs, its numbers mean nothing.
"""

from irl_jax.config import default


def get_config(name: str = ""):
    c = default()
    if name == "smoke":
        _smoke(c)
    elif name:
        raise ValueError(f"configs/testbed.py: unknown variant '{name}'; only 'smoke'")
    return c


def _smoke(c):
    c.data.testbed.pretrain_responses = 1000
    c.data.testbed.demonstrations = 64
    c.data.testbed.pairs = 64
    c.data.testbed.eval_prompts = 8
    c.model.num_layers = 1
    c.model.width = 32
    c.model.mlp_width = 64
    c.pretrain.steps = 40
    c.sft.epochs = 1.0
    c.sample.reward_prompts = 32
    c.sample.reward_samples = 1
    c.sample.eval_samples = 8
    c.sample.policy_samples = 2
    c.sample.rows = 64
    c.reward.steps = 6
    c.reward.batch_size = 16
    c.reward.eval_every = 3
    c.policy.steps = 3
    c.policy.keep_rollouts_every = 1  # so that the report's curve over so few steps has points
    c.policy.batch_size = 4
    c.policy.samples = 4
    c.eval.prompts = 8
    c.eval.divergence_prompts = 4
