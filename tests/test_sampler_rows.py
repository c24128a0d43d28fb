"""Rows that have ended take waiting samples of their prompt: the samples are the same, the steps fewer."""

import functools
import json
import os
import subprocess
import sys
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import irl_jax.sampler as module
from irl_jax import sharding
from irl_jax.config import default
from irl_jax.data.batching import PADDING_ID, plan_groups, prompt_batch
from irl_jax.models import adapters
from irl_jax.models.logprobs import token_logprobs
from irl_jax.models.transformer import ModelConfig, init_trunk
from irl_jax.sampler import make_sampler, sample_batches, sample_prompts
from irl_jax.stages import sampling
from irl_jax.types import SampleBatch

PLAIN = ModelConfig(vocab_size=11, num_layers=2, width=16, num_heads=2, num_kv_heads=2, head_dim=8, mlp_width=32, max_positions=40)
WINDOWED = ModelConfig(
    vocab_size=11, num_layers=2, width=16, num_heads=4, num_kv_heads=2, head_dim=4, mlp_width=24, max_positions=40, positions="rotary",
    rope_theta=100.0, window=4, windowed=(True, False), norm="rms", gated_mlp=True, activation="silu", qkv_bias=False, output_bias=False,
    mlp_bias=False, tie_embeddings=False)  # fmt: skip
PROMPTS = [np.asarray(p, np.int32) for p in ([5], [1, 2, 9, 4, 4], [8, 8, 6])]
KEY = jax.random.key(7)
K, T = 13, 9


@functools.cache
def make(config=PLAIN):
    return {"params": jax.tree.map(lambda leaf: leaf * 2, init_trunk(jax.random.key(1), config))}


def batch_of(prompts=PROMPTS, rows=None):
    return prompt_batch(prompts, list(range(len(prompts))), 6, rows)


@functools.cache
def jitted(config=PLAIN, **settings):
    settings = {"samples": K, "max_tokens": T, "eos_ids": (2,), "pad_id": 0, "with_logprobs": True, **settings}
    return jax.jit(make_sampler(config, **settings), compiler_options={"xla_backend_optimization_level": 0})  # compiles faster


def sample(rows=None, prompts=None, wanted=None, config=PLAIN, **settings):
    some = () if wanted is None else (np.int32(wanted),)
    drawn = jitted(config, rows=rows, **settings)(make(config), prompts or batch_of(), KEY, *some)
    return jax.tree.map(np.asarray, drawn)


def same(one: SampleBatch, two: SampleBatch, atol=2e-6):
    """Token for token; log-probs up to the order of attention's sums, which follows the place in the cache."""
    for name in ("tokens", "mask", "ended"):
        np.testing.assert_array_equal(getattr(one, name), getattr(two, name), err_msg=name)
    np.testing.assert_allclose(one.behaviour_logprobs, two.behaviour_logprobs, atol=atol)
    np.testing.assert_allclose(one.logprobs, two.logprobs, atol=atol)


@pytest.mark.parametrize(("config", "rows"), [(PLAIN, 1), (PLAIN, 4), (PLAIN, 12), (WINDOWED, 4)])
def test_any_number_of_rows_gives_the_same_samples(config, rows):
    whole = sample(config=config, eos_ids=(2, 7))
    lengths = whole.mask.sum(-1)
    assert lengths.min() == 1 and lengths.max() == T and len(np.unique(lengths)) > 5  # all there is to mix up
    assert np.abs(whole.behaviour_logprobs).max() > 1
    refilled = sample(rows, config=config, eos_ids=(2, 7))
    same(refilled, whole, atol=1e-5)
    np.testing.assert_allclose(refilled.logprobs, scored(config, refilled), atol=2e-5)


def scored(config, drawn):
    """The samples' log-probs [B, K, T] by one forward pass over prompt and response, without any cache."""
    rows = np.zeros((len(PROMPTS), K, 6 + T), np.int32)
    for p, prompt in enumerate(PROMPTS):
        rows[p, :, : len(prompt)] = prompt
        rows[p, :, len(prompt) : len(prompt) + T] = drawn.tokens[p]
    rows = rows.reshape(-1, 6 + T)
    all_of = np.asarray(token_logprobs(config, make(config), rows, np.arange(6 + T)[None] + 0 * rows, np.ones_like(rows)))
    all_of = all_of.reshape(len(PROMPTS), K, 6 + T)
    return np.stack([one[:, len(prompt) : len(prompt) + T] for prompt, one in zip(PROMPTS, all_of, strict=True)]) * drawn.mask


