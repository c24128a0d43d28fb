"""Loading a checkpoint onto a mesh: the host's memory, eight devices, what is refused before anything is placed, padded vocabularies."""

import dataclasses
import json
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import loading
import numpy as np
import optax
import pytest

from irl_jax import hf, hf_export, hf_import, sampler, steps
from irl_jax.errors import UserError
from irl_jax.models import families, tensors, transformer
from irl_jax.models.logprobs import token_logprobs
from irl_jax.types import PromptBatch, TokenBatch

MIB = 2**20
# Beside the devices' own: a block of 4 MB as it is mapped, read, cast and sent, the compiled writes, what malloc keeps; 44 MB measured.
ROOM = 64 * MIB
TIED, UNTIED = (families.from_hf_config({"model_type": name, **loading.FAMILIES[name], "num_hidden_layers": 2})
                for name in ("gemma2", "llama"))


def in_a_process(what, folder, devices=1):
    """What `loading.py WHAT FOLDER` prints."""
    environment = os.environ | {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}", "JAX_PLATFORMS": "cpu",
                                "PYTHONPATH": str(pathlib.Path(hf.__file__).parent.parent)}
    command = [sys.executable, loading.__file__, what, str(folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_the_host_holds_some_blocks_beside_what_the_devices_hold(tmp_path):
    """Of 67M parameters in three shards; the resident memory of a CPU has the devices' in it."""
    config = families.from_hf_config({"model_type": "llama", **loading.SIZES})
    for kind in ("bfloat16", "float32"):
        largest = loading.make_folder(tmp_path / kind, config, kind, shards=3)
    loading.make_folder(tmp_path / "tiny", dataclasses.replace(config, width=64, num_layers=1), "float32")
    grown = in_a_process("memory", tmp_path)
    assert ROOM < 2 * largest
    for kind in ("bfloat16", "float32"):
        growth, devices = grown[kind]
        assert devices > 250 * MIB
        assert growth < devices + ROOM
    growth, devices = grown["everything at once"]
    assert growth > devices + 2 * largest + ROOM  # what this test would say of it


@pytest.mark.slow
def test_eight_devices_hold_the_files_numbers_and_split_a_padded_vocabulary(tmp_path):
    """Bitwise, of all dtypes, on three meshes; computed there too, 37 tokens padded to 48 over tensor = 4 give what one device gives."""
    results = in_a_process("eight", tmp_path, devices=8)
    one, padded = results.pop("computed")
    assert len(results) == 12
    assert {name: row for name, row in results.items() if not row[0] or row[1] != row[2]} == {}
    np.testing.assert_allclose(padded[0], one[0], rtol=2e-6, atol=1e-5)
    gradient, expected = np.array(padded[1]), np.array(one[1])
    np.testing.assert_allclose(gradient[:37], expected, atol=1e-5 * np.abs(expected).max())
    assert gradient.shape == (48, 16) and not gradient[37:].any()
    assert padded[2] == one[2] and len(set(np.ravel(one[2]))) > 10
    np.testing.assert_allclose(padded[3], one[3], rtol=2e-6, atol=1e-5)


# ---------------------------------------------------------------- refused before anything is placed


def _cut(stored):
    stored["model.layers.1.mlp.up_proj.weight"] = stored["model.layers.1.mlp.up_proj.weight"][:-1]


CHANGES = [
    (lambda stored: stored.pop("model.norm.weight"), "lacks the tensor model.norm.weight$"),
    (lambda stored: stored.update({"model.extra.weight": np.zeros(3, np.float32)}), "unknown tensor model.extra.weight$"),
    (_cut, r"tensor model.layers.1.mlp.up_proj.weight has shape \(23, 16\), the config asks for \(24, 16\)$"),
    (lambda stored: stored.update({"model.norm.weight": np.zeros(16, np.int8)}), "model.norm.weight is of dtype I8, only F32, F16, BF16"),
    (lambda stored: stored.update({"lm_head.weight": 2 * stored["model.embed_tokens.weight"]}), "lm_head.weight differs from the token"),
    (lambda stored: stored.update({"lm_head.weight": stored["model.embed_tokens.weight"][:-1]}), "lm_head.weight differs from the token"),
]


@pytest.mark.parametrize(("change", "message"), CHANGES, ids=["missing", "unknown", "shape", "dtype", "head differs", "head is shorter"])
def test_what_does_not_fit_is_named_before_anything_is_placed(change, message, tmp_path, monkeypatch):
    stored = tensors.export_tensors(TIED, loading.random_trunk(TIED))
    change(stored)
    hf_export.write_json(_folder(tmp_path) / "config.json", families.to_hf_config(TIED))
    hf_export.save_tensors(tmp_path / hf_export.WEIGHTS, {name: np.ascontiguousarray(tensor) for name, tensor in stored.items()})
    monkeypatch.setattr(hf_import, "_filled", lambda *args: pytest.fail("placed"))
    with pytest.raises(UserError, match=message) as caught:
        hf.load_folder(tmp_path)
    assert "\n" not in str(caught.value) and str(caught.value).startswith(str(tmp_path))


def _folder(path):
    path.mkdir(exist_ok=True)
    return path


@pytest.mark.parametrize("block", [1, 200, 1000])
def test_blocks_of_any_size_give_the_same_numbers(block, tmp_path, monkeypatch):
    config = families.from_hf_config({"model_type": "gpt2", **loading.FAMILIES["gpt2"]})  # several leaves in one tensor
    trunk = loading.random_trunk(config)
    loading.save(tmp_path, config, trunk)
    monkeypatch.setattr(hf_import, "BLOCK", block)
    jax.tree.map(np.testing.assert_array_equal, hf.load_folder(tmp_path)[1], trunk)


# ---------------------------------------------------------------- padded vocabularies


@pytest.fixture(scope="module", params=[TIED, UNTIED], ids=["tied, with a cap", "untied"])
def both(request):
    """(config, trunk) as it is, and padded from 37 tokens to 64."""
    trunk = loading.random_trunk(request.param)
    padded = dataclasses.replace(request.param, vocab_multiple=64)
    return (request.param, trunk), (padded, loading.with_padding(trunk, padded))


def rows():
    tokens = np.random.default_rng(3).integers(0, 37, (4, 9)).astype(np.int32)
    return tokens, np.broadcast_to(np.arange(9, dtype=np.int32), tokens.shape), np.ones(tokens.shape, np.int32)


@pytest.mark.parametrize("chunk", [0, 8])
def test_padding_counts_nothing_in_log_probs_and_entropies(both, chunk):
    got = []
    for config, trunk in both:
        config = dataclasses.replace(config, loss_chunk=chunk)
        got.append(token_logprobs(config, {"params": trunk}, *rows(), with_entropy=True))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6), *got)
    assert np.abs(got[0][1]).max() > 1
    hidden = transformer.hidden_states(*both[1][:1], {"params": both[1][1]}, *rows())
    logits = transformer.vocab_logits(both[1][0], {"params": both[1][1]}, hidden)
    assert logits.shape[-1] == 64 and (logits[..., 37:] < -1e29).all() and np.isfinite(logits).all()


