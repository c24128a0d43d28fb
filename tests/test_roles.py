"""Roles: which leaves each one owns, what they start from, and that nothing they own is shared with the trunk."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from irl_jax import roles
from irl_jax.models.transformer import ModelConfig, hidden_states, init_trunk
from irl_jax.roles import RewardSpec

MODEL = ModelConfig(vocab_size=11, num_layers=2, width=8, num_heads=2, num_kv_heads=2, head_dim=4, mlp_width=16,
                    max_positions=8, adapter_scale=2.0)
KEY = jax.random.key(0)
TRUNK = init_trunk(jax.random.key(1), MODEL)


def buffers(tree):
    return {leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(tree)}


def equal(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.parametrize(("role", "rank", "names"), [
    ("init", 4, {"trunk"}), ("init", 0, {"trunk"}),
    ("sft", 4, {"adapter"}), ("sft", 0, {"trunk"}),
    ("policy", 4, {"adapter"}), ("policy", 0, {"trunk"}),
    ("reward", 4, {"adapter", "head"}), ("reward", 0, {"trunk", "head"}),
])  # fmt: skip
def test_leaves_of_each_role(role, rank, names):
    leaves = roles.init_leaves(KEY, role, MODEL, rank, TRUNK)
    assert set(leaves) == names
    if "trunk" in names:
        equal(leaves["trunk"], TRUNK)
    assert not buffers(leaves) & buffers(TRUNK)


def test_what_trains_is_float32_on_a_trunk_that_is_not():
    halved = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), TRUNK)
    leaves = roles.init_leaves(KEY, "sft", MODEL, 0, halved)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(leaves)} == {"float32"}
    equal(leaves["trunk"], jax.tree.map(lambda leaf: leaf.astype(jnp.float32), halved))


@pytest.mark.parametrize("rank", [0, 4])
def test_policy_starts_from_a_copy_of_sft(rank):
    sft = roles.init_leaves(KEY, "sft", MODEL, rank, TRUNK)
    sft = jax.tree.map(lambda x: x + 1.0, sft)
    policy = roles.init_leaves(jax.random.key(5), "policy", MODEL, rank, TRUNK, start=sft)
    equal(policy, sft)
    assert not buffers(policy) & buffers(sft)


def test_reward_goes_on_from_a_reward_and_gets_a_zero_head_from_sft():
    reward = roles.init_leaves(KEY, "reward", MODEL, 4, TRUNK)
    assert not np.any(reward["head"]["kernel"])
    trained = jax.tree.map(lambda x: x + 1.0, reward)
    equal(roles.init_leaves(KEY, "reward", MODEL, 4, TRUNK, start=trained), trained)
    from_sft = roles.init_leaves(KEY, "reward", MODEL, 4, TRUNK, start={"adapter": trained["adapter"]})
    equal(from_sft["adapter"], trained["adapter"])
    assert not np.any(from_sft["head"]["kernel"])


def test_rewards_of_an_ensemble_differ_by_their_key():
    first, second = (roles.init_leaves(jax.random.key(k), "reward", MODEL, 4, TRUNK)["adapter"] for k in (0, 1))
    assert np.any(first["blocks"]["mlp"]["up"]["a"] != second["blocks"]["mlp"]["up"]["a"])


def test_every_role_starts_as_the_trunk_itself():
    tokens = jnp.array([[1, 2, 3, 4]])
    positions, segments = jnp.arange(4)[None], jnp.ones((1, 4), jnp.int32)
    base = hidden_states(MODEL, roles.variables(TRUNK, None), tokens, positions, segments)
    for role in ("sft", "policy", "reward"):
        for rank in (0, 4):
            leaves = roles.init_leaves(KEY, role, MODEL, rank, TRUNK)
            trunk = None if rank == 0 else TRUNK  # a whole trunk of its own needs no shared one
            got = hidden_states(MODEL, roles.variables(trunk, leaves), tokens, positions, segments)
            np.testing.assert_array_equal(got, base)


def test_variables_prefer_the_own_trunk_and_leave_out_what_is_not_there():
    assert set(roles.variables(TRUNK, None)) == {"params"}
    assert roles.variables(TRUNK, {"trunk": 1, "head": 2}) == {"params": 1}
    assert roles.variables(3, {"adapter": 1, "head": 2}) == {"params": 3, "adapter": 1}


def test_programmers_mistakes():
    with pytest.raises(ValueError, match="none of"):
        roles.init_leaves(KEY, "critic", MODEL, 4, TRUNK)
    with pytest.raises(ValueError, match="whole trunk"):
        roles.init_leaves(KEY, "policy", MODEL, 0, TRUNK, start={"adapter": {}})


# ----------------------------------------------------------------------------------- rewards of other kinds, and values
def shapes(tree):
    return jax.tree.map(np.shape, tree)


@pytest.mark.parametrize("rank", [0, 4])
@pytest.mark.parametrize(("spec", "names"), [
    (RewardSpec(), {"adapter", "head"}), (RewardSpec("trunk"), {"trunk", "head"}), (RewardSpec("frozen"), {"head"})])  # fmt: skip
def test_leaves_of_each_body(spec, names, rank):
    if rank == 0 and "adapter" in names:
        names = {"trunk", "head"}
    one = roles.init_leaves(KEY, "reward", MODEL, rank, TRUNK, reward=spec)
    assert set(one) == names and not buffers(one) & buffers(TRUNK)
    many = roles.init_leaves(KEY, "reward", MODEL, rank, TRUNK, reward=spec._replace(ensemble=3))
    assert set(many) == {"members"}
    assert shapes(many["members"]) == jax.tree.map(lambda x: (3, *x.shape), one)


@pytest.mark.parametrize("spec", [RewardSpec(head="mlp", mlp_width=5, ensemble=3), RewardSpec("trunk", "mlp", 5, 3)], ids=str)
def test_members_of_an_ensemble_differ_where_something_is_drawn(spec):
    members = roles.init_leaves(KEY, "reward", MODEL, 4, TRUNK, reward=spec)["members"]
    assert members["head"]["hidden"]["kernel"].shape == (3, 8, 5)
    drawn = [members["head"]["hidden"]["kernel"]]
    drawn += [members["adapter"]["blocks"]["mlp"]["up"]["a"]] if spec.body == "adapter" else []
    for leaf in drawn:
        assert len({np.asarray(one).tobytes() for one in leaf}) == 3
    if spec.body == "trunk":
        jax.tree.map(lambda mine, shared: [np.testing.assert_array_equal(one, shared) for one in mine], members["trunk"], TRUNK)


def test_an_ensemble_goes_on_from_its_members_or_from_one_reward():
    spec = RewardSpec(ensemble=2)
    trained = jax.tree.map(lambda x: x + 1.0, roles.init_leaves(KEY, "reward", MODEL, 4, TRUNK, reward=spec))
    again = roles.init_leaves(jax.random.key(5), "reward", MODEL, 4, TRUNK, start=trained, reward=spec)
    equal(again, trained)
    assert not buffers(again) & buffers(trained)
    one = jax.tree.map(lambda x: x[1], trained["members"])
    both = roles.init_leaves(KEY, "reward", MODEL, 4, TRUNK, start=one, reward=spec)
    equal(both, {"members": jax.tree.map(lambda x: jnp.stack([x, x]), one)})
    with pytest.raises(ValueError, match="ensemble of 3 cannot start from one of 2"):
        roles.init_leaves(KEY, "reward", MODEL, 4, TRUNK, start=trained, reward=spec._replace(ensemble=3))


@pytest.mark.parametrize(("rank", "body"), [(0, "trunk"), (4, "adapter")])
def test_a_policys_value_starts_at_init_with_a_zero_head(rank, body):
    sft = jax.tree.map(lambda x: x + 1.0, roles.init_leaves(KEY, "sft", MODEL, rank, TRUNK))
    policy = roles.init_leaves(KEY, "policy", MODEL, rank, TRUNK, start=sft, value=True)
    value = policy.pop("value")
    equal(policy, sft)
    assert set(value) == {body, "head"} and not np.any(value["head"]["kernel"])
    assert not buffers(value) & (buffers(TRUNK) | buffers(sft))
    tokens = jnp.array([[1, 2, 3, 4]])
    rest = jnp.arange(4)[None], jnp.ones((1, 4), jnp.int32)
    trunk = None if rank == 0 else TRUNK
    np.testing.assert_array_equal(hidden_states(MODEL, roles.variables(trunk, value), tokens, *rest),
                                  hidden_states(MODEL, roles.variables(TRUNK, None), tokens, *rest))  # fmt: skip
    equal(roles.variables(trunk, {**policy, "value": value}), roles.variables(trunk, policy))


def test_a_frozen_body_is_the_shared_trunk():
    leaves = roles.init_leaves(KEY, "reward", MODEL, 4, TRUNK, reward=RewardSpec("frozen"))
    assert roles.variables(TRUNK, leaves) == {"params": TRUNK}


@pytest.mark.parametrize("members", [1, 3])
def test_a_finished_reward_has_its_length(members):
    spec = RewardSpec(ensemble=members, length_residual=True)
    finished = roles.finished_leaves(KEY, "reward", MODEL, 4, TRUNK, reward=spec)
    own = finished["members"] if members > 1 else finished
    shape = (members,) if members > 1 else ()
    assert shapes(own.pop("length")) == {"slope": shape, "centre": shape}
    equal(finished, roles.init_leaves(KEY, "reward", MODEL, 4, TRUNK, reward=spec))  # which no step trains


def test_a_spec_is_read_from_the_config():
    config = ConfigDict({"body": "trunk", "head": "mlp", "mlp_width": 7, "ensemble": 2, "length_residual": True, "steps": 9})
    assert RewardSpec.of(config) == RewardSpec("trunk", "mlp", 7, 2, True)