@pytest.mark.parametrize("settings", [
    {"temperature": 0}, {"temperature": 0.7, "top_k": 5, "top_p": 0.9}, {"eos_ids": ()}, {"max_tokens": 1}, {"max_tokens": 2},
    {"eos_ids": tuple(range(11))},
], ids=str)
def test_settings_go_with_rows(settings):
    one = sample(3, **settings)
    same(one, sample(**settings), atol=1e-5)
    assert one.mask[:, :, 0].all()


def test_samples_not_wanted_and_prompts_that_fill_get_nothing():
    whole = sample()
    for rows in (None, 3):
        some = sample(rows, batch_of(rows=5), wanted=7)
        assert (some.tokens[3:] == 0).all() and (some.tokens[:, 7:] == 0).all()
        assert some.mask[3:].sum() == some.mask[:, 7:].sum() == some.ended[3:].sum() == some.ended[:, 7:].sum() == 0
        same(jax.tree.map(lambda leaf: leaf[:3, :7], some), jax.tree.map(lambda leaf: leaf[:, :7], whole), atol=1e-5)


def fewest_steps(lengths, rows):
    """Decode steps of one prompt: each sample needs its length - 1, and goes to the row that is free first, in order."""
    free = [0] * rows
    for length in lengths:
        if length > 1:
            row = free.index(min(free))
            free[row] += int(length) - 1
    return max(free)


@pytest.mark.parametrize("rows", [1, 4, 13])
def test_steps_are_those_of_rows_that_never_wait(decode_steps, rows):
    draw = jax.jit(make_sampler(PLAIN, samples=K, max_tokens=T, eos_ids=(2, 5), pad_id=0, rows=rows))
    lengths = np.asarray(draw(make(), batch_of(), KEY).mask.sum(-1)).astype(int)
    steps = decode_steps()
    groups = [lengths[:, start : start + rows].max() - 1 for start in range(0, K, rows)]
    assert steps == max(fewest_steps(prompt, rows) for prompt in lengths)
    assert rows != 4 or steps < 0.8 * sum(groups)  # what the same rows take where they wait for each other


def test_nothing_is_traced_twice():
    traces = []
    plain = make_sampler(PLAIN, samples=K, max_tokens=T, eos_ids=(2,), pad_id=0, rows=4)

    @jax.jit
    def draw(variables, prompts, key, wanted):
        traces.append(1)
        return plain(variables, prompts, key, wanted)

    for wanted in (4, 13, 5):
        drawn = sample_prompts(draw, make(), PROMPTS, [0, 1, 2], 2, KEY, max_prompt=8, wanted=wanted)
        assert drawn.tokens.shape == (3, wanted, T)
        np.testing.assert_array_equal(drawn.tokens, sample().tokens[:, :wanted])
    assert len(traces) == 1


def test_batches_can_be_drawn_by_themselves():
    batches = plan_groups([len(p) for p in PROMPTS], 2, 8)
    draw = functools.partial(sample_batches, jitted(rows=4), make(), PROMPTS, [0, 1, 2], size=2, key=KEY)
    whole, last = list(draw(batches=batches)), list(draw(batches=batches[1:]))
    assert [batch.members for batch in batches] == [[0, 1], [2]] and [len(part.tokens) for part in whole] == [2, 1] and len(last) == 1
    same(whole[1], last[0])


def test_a_draw_that_was_cut_off_goes_on_with_its_next_batch(tmp_path):
    config = default()
    config.sample.rows, config.data.max_response_tokens = 8, T  # 4 rows a prompt: 2 prompts a batch
    shape = sampling.shape_of(config.sample, K)
    assert shape == (64, 4, 2) and sampling.shape_of(config.sample, 1) == (1, 1, 8) and sampling.rows_of(config.sample, 3, 9) == 2
    draw, calls = jitted(samples=64, rows=4, **sampling.how(sampling.MODEL)), []

    def dies_at(number):
        def one(*arguments):
            calls.append(arguments[1].ids.tolist())
            if len(calls) == number:
                raise KeyboardInterrupt
            return draw(*arguments)

        mesh = sharding.make_mesh(config.mesh, devices=jax.devices()[:1])
        return SimpleNamespace(config=config, mesh=mesh, samplers={(shape, sampling.MODEL.top_p): one}, key=lambda purpose: KEY, put=lambda batch: batch, text=str)

    five = [*PROMPTS, *PROMPTS[:2]]
    with pytest.raises(KeyboardInterrupt):
        sampling.draw_into(dies_at(3), tmp_path / "cut.npz", make(), five, K, "")
    assert len(list(tmp_path.iterdir())) == 1  # the second batch's was not fetched yet
    sampling.draw_into(dies_at(0), tmp_path / "cut.npz", make(), five, K, "")
    sampling.draw_into(dies_at(0), tmp_path / "whole.npz", make(), five, K, "")
    assert calls[3:5] == calls[1:3] and len(calls) == 8
    cut, whole = np.load(tmp_path / "cut.npz"), np.load(tmp_path / "whole.npz")
    assert all((cut[name] == whole[name]).all() for name in sampling.FIELDS) and cut["tokens"].shape == (5, K, T)
    np.testing.assert_array_equal(cut["tokens"][:3], sample().tokens)
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".jsonl", ".jsonl", ".npz", ".npz"]