@pytest.mark.parametrize("settings", [{"temperature": 0.0}, {"temperature": 0.01, "top_k": 5}, {"temperature": 3.0, "top_k": 50},
                                      {"temperature": 2.0, "top_p": 0.9999999}], ids=str)
def test_padding_is_never_drawn_and_the_samples_are_the_same(both, settings):
    prompts = PromptBatch(rows()[0][:, :4], np.array([4, 3, 4, 1], np.int32), np.arange(4, dtype=np.int32))
    drawn = []
    for config, trunk in both:
        draw = jax.jit(sampler.make_sampler(config, samples=16, max_tokens=8, eos_ids=(2,), pad_id=0, with_logprobs=True, **settings))
        drawn.append(draw({"params": trunk}, prompts, jax.random.key(1)))
    np.testing.assert_array_equal(drawn[0].tokens, drawn[1].tokens)
    assert drawn[1].tokens.max() < 37
    for field in ("logprobs", "behaviour_logprobs"):
        np.testing.assert_allclose(getattr(drawn[0], field), getattr(drawn[1], field), rtol=1e-6, atol=1e-4)  # of logits of 300


def test_training_whole_trunks_leaves_padding_at_zero(both):
    """With weight decay and clipping; the other rows go where they go unpadded."""
    tokens, positions, segments = rows()
    batch, after = TokenBatch(tokens, positions, segments, np.ones(tokens.shape, np.float32)), []
    for config, trunk in both:
        optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-2, weight_decay=0.1))
        state = steps.init_state({"trunk": jax.tree.map(jnp.asarray, trunk)}, optimizer)
        step = jax.jit(steps.make_sft_step(config, optimizer))
        for number in range(3):
            state, metrics = step(state, None, batch, jax.random.key(number))
        after.append((float(metrics["loss"]), float(metrics["grad_norm"]), tensors.export_tensors(config, state.leaves["trunk"])))
        padding = [state.leaves["trunk"]["embed"]["tokens"][37:]]
        padding += [state.leaves["trunk"]["unembed"]["kernel"][:, 37:]] if "unembed" in state.leaves["trunk"] else []
        assert not any(np.asarray(part).any() for part in padding)
    np.testing.assert_allclose(after[1][:2], after[0][:2], rtol=1e-5)
    for name, tensor in after[0][2].items():  # Adam scales rounding up where a gradient is about nil
        assert np.median(np.abs(after[1][2][name] - tensor)) < 1e-6, name


def test_from_scratch_the_padded_model_is_the_same(both):
    (config, _), (padded, _) = both
    plain, with_zeros = (jax.device_get(transformer.init_trunk(jax.random.key(5), c)) for c in (config, padded))
    jax.tree.map(np.testing.assert_array_equal, loading.with_padding(plain, padded), with_zeros)
    assert families.to_hf_config(padded) == families.to_hf_config(config)
    assert families.family(dataclasses.replace(padded, family="")) == families.family(dataclasses.replace(config, family=""))


def test_a_padded_models_folder_is_bitwise_that_of_the_unpadded(both, tmp_path):
    for name, multiple in (("a", 1), ("b", 64)):
        hf.save_folder(tmp_path / "source", *both[0])
        config, trunk = hf.load_folder(tmp_path / "source", vocab_multiple=multiple)
        assert trunk["embed"]["tokens"].shape[0] == (64 if multiple > 1 else 37)
        hf.save_folder(tmp_path / name, config, trunk)
    for file in ("config.json", hf_export.WEIGHTS):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes() == (tmp_path / "source" / file).read_bytes()
