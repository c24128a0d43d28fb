"""The rule table at full size, the mesh's errors, padding, and compiled steps that keep shardings."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AbstractMesh, AxisType, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from irl_jax import hf, policy_steps, roles, sharding, steps
from irl_jax.errors import UserError
from irl_jax.models.layers import by_rows
from irl_jax.models.transformer import init_response_cache, init_trunk, prefill
from irl_jax.types import PolicyBatch, PromptBatch, RewardBatch, SampleBatch, TokenBatch, TrainState

GPT2, LLAMA3_8B, GEMMA_2B, GEMMA_7B = map(hf.read_config, ("gpt2", "meta-llama/Meta-Llama-3-8B", "google/gemma-2b", "google/gemma-7b"))
MODELS = {"gpt2": GPT2, "llama3-8b": LLAMA3_8B, "gemma-2b": GEMMA_2B, "gemma-7b": GEMMA_7B}
MESHES = {"fsdp": (1, 16, 1), "fsdp-tensor": (1, 8, 2), "replicas": (2, 8, 1)}
BATCH = TokenBatch(*(jax.ShapeDtypeStruct((16, 32), jnp.int32),) * 4)
ROW = jax.ShapeDtypeStruct((16,), jnp.float32)
SPECS = (roles.RewardSpec("frozen", "mlp", length_residual=True), roles.RewardSpec("trunk", ensemble=3, length_residual=True),
         roles.RewardSpec("adapter", "mlp", ensemble=3))  # fmt: skip


def abstract(data=1, fsdp=4, tensor=2):
    return AbstractMesh((data, fsdp, tensor), sharding.AXES, (AxisType.Auto,) * 3)


def config(data=-1, fsdp=1, tensor=1):
    return ConfigDict({"data": data, "fsdp": fsdp, "tensor": tensor})


def paths(tree):
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return [(jax.tree_util.keystr(path, simple=True, separator="/"), leaf) for path, leaf in leaves]


@functools.cache
def everything(model):
    """Every kind of tree there is: states of all roles in both modes, with optimizer, batches, samples and caches."""

    def make():
        trunk = init_trunk(jax.random.key(0), model)
        optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3, weight_decay=0.1, mask=steps._decayed))
        states = {
            f"{role}{rank}": steps.init_state(roles.init_leaves(jax.random.key(0), role, model, rank, trunk), optimizer)
            for role in ("init", "sft", "policy", "reward")
            for rank in (0, 8)
        }
        for rank in (0, 8):  # the optional leaves: a value beside the policy, an ensemble, a body of its own kind, the length
            policy = roles.init_leaves(jax.random.key(0), "policy", model, rank, trunk, value=True)
            states[f"value{rank}"] = steps.init_state(policy, optimizer, policy_steps.init_control(0.1))
            for spec in SPECS:
                leaves = roles.init_leaves(jax.random.key(0), "reward", model, rank, trunk, reward=spec)
                finished = roles.finished_leaves(jax.random.key(0), "reward", model, rank, trunk, reward=spec)
                states[f"{rank}{spec}"] = steps.init_state(leaves, optimizer), finished
        tokens, lengths = jnp.zeros((16, 16), jnp.int32), jnp.ones(16, jnp.int32)
        _, prompt_cache = prefill(model, roles.variables(trunk, None), tokens, lengths)
        caches = {"prompt_cache": prompt_cache, "response_cache": init_response_cache(model, 16, 4, 16)}
        samples = SampleBatch(*(jnp.zeros((16, 4, 16)),) * 2, jnp.zeros((16, 4)), *(jnp.zeros((16, 4, 16)),) * 2)
        return trunk, states, caches, samples, PromptBatch(tokens, lengths, lengths)

    shapes = jax.eval_shape(make)
    return (*shapes, BATCH, RewardBatch(BATCH, ROW, ROW, ROW), PolicyBatch(BATCH, BATCH.mask, BATCH.mask, BATCH.mask, BATCH.mask, ROW, ROW))


NORMED = dataclasses.replace(LLAMA3_8B, qk_norm=True, post_norms=True)  # what Gemma 3 has of leaves


@functools.cache
def all_leaves():
    """(path, shape) of every leaf there is; one of each name and rank would do, but all are."""
    return sorted({(path, leaf.shape) for model in (GPT2, LLAMA3_8B, NORMED) for tree in everything(model) for path, leaf in paths(tree)})


@pytest.mark.parametrize("axes", MESHES.values(), ids=MESHES)
@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_every_leaf_matches_one_rule_and_divides_at_full_size(model, axes):
    trees, mesh = everything(model), abstract(*axes)
    assert sum(len(jax.tree.leaves(tree)) for tree in trees) > 300
    for tree in trees:  # tree_shardings raises where not exactly one rule matches, and shard_shape where a dimension does not divide
        for leaf, spec in zip(jax.tree.leaves(tree), jax.tree.leaves(sharding.tree_shardings(tree, mesh)), strict=True):
            spec.shard_shape(leaf.shape)


@pytest.mark.parametrize(("model", "axes", "flag"), [
    (GPT2, (1, 7, 1), "mesh.fsdp = 7 does not divide"), (GEMMA_2B, (1, 3, 1), "--config.mesh.fsdp to a divisor of 2048"),
    (GEMMA_7B, (1, 1, 5), "mesh.tensor = 5 does not divide"), (LLAMA3_8B, (1, 1, 3), "--config.mesh.tensor to a divisor of"),
], ids=["gpt2", "gemma-2b", "gemma-7b", "llama3-8b"])  # fmt: skip
def test_full_size_on_a_mesh_that_does_not_divide_names_the_flag(model, axes, flag):
    trunk = jax.eval_shape(lambda: init_trunk(jax.random.key(0), model))
    with pytest.raises(UserError, match=flag):
        sharding.tree_shardings(trunk, abstract(*axes))


def test_activations_are_held_to_their_rows_under_a_mesh():
    """By rows where a mesh is in context and they divide; without one a model is what it is."""
    constraints = lambda rows: str(jax.make_jaxpr(by_rows)(jnp.zeros((rows, 4, 6)))).count("sharding_constraint")
    assert constraints(8) == 0
    with jax.sharding.use_abstract_mesh(abstract(2, 4, 1)):
        assert constraints(8) == 1 and constraints(12) == 0
    counts = []
    step = sharding.compile_step(lambda x: counts.append(constraints(8)) or x, sharding.make_mesh(config(), devices=jax.devices()[:1]))
    step(jnp.ones(3))
    assert counts == [1]


@pytest.mark.parametrize("rule", [pattern for pattern, _ in sharding.RULES])
def test_every_rule_is_used(rule, monkeypatch):
    """Without it, some leaf has none."""
    monkeypatch.setattr(sharding, "RULES", tuple(pair for pair in sharding.RULES if pair[0] != rule))
    with pytest.raises(ValueError, match="0 sharding rules"):
        for leaf_path, shape in all_leaves():
            sharding.spec_for(leaf_path, shape, abstract())


@pytest.mark.parametrize("model", [GPT2, LLAMA3_8B], ids=["gpt2", "llama3-8b"])
def test_the_trunk_is_split_over_all_model_devices(model):
    """A device holds an eighth of every big leaf; only an odd vocabulary may cost more, a quarter."""
    trunk = jax.eval_shape(lambda: init_trunk(jax.random.key(0), model))
    for (path, leaf), spec in zip(paths(trunk), jax.tree.leaves(sharding.tree_shardings(trunk, abstract())), strict=True):
        ways = leaf.size / np.prod(spec.shard_shape(leaf.shape))
        if leaf.size > 1_000_000:
            assert ways == (8 if "embed" not in path or leaf.shape[0] % 2 == 0 and "positions" not in path else 4), path


def test_optimizer_state_is_split_as_its_parameters():
    trunk = jax.eval_shape(lambda: init_trunk(jax.random.key(0), GPT2))
    state = jax.eval_shape(lambda t: steps.init_state({"trunk": t}, optax.adamw(1e-3)), trunk)
    shardings = sharding.tree_shardings(state, abstract())
    adam = shardings.opt_state[0]
    assert adam.mu == adam.nu == shardings.leaves
    assert shardings.leaves["trunk"] == sharding.tree_shardings(trunk, abstract())
    assert adam.count.spec == PartitionSpec()


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_an_ensembles_leaves_and_moments_are_split_as_one_members_behind_a_whole_axis(spec):
    trunk = jax.eval_shape(lambda: init_trunk(jax.random.key(0), GPT2))
    specs = lambda tree: jax.tree.map(lambda one: one.spec, sharding.tree_shardings(tree, abstract()))

    def state(members):
        leaves = lambda t: roles.init_leaves(jax.random.key(0), "reward", GPT2, 8, t, reward=spec._replace(ensemble=members))
        return specs(jax.eval_shape(lambda t: steps.init_state(leaves(t), optax.adamw(1e-3)), trunk))

    one, many = state(1), state(3)
    behind = jax.tree.map(lambda inner: PartitionSpec(None, *inner), one.leaves)
    assert many.leaves == {"members": behind}
    assert many.opt_state[0].mu == many.opt_state[0].nu == many.leaves
    assert many.opt_state[0].count == many.step == PartitionSpec()


def test_a_policys_control_is_on_every_device():
    optimizer, leaves = optax.sgd(0.1), {"head": {"kernel": jnp.zeros((3, 1)), "bias": jnp.zeros(1)}}
    state = steps.init_state(leaves, optimizer, policy_steps.init_control(0.1))
    control = jax.tree.leaves(sharding.tree_shardings(state, abstract()).control)
    assert len(control) == 4 and {one.spec for one in control} == {PartitionSpec()}


@pytest.mark.parametrize(("path", "shape", "spec"), [
    ("trunk/embed/tokens", (50257, 768), PartitionSpec(None, "fsdp")),
    ("embed/tokens", (512, 64), PartitionSpec("tensor", "fsdp")),
    ("unembed/kernel", (64, 511), PartitionSpec("fsdp", None)),
    ("opt_state/1/0/mu/trunk/blocks/attention/q/kernel", (2, 64, 64), PartitionSpec(None, "fsdp", "tensor")),
    ("adapter/blocks/mlp/down/a", (2, 64, 8), PartitionSpec(None, "tensor", None)),
    ("rows/tokens", (16, 8), PartitionSpec(("data", "fsdp"))),
    ("weight", (16,), PartitionSpec(("data", "fsdp"))),
    ("prompt_cache/0/k", (8, 1, 16, 4), PartitionSpec(("data", "fsdp"), None)),
    ("rows/returns", (16, 8), PartitionSpec(("data", "fsdp"))),
    ("head/hidden/kernel", (64, 16), PartitionSpec()),
    ("length/slope", (), PartitionSpec()),
    ("leaves/members/length/slope", (3,), PartitionSpec(None)),
    ("leaves/members/trunk/embed/tokens", (3, 512, 64), PartitionSpec(None, "tensor", "fsdp")),
    ("opt_state/1/0/mu/members/adapter/blocks/mlp/up/b", (3, 2, 8, 64), PartitionSpec(None, None, None, "tensor")),
    ("leaves/value/adapter/blocks/mlp/up/b", (2, 8, 64), PartitionSpec(None, None, "tensor")),
])  # fmt: skip
def test_specs(path, shape, spec):
    assert sharding.spec_for(path, shape, abstract()) == spec


@pytest.mark.parametrize(("path", "shape", "flag"), [
    ("trunk/blocks/mlp/up/kernel", (2, 64, 171), "--config.mesh.tensor to a divisor of 171"),
    ("trunk/blocks/mlp/up/kernel", (2, 66, 128), "--config.mesh.fsdp to a divisor of 66"),
    ("rows/tokens", (18, 8), "batch size that is a multiple of 4"),
])  # fmt: skip
def test_what_does_not_divide_names_the_flag(path, shape, flag):
    with pytest.raises(UserError, match=flag) as error:
        sharding.spec_for(path, shape, abstract())
    assert path in str(error.value) and "\n" not in str(error.value)


def test_unknown_leaves_and_wrong_ranks_are_bugs():
    with pytest.raises(ValueError, match="0 sharding rules"):
        sharding.spec_for("trunk/blocks/mlp/extra/kernel", (2, 8, 8), abstract())
    with pytest.raises(ValueError, match="fewer dimensions"):
        sharding.spec_for("trunk/blocks/mlp/up/kernel", (8, 8), abstract())


@pytest.mark.parametrize(("settings", "message"), [
    ({"fsdp": 3}, "--config.mesh.fsdp"),
    ({"data": 2}, "--config.mesh.data=-1"),
    ({"tensor": 0}, "mesh.tensor = 0"),
    ({"fsdp": -1}, "mesh.fsdp = -1"),
    ({"data": 0}, "mesh.data = 0: must be at least 1, or -1"),
])  # fmt: skip
def test_meshes_that_do_not_fit_name_the_flag(settings, message):
    with pytest.raises(UserError, match=message):
        sharding.make_mesh(config(**settings), devices=jax.devices()[:1])


def test_one_device_is_a_mesh_too():
    mesh = sharding.make_mesh(config(), devices=jax.devices()[:1])
    assert dict(mesh.shape) == {"data": 1, "fsdp": 1, "tensor": 1}
    assert sharding.row_multiple(mesh) == 1


def tokens(rows, length=4):
    ones = np.ones((rows, length), np.int32)
    return TokenBatch(ones * 3, ones, ones, ones.astype(np.float32))


def test_pad_rows_adds_rows_that_count_nothing():
    padded = sharding.pad_rows(RewardBatch(tokens(5), np.full(5, 3), np.ones(5), np.ones(5)), 4)
    assert padded.rows.tokens.shape == (8, 4) and padded.last.shape == (8,)
    np.testing.assert_array_equal(padded.weight, [1] * 5 + [0] * 3)
    assert not padded.rows.segments[5:].any() and not padded.rows.mask[5:].any()
    assert sharding.pad_rows(tokens(8), 4).tokens.shape == (8, 4)


def test_pad_rows_keeps_pairs_half_a_batch_apart():
    rows = tokens(6)._replace(tokens=np.arange(6)[:, None] * np.ones((1, 4), int))
    padded = sharding.pad_rows(RewardBatch(rows, np.zeros(6), np.ones(6), np.ones(6)), 4, paired=True)
    np.testing.assert_array_equal(padded.rows.tokens[:, 0], [0, 1, 2, 0, 3, 4, 5, 0])
    np.testing.assert_array_equal(padded.weight, [1, 1, 1, 0, 1, 1, 1, 0])


def test_compile_step_donates_keeps_shardings_and_counts_traces():
    mesh = sharding.make_mesh(config(), devices=jax.devices()[:1])

    def step(state, batch):
        kernel = state.leaves["head"]["kernel"] + batch.sum()
        return TrainState({"head": {"kernel": kernel}}, (), state.step + 1), {"sum": batch.sum()}

    compiled = sharding.compile_step(step, mesh, donate=(0,))
    state = TrainState({"head": {"kernel": jnp.zeros((3, 1))}}, (), jnp.zeros((), jnp.int32))
    state = sharding.place(state, mesh)
    for length in (4, 4, 8, 4, 8):
        before = state
        state, metrics = compiled(state, jnp.ones(length))
        assert before.leaves["head"]["kernel"].is_deleted()
        assert state.leaves["head"]["kernel"].sharding == NamedSharding(mesh, PartitionSpec())
    assert compiled.traces == 2  # one a shape
    assert float(state.leaves["head"]["kernel"][0, 0]) == 28 and float(metrics["sum"]) == 8


def test_compile_step_without_donation_leaves_its_arguments():
    compiled = sharding.compile_step(lambda x: x * 2, sharding.make_mesh(config(), devices=jax.devices()[:1]))
    x = jnp.ones(3)
    for _ in range(3):
        np.testing.assert_array_equal(compiled(x), 2)
    assert compiled.traces == 1 and not x.is_deleted()
    assert "stablehlo" in compiled.lower(x).as_text()