def test_an_adapter_is_merged_where_nothing_is_lost():
    config = ModelConfig(**{**vars(PLAIN), "adapter_scale": 2.0})
    adapter = adapters.init_adapter(KEY, config, 2)
    adapter = jax.tree.map(lambda leaf: jax.random.normal(jax.random.key(leaf.size), leaf.shape) * 0.2, adapter)
    variables = {**make(), "adapter": adapter}
    draw = jitted(config, rows=4)
    one, two = draw(variables, batch_of(), KEY), draw({"params": adapters.merge(config, variables)}, batch_of(), KEY)
    same(one, two)
    assert (np.asarray(one.tokens) != sample(4).tokens).any()
    half = ModelConfig(**{**vars(config), "dtype": "bfloat16"})
    assert module._merged(half, variables) is variables  # the sum would be rounded to the kernel's few bits


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_adapter_of_zeros_changes_no_bit(dtype):
    """With it sft's program samples init."""
    config = ModelConfig(**{**vars(PLAIN), "adapter_scale": 2.0, "dtype": dtype})
    zeros = jax.tree.map(jnp.zeros_like, adapters.init_adapter(KEY, config, 2))
    draw = jitted(config, rows=4)
    for one, other in zip(draw({**make(), "adapter": zeros}, batch_of(), KEY), draw(make(), batch_of(), KEY), strict=True):
        assert (one is None) == (other is None) and (one is None or np.array_equal(one, other))


def eight():
    """In a process with eight devices: samples on one device and on all, with and without rows to refill."""
    from ml_collections import ConfigDict

    meshes = [sharding.make_mesh(ConfigDict({"data": 1, "fsdp": 1, "tensor": 1}), devices=jax.devices()[:1]),
              sharding.make_mesh(ConfigDict({"data": 2, "fsdp": 2, "tensor": 2}))]
    out = []
    for mesh in meshes:
        variables, prompts = sharding.place(make(), mesh), sharding.put_batch(batch_of(PROMPTS * 2 + PROMPTS[:1], 8), mesh)
        for rows in (None, 3):
            draw = sharding.compile_step(make_sampler(PLAIN, samples=K, max_tokens=T, eos_ids=(2,), pad_id=0, rows=rows), mesh)
            drawn = draw(variables, prompts, KEY)
            draw(variables, prompts, KEY)
            size = mesh.shape["data"] * mesh.shape["fsdp"]
            split = drawn.tokens.sharding.shard_shape(drawn.tokens.shape)[0] * size == 8
            drawn = sharding.fetch(drawn)
            out.append([drawn.tokens.tolist(), drawn.behaviour_logprobs.tolist(), draw.traces, split])
    print(json.dumps(out))


def test_eight_devices_draw_the_same():
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu"}
    environment["PYTHONPATH"] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    done = subprocess.run([sys.executable, __file__], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    results = json.loads(done.stdout.splitlines()[-1])
    for tokens, logprobs, traces, split in results:
        np.testing.assert_array_equal(tokens, results[0][0])
        np.testing.assert_allclose(logprobs, results[0][1], atol=1e-5)
        assert traces == 1 and split
    assert np.asarray(results[0][0])[7:].max() == 0 < np.asarray(results[0][0])[:7].max()


def test_caches_are_updated_in_place():
    """No copy of a response cache within the loop: each would cost as much as reading it."""
    draw = jitted(rows=4)
    text = draw.lower(make(), batch_of(), KEY).compile().as_text()
    shape = f"f32[3,4,2,{T - 1},8]"
    body = text.split("ENTRY")[0]  # what loops call
    assert shape in body
    assert [line for line in body.splitlines() if f"= {shape}" in line and " copy(" in line] == []


def test_the_log_holds_the_worst_case():
    """Nothing ends: the most steps there can be, also where K is no multiple of R."""
    for rows in (2, 5):
        assert sample(rows, eos_ids=()).mask.all()
        same(sample(rows, eos_ids=()), sample(eos_ids=()), atol=1e-5)
    idle = sample(2, prompt_batch(PROMPTS[:1], [PADDING_ID], 6))
    assert idle.mask.sum() == 0 and (jnp.asarray(idle.tokens) == 0).all()


if __name__ == "__main__":
    eight()
