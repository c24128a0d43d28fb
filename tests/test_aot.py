"""Plans for chips that are not there: every program of a tiny config on the CPU, what a plan says, and libtpu where it is installed."""

import functools
import importlib.util
import json
import math
import os

import jax
import pytest

from irl_jax import chips, cli, hf, hlo_text, sharding
from irl_jax.errors import UserError
from irl_jax.models import published, transformer
from irl_jax.stages import aot, aot_advice, aot_steps, aot_table
from tests.tiny import tiny_config

V5E = chips.CHIPS["v5e"]
GIB = chips.GIB


@functools.cache
def planner(**changes):
    return aot.make_planner(tiny_config(**changes), jax.devices()[:1])


@functools.cache
def measured(name, **changes):
    return aot.measure(planner(**changes), name, V5E)


# ---------------------------------------------------------------- published shapes


@pytest.mark.parametrize(("name", "parameters"), [
    ("gpt2", 124_439_808), ("meta-llama/Meta-Llama-3-8B", 8_030_261_248), ("google/gemma-2b", 2_506_172_416),
    ("google/gemma-7b", 8_537_680_896),
])  # fmt: skip
def test_published_shapes_have_the_published_sizes(name, parameters):
    shapes = jax.eval_shape(lambda: transformer.init_trunk(jax.random.key(0), hf.read_config(name)))
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes)) == parameters


def test_a_folder_is_read_before_a_published_name(tmp_path, monkeypatch):
    (tmp_path / "gpt2").mkdir()
    (tmp_path / "gpt2" / "config.json").write_text(json.dumps(published.HF_CONFIGS["gpt2"] | {"n_layer": 3}))
    monkeypatch.chdir(tmp_path)
    assert hf.read_config("gpt2").num_layers == 3

    def offline(*args, **_):
        raise OSError("no\nnetwork")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", offline)
    with pytest.raises(UserError, match=r"nobody/nothing: neither a folder .*\(no network\).* google/gemma-2b"):
        hf.read_config("nobody/nothing")


def test_policy_settings_that_no_method_uses_are_checked_for_a_plan():
    with pytest.raises(UserError, match="rows do not split into minibatches"):
        aot.run(tiny_config(policy__recipes=(), policy__surrogate="ppo_clip", policy__minibatches=7), "v5e:2x2")


# ---------------------------------------------------------------- what each program asks for


@pytest.mark.parametrize("name", aot_steps.NAMES)
def test_every_program_compiles_and_is_measured(name):
    row = measured(name, policy__advantage="gae", policy__value_coefficient=0.5, policy__stop="gate")
    assert row["fits"] and row["bytes"]["total"] >= row["bytes"]["peak"] > 0
    assert row["flops"] > 0 and row["seconds"][row["binds"]] == max(row["seconds"].values())
    assert not any(row["network_bytes"].values())  # one device
    # what is computed twice and what is not counted (rounding of shapes, the sampler's sums) stay within a factor
    assert 0.8 < row["flops"] / row["ideal_flops"] < 1.3, row["flops"] / row["ideal_flops"]


@pytest.mark.parametrize("rank", [0, 2])
def test_training_asks_for_two_or_three_passes(rank):
    """Exactly: what the program computes is what the formula says, but for what it is clever enough to leave out."""
    changes = {} if rank else {"adapter__rank": 0}  # the tiny config has rank 2
    plan = planner(**changes)
    m, row = plan.model, measured("sft", **changes)
    rows, length = plan.program("sft").arguments[2].tokens.shape
    assert 64 < length < 128
    pairs = 64 * 64 + (length - 64) * length  # two blocks of queries, each against the keys up to its end
    masked = 12 * m.num_layers * m.num_heads * m.head_dim * rows * (length**2 - pairs)
    # The first layer's q, k and v have no gradient for their input where the embeddings are not trained.
    inputs = 2 * rows * length * m.width * (m.num_heads + 2 * m.num_kv_heads) * m.head_dim if rank else 0
    # A and B are multiplied with each other, once, and not with every token on the way forward.
    kernels = m.num_layers * (2 * (m.num_heads + m.num_kv_heads) * m.head_dim * m.width + 2 * m.width * m.mlp_width)
    merged = 2 * rows * length * plan._adapter_size() - 2 * rank * kernels if rank else 0
    expected = plan.program("sft").ideal - masked - inputs - merged
    assert row["flops"] == pytest.approx(expected, rel=1e-4)


def test_remat_computes_the_layers_again():
    plain, again = measured("sft"), measured("sft", model__remat="full")
    assert again["flops"] > 1.1 * plain["flops"] and again["ideal_flops"] == plain["ideal_flops"]


def test_the_sampler_counts_its_rounds():
    short, long = measured("draw"), measured("draw", data__max_response_tokens=96)
    assert 1.6 < long["flops"] / short["flops"] < 2.6


