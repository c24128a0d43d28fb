"""The embedded testbed: a small world of prompts and responses with an exact golden reward; nothing is downloaded.

  python -m irl_jax run --config=configs/testbed.py --workdir=runs/testbed              # 6 to 8 minutes on 2 CPU cores
  python -m irl_jax run --config=configs/testbed.py:hard --workdir=runs/testbed-hard    # about as long
  python -m irl_jax run --config=configs/testbed.py:smoke --workdir=runs/testbed-smoke  # about a minute; so is :hard_smoke

The quickstart's world has kinds of answers: init mostly answers badly, sft less often, the demonstrator never, and a response is wholly of
one kind. `:hard` is irl_jax/config.py's own: good and bad sentences stand in one response, and sft at a low temperature is as good as the
demonstrator. docs/testbed.md says what each teaches and by which gates they were chosen; `:smoke` and `:hard_smoke` only show that every
stage runs, their numbers mean nothing.
"""

from irl_jax.config import default


def get_config(name: str = ""):
    if name not in ("", "smoke", "hard", "hard_smoke"):
        raise ValueError(f"configs/testbed.py: unknown variant '{name}'; one of 'smoke', 'hard', 'hard_smoke'")
    c = default()
    if not name.startswith("hard"):
        _kinds(c)
    if name.endswith("smoke"):
        _smoke(c)
    return c


def _kinds(c):
    c.data.testbed.kinds = 1.0  # a response is wholly of one kind
    c.data.testbed.initial_quality = 0.25
    c.data.testbed.initial_dialect = 0.4  # less form, and more of it in init: the kinds are what sets sft apart
    c.data.testbed.dialect_strength = 0.3
    c.data.testbed.tail_words = 20
    c.model.num_layers = 2
    c.pretrain.steps = 600
    c.pretrain.learning_rate = 4e-3
    c.sft.learning_rate = 1e-3
    c.sft.epochs = 1.25  # partial: sft must not reach the demonstrator, not even at a low temperature
    c.policy.recipes = ("sft_demo",)  # the reward that `robust` chooses on seed 100


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
