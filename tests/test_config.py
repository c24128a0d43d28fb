"""What the config refuses before anything is written."""

import pytest

from irl_jax.config import check, default
from irl_jax.errors import UserError


def test_the_default_is_fine():
    check(default())


@pytest.mark.parametrize("key, value, message", [
    ("policy.kl", "k1", "policy.kl = 'k1'"),
    ("golden.kind", "human", "golden.kind"),
    ("sft.schedule", "step", "cosine, linear, constant"),
    ("policy.recipes", ("golden",), "unknown 'golden'"),
    ("reward.recipes", ("init_sft", "sft_init"), "unknown 'sft_init'"),
    ("reward.recipes", ("sft_demo",), "'init_sft' has no reward"),
    ("reward.batch_size", 0, "reward.batch_size = 0"),
    ("policy.samples", 1, "at least 2"),
    ("model.num_heads", 5, "must divide width"),
    ("adapter.rank", -1, "adapter.rank = -1"),
    ("sft.epochs", 0.0, "steps or of epochs"),
])
def test_refusals(key, value, message):
    config = default()
    config.update_from_flattened_dict({key: value})
    with pytest.raises(UserError, match=message):
        check(config)