def test_chunked_losses_hold_few_logits():
    whole, chunked = measured("sft"), measured("sft", model__loss_chunk=64)
    assert whole["vocabulary_tokens"] >= whole["tokens"] - 8 and chunked["vocabulary_tokens"] <= 64


# ---------------------------------------------------------------- what lies there


def test_every_role_counts_once():
    """In the policy's stage: trunk, sft, reward, and the policy with its moments, be they arguments of the program or not."""
    def size(tree):
        return sum(aot._bytes(leaf) for leaf in jax.tree.leaves(tree))

    for changes in ({"adapter__rank": 0}, {}):
        plan, row = planner(**changes), measured("policy", **changes)
        trunk, adapter = size(plan.trunk), size(plan.leaves("sft"))
        assert row["roles"]["trunk"] == trunk and row["roles"]["sft"] == adapter
        assert row["roles"]["policy"] == pytest.approx(3 * adapter, rel=0.002)  # parameters and two moments
        for name, batch in (("policy", slice(2, None)), ("draw", slice(3, None)), ("decode", slice(1, None))):
            row = measured(name, **changes)
            held = row["bytes"]["resident"] + row["bytes"]["arguments"]
            assert held == pytest.approx(sum(row["roles"].values()) + size(plan.program(name).arguments[batch]), rel=0.01), name
    assert trunk == pytest.approx(size(plan.trunk))


def test_the_value_and_the_adversarial_rewards_moments_count():
    plain, value = measured("policy"), measured("policy", policy__advantage="gae", policy__value_coefficient=0.5)
    assert value["roles"]["policy"] == plain["roles"]["policy"] < value["roles"]["value"] and "value" not in plain["roles"]
    fixed = planner().resident("policy")["reward"]
    moving = planner(adversarial__recipes=("demo",)).resident("policy")["reward"]
    assert len(jax.tree.leaves(moving)) > 2 * len(jax.tree.leaves(fixed))


@pytest.mark.parametrize(("message", "needed"), [
    ("RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: Ran out of memory on HBM, the total memory required for HLO temporaries (670.91G) "
     "exceeds available HBM (15.75G).", 670.91 * GIB),
    ("RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 20.50G of 15.75G hbm. Exceeded hbm capacity by 4.75G.", 20.5 * GIB),
    ("Ran out of memory in memory space hbm.", math.inf),
    ("INVALID_ARGUMENT: something else", None),
])  # fmt: skip
def test_what_does_not_fit_says_how_much_it_needs(message, needed):
    assert aot.out_of_memory(message) == needed


def fake(step="sft", total=20.0, roles=1.0):
    section = {"sample": "sample", "draw": "policy"}.get(step, step)
    return {"step": step, "section": section, "tokens": 8 * 80.0, "fits": total <= 15.75, "roles": {"trunk": roles * GIB},
            "bytes": {"total": total * GIB}}  # fmt: skip


def test_advice_is_the_first_setting_that_compiles_and_fits():
    tried = []

    def again(changed):
        tried.append(changed)
        return fake(total=14.0 if "sft.accumulate" in changed else 18.0)

    line = aot_advice.advise(fake(), planner(), V5E, again)
    assert line == ("sft: 20.0 GiB of 15.8: set model.remat=full model.loss_chunk=256 sft.accumulate=2 "
                    "(needs 14.0 GiB, compiled)")  # fmt: skip
    assert [set(one) for one in tried][:2] == [{"model.remat"}, {"model.remat", "model.loss_chunk"}]


def test_advice_where_nothing_helps_or_the_roles_alone_are_too_much():
    line = aot_advice.advise(fake(), planner(), V5E, lambda changed: fake(total=17.0))
    assert "not enough: model.remat=full needs 17.0" in line and "mesh.fsdp=2" in line
    line = aot_advice.advise(fake(roles=40.0, total=60.0), planner(adapter__rank=0), V5E, None)
    assert "the roles alone take 40.0 GiB a chip" in line and "mesh.fsdp=4, or train adapters (adapter.rank=16)" in line
    fewer = lambda changed: fake("sample", total=10.0 if changed == {"sample.rows": 32} else 20.0)
    line = aot_advice.advise(fake("sample"), planner(), V5E, fewer)
    assert line.endswith("set sample.rows=32 (needs 10.0 GiB, compiled)")


