"""The smallest config that runs the whole pipeline, for tests."""

from irl_jax.config import default


def tiny_config(**changes):
    """The testbed with a model of two layers and a few steps of everything; `changes` are dotted keys with __ for dots."""
    c = default()
    c.data.testbed.pretrain_responses = 300
    c.data.testbed.demonstrations = 60
    c.data.testbed.pairs = 40
    c.data.testbed.eval_prompts = 10
    c.model.num_layers = 2
    c.model.width = 32
    c.model.num_heads = 2
    c.model.num_kv_heads = 2
    c.model.mlp_width = 64
    c.adapter.rank = 2
    c.pretrain.steps = 12
    c.pretrain.batch_size = 16
    c.sft.steps = 6
    c.sft.batch_size = 8
    c.sample.reward_prompts = 32
    c.sample.reward_samples = 2
    c.sample.eval_samples = 16
    c.sample.policy_samples = 2
    c.sample.rows = 64
    c.reward.steps = 4
    c.reward.batch_size = 16
    c.reward.eval_every = 2
    c.policy.steps = 2
    c.policy.batch_size = 4
    c.policy.samples = 4
    c.eval.prompts = 8
    c.eval.temperatures = (0.5,)
    c.eval.divergence_prompts = 4
    for key, value in changes.items():
        c.update_from_flattened_dict({key.replace("__", "."): value})
    return c