def test_the_table_has_every_step():
    rows = [measured(name) for name in ("sft", "score")]
    short = {"step": "policy", "tokens": 5, "bytes": {"peak": 20 * GIB, "resident": GIB, "total": 21 * GIB}, "fits": False,
             "advice": "policy: 21.0 GiB of 15.8: set policy.accumulate=4"}  # fmt: skip
    plan = {"topology": "v5e:4x4", "slices": 1, "chips": 16, "chip": V5E._asdict(), "mesh": {"data": 1, "fsdp": 16},
            "steps": [*rows, short]}  # fmt: skip
    text = aot_table.render(plan)
    assert "16 chips of 15.75 GiB, mesh data 1 x fsdp 16" in text and text.endswith(short["advice"])
    assert [line.split()[0] for line in text.splitlines() if line.endswith((" yes", " NO"))] == ["sft", "score", "policy"]


# ---------------------------------------------------------------- what users get wrong


def status(capsys, *arguments):
    code = cli.main(["aot", *arguments])
    return code, capsys.readouterr().err


def test_without_libtpu_the_error_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    code, said = status(capsys, "--topology=v5e:4x4")
    assert code == 2 and "pip install 'irl_jax[tpu]'" in said and said.count("\n") == 1


@pytest.mark.parametrize(("arguments", "message"), [
    (("--topology=v9:4x4",), "unknown chip 'v9'; write CHIP:SHAPE, such as v5e:4x4"),
    (("--topology=v5e:4x4", "--steps=sft,polcy"), "unknown step 'polcy'; did you mean 'policy'?"),
    (("--topology=v5e:4x4", "--slices=0"), "0 is out of range"),
    ((), "--topology"),
])  # fmt: skip
def test_mistakes_are_one_line(arguments, message, capsys):
    code, said = status(capsys, *arguments)
    assert code == 2 and message in said and said.count("\n") == 1


# ---------------------------------------------------------------- libtpu itself


@pytest.fixture(scope="module")
def libtpu():
    found = importlib.util.find_spec("libtpu")
    if found is None or found.origin is None:
        message = "libtpu is not installed: no program was compiled for a TPU (pip install 'irl_jax[tpu]' to compile them here)"
        if os.environ.get("IRL_JAX_REQUIRE_LIBTPU") == "1":
            pytest.fail(message)
        pytest.skip(message)


SIZES = dict(model__width=256, model__num_heads=2, model__num_kv_heads=2, model__mlp_width=1024, model__dtype="bfloat16", mesh__fsdp=16,
             model__scan_layers=True, model__remat="full", sft__batch_size=64, policy__batch_size=16)  # fmt: skip


@pytest.mark.slow
def test_a_tiny_plan_for_sixteen_chips(libtpu, tmp_path, capsys):
    plan = aot.run(tiny_config(**SIZES), "v5e:4x4", out=tmp_path, names=("sft", "policy"))
    assert json.loads((tmp_path / "plan.json").read_text())["steps"][0]["step"] == "sft"
    assert plan["chips"] == 16 and all(row["fits"] for row in plan["steps"])
    for row in plan["steps"]:
        assert 1.0 < row["flops"] / row["ideal_flops"] < 1.6 and sum(row["network_bytes"].values()) > 0
    assert "compiling policy for 16 chips" in capsys.readouterr().out


@pytest.mark.slow
def test_activations_keep_to_their_rows(libtpu):
    """No chip holds the states of all tokens, but for its columns of the embeddings: left alone, the compiler splits the width."""
    plan = aot.make_planner(tiny_config(**SIZES), aot.describe("v5e:4x4"))
    program = plan.program("sft")
    rows, length = program.arguments[2].tokens.shape
    _, text = aot.compile_program(program)
    assert rows != length
    for array in hlo_text.largest(text, 10**6):
        whole = rows * length in array.dims or {rows, length} <= set(array.dims)
        assert not (whole and math.prod(array.dims) > rows * length * plan.model.width // 16 and array.dtype in ("bf16", "f32")), array


def test_what_libtpu_does_not_know_and_what_does_not_fit(libtpu, capsys):
    with pytest.raises(UserError, match=r"--topology=v5e:3x5: libtpu knows no such topology .* examples: v5e:4x4 \(16 chips\)"):
        aot.describe("v5e:3x5")
    code, said = status(capsys, "--topology=v5e:4x4", "--config.mesh.fsdp=3")
    assert code == 2 and "mesh.fsdp * mesh.tensor = 3 * 1 does not divide the 16 devices" in said
    with pytest.raises(UserError, match="each of the 2 slices of 4 devices, so that only mesh.data crosses them"):
        aot.make_planner(tiny_config(mesh__fsdp=8), aot.describe("v5e:2x2", 2))


def test_a_mesh_over_slices(libtpu):
    devices = aot.describe("v5e:2x2", 2)
    mesh = aot.make_planner(tiny_config(mesh__fsdp=4, policy__batch_size=8), devices).mesh
    assert dict(mesh.shape) == {"data": 2, "fsdp": 4, "tensor": 1}
    assert [{device.slice_index for device in row.flat} for row in mesh.devices] == [{0}, {1}]
    assert sharding.row_multiple(mesh) == 8
