"""Hugging Face folders: round trips, torch transformers as the judge, and what users get wrong."""

import dataclasses
import functools
import json
import struct

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from irl_jax import checks, hf, hf_export
from irl_jax.config import ARCHITECTURES, default
from irl_jax.errors import UserError
from irl_jax.models import families, tensors, transformer
from irl_jax.models.transformer import ModelConfig

GPT2 = ModelConfig(
    vocab_size=13, num_layers=2, width=8, num_heads=2, num_kv_heads=2, head_dim=4, mlp_width=12, max_positions=10
)  # fmt: skip
LLAMA = ModelConfig(
    vocab_size=13, num_layers=2, width=8, num_heads=4, num_kv_heads=2, head_dim=6, mlp_width=12, max_positions=10,
    positions="rotary", rope_theta=500.0, norm="rms", norm_eps=1e-4, gated_mlp=True, activation="silu", qkv_bias=False, output_bias=False, mlp_bias=False,
)  # fmt: skip
GEMMA = dataclasses.replace(LLAMA, num_kv_heads=1, activation="gelu_tanh", unit_offset=True, embed_scale=True)
VARIANTS = {
    "gpt2": GPT2,
    "gpt2-untied": dataclasses.replace(GPT2, tie_embeddings=False, activation="gelu"),
    "llama": LLAMA,
    "llama-untied": dataclasses.replace(LLAMA, tie_embeddings=False),
    "llama-biases": dataclasses.replace(LLAMA, qkv_bias=True, output_bias=True, mlp_bias=True),
    "gemma": GEMMA,
}


@pytest.fixture(params=VARIANTS.values(), ids=VARIANTS.keys())
def variant(request):
    return request.param


def random_trunk(config, seed=0):
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(lambda: transformer.init_trunk(jax.random.key(0), config))
    return jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), shapes)


def make_tokenizer(words=11):
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers

    names = ["<unk>", "<pad>", "<eos>"] + [f"w{i}" for i in range(words - 3)]
    core = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=core, unk_token="<unk>", pad_token="<pad>", eos_token="<eos>"
    )  # fmt: skip


@functools.partial(jax.jit, static_argnums=0)
def logits_of(config, trunk, tokens):
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    hidden = transformer.hidden_states(config, {"params": trunk}, tokens, positions, jnp.ones(tokens.shape, jnp.int32))
    return transformer.vocab_logits(config, {"params": trunk}, hidden)


def torch_logits(torch, folder, tokens):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        return model(torch.tensor(np.asarray(tokens))).logits.numpy(), model.generation_config


def rewrite(folder, change):
    """Rewrites the folder's tensors by change(dict of arrays)."""
    from safetensors.numpy import load_file, save_file

    tensors = dict(load_file(folder / hf_export.WEIGHTS))
    change(tensors)
    save_file(tensors, folder / hf_export.WEIGHTS)


def edit_json(file, **changes):
    value = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({k: v for k, v in value.items() if v is not ...}))


# ---------------------------------------------------------------- round trips


def test_save_and_load_is_bitwise(variant, tmp_path):
    trunk = random_trunk(variant)
    hf.save_folder(tmp_path, variant, trunk)
    config, loaded = hf.load_folder(tmp_path)
    assert dataclasses.replace(config, family="", query_scalar=0.0) == variant
    jax.tree.map(np.testing.assert_array_equal, loaded, trunk)
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(loaded))


def test_torch_transformers_reads_what_we_write(variant, tmp_path, torch):
    trunk, tokens = random_trunk(variant), np.random.default_rng(1).integers(0, 13, (2, 7))
    hf.save_folder(tmp_path, variant, trunk, make_tokenizer())
    expected, generation = torch_logits(torch, tmp_path, tokens)
    np.testing.assert_allclose(logits_of(variant, trunk, tokens), expected, atol=1e-5 * np.abs(expected).max())
    assert (generation.eos_token_id, generation.pad_token_id) == (2, 1)


@pytest.mark.parametrize("kind", ["gpt2", "llama", "gemma"])
def test_we_read_what_torch_transformers_writes(kind, tmp_path, torch):
    import transformers

    torch.manual_seed(0)
    if kind == "gpt2":
        hf_config = transformers.GPT2Config(
            vocab_size=13, n_positions=10, n_embd=8, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0
        )
        model = transformers.GPT2LMHeadModel(hf_config)
    elif kind == "gemma":
        hf_config = transformers.GemmaConfig(
            vocab_size=13, hidden_size=8, intermediate_size=12, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=1, head_dim=6
        )
        model = transformers.GemmaForCausalLM(hf_config)
    else:
        hf_config = transformers.LlamaConfig(
            vocab_size=13, hidden_size=8, intermediate_size=12, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2
        )
        model = transformers.LlamaForCausalLM(hf_config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    model.save_pretrained(tmp_path)
    config, trunk = hf.load_folder(tmp_path)
    tokens = np.random.default_rng(1).integers(0, 13, (2, 7))
    expected, _ = torch_logits(torch, tmp_path, tokens)
    np.testing.assert_allclose(logits_of(config, trunk, tokens), expected, atol=1e-5 * np.abs(expected).max())


def test_shards_prefixless_names_buffers_and_tied_duplicates(tmp_path):
    """GPT-2 as the hub has it: saved without its head, buffers beside the weights; here in two shards too."""
    from safetensors.numpy import load_file, save_file

    trunk = random_trunk(GPT2)
    hf.save_folder(tmp_path, GPT2, trunk)
    tensors = {name.removeprefix("transformer."): tensor for name, tensor in load_file(tmp_path / hf_export.WEIGHTS).items()}
    tensors |= {"h.0.attn.bias": np.ones((1, 1, 4, 4), np.float32), "h.1.attn.masked_bias": np.float32(-1e9)}
    tensors["lm_head.weight"] = tensors["wte.weight"]
    names = sorted(tensors)
    (tmp_path / hf_export.WEIGHTS).unlink()
    files = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, part in files.items():
        save_file({name: np.ascontiguousarray(tensors[name]) for name in part}, tmp_path / file)
    weight_map = {name: file for file, part in files.items() for name in part}
    (tmp_path / hf_export.INDEX).write_text(json.dumps({"weight_map": weight_map}))
    jax.tree.map(np.testing.assert_array_equal, hf.load_folder(tmp_path)[1], trunk)

    (tmp_path / "b.safetensors").unlink()
    with pytest.raises(UserError, match="b.safetensors: the index names this shard"):
        hf.load_folder(tmp_path)


def test_a_tied_duplicate_that_differs_is_an_error(tmp_path):
    hf.save_folder(tmp_path, LLAMA, random_trunk(LLAMA))
    rewrite(tmp_path, lambda tensors: tensors.update({"lm_head.weight": np.zeros((13, 8), np.float32)}))
    with pytest.raises(UserError, match="lm_head.weight differs"):
        hf.load_folder(tmp_path)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_weights_become_float32(dtype, tmp_path):
    import ml_dtypes

    hf.save_folder(tmp_path, LLAMA, random_trunk(LLAMA))
    kind = np.dtype(getattr(ml_dtypes, dtype, dtype))
    exact = tensors.export_tensors(LLAMA, random_trunk(LLAMA))
    body, header, code = b"", {}, {"bfloat16": "BF16", "float16": "F16"}[dtype]
    for name, tensor in exact.items():
        data = tensor.astype(kind).tobytes()
        header[name] = {"dtype": code, "shape": tensor.shape, "data_offsets": [len(body), len(body) + len(data)]}
        body += data
    head = json.dumps(header).encode()
    (tmp_path / hf_export.WEIGHTS).write_bytes(struct.pack("<Q", len(head)) + head + body)
    _, trunk = hf.load_folder(tmp_path)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b.astype(kind).astype(np.float32)), trunk, random_trunk(LLAMA))


def test_how_it_is_computed_is_the_callers(tmp_path):
    hf.save_folder(tmp_path, GPT2, random_trunk(GPT2))
    exact, rounded = (hf.load_folder(tmp_path, param_dtype=kind)[1] for kind in ("float32", "bfloat16"))
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(np.asarray(a, b.dtype), b), exact, rounded)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(rounded)} == {"bfloat16"}
    config, _ = hf.load_folder(tmp_path, dtype="bfloat16", scan_layers=True, remat="dots", loss_chunk=64)
    assert config == dataclasses.replace(GPT2, dtype="bfloat16", scan_layers=True, remat="dots", loss_chunk=64, family="gpt2")


# ---------------------------------------------------------------- what users get wrong


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("transformer.h.1.mlp.c_fc.weight"), r"lacks the tensor transformer\.h\.1\.mlp\.c_fc\.weight$"),
        (lambda t: t.update({"transformer.extra": t["transformer.ln_f.bias"]}), "unknown tensor transformer.extra$"),
        (lambda t: t.update({"transformer.h.2.ln_1.bias": t["transformer.ln_f.bias"]}), r"unknown tensor transformer\.h\.2"),
        (lambda t: t.update({"transformer.wpe.weight": t["transformer.wpe.weight"].T.copy()}), r"wpe.weight has shape \(8, 10\)"),
        (lambda t: [t.pop(name) for name in list(t) if ".h.0." in name], "lacks the tensors .* and 9 more$"),
    ],
    ids=["missing", "unknown", "too many layers", "shape", "many"],
)
def test_tensors_that_do_not_fit_are_named(change, message, tmp_path):
    hf.save_folder(tmp_path, GPT2, random_trunk(GPT2))
    rewrite(tmp_path, change)
    with pytest.raises(UserError, match=message):
        hf.load_folder(tmp_path)


@pytest.mark.parametrize("keep", [4, 100, -1], ids=["no header", "cut header", "cut data"])
def test_truncated_weights(keep, tmp_path):
    hf.save_folder(tmp_path, GPT2, random_trunk(GPT2))
    file = tmp_path / hf_export.WEIGHTS
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(UserError, match="model.safetensors: truncated"):
        hf.load_folder(tmp_path)


def test_files_that_are_missing_or_broken(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="config.json: no such file"):
        hf.load_folder(tmp_path)
    hf.save_folder(tmp_path, GPT2, random_trunk(GPT2))
    (tmp_path / hf_export.WEIGHTS).unlink()
    with pytest.raises(UserError, match="has neither model.safetensors nor"):
        hf.load_folder(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match="config.json: not valid JSON"):
        hf.load_folder(tmp_path)
    with pytest.raises(UserError, match="no such model folder"):
        hf.load_folder(tmp_path / "elsewhere")

    def offline(*args, **kwargs):
        raise FileNotFoundError("no\nnetwork")

    monkeypatch.setattr("huggingface_hub.snapshot_download", offline)
    with pytest.raises(UserError, match=r"nobody/nothing: neither a folder nor .* \(no network\)"):
        hf.resolve("nobody/nothing")


def test_a_hub_name_is_fetched_and_a_folder_is_not(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name, **kwargs: f"/cache/{name}")
    assert str(hf.resolve("someone/something")) == "/cache/someone/something"
    assert hf.resolve(tmp_path) == tmp_path


@pytest.mark.parametrize(
    ("config", "changes", "message"),
    [
        (GPT2, {"model_type": "bert"}, "model_type 'bert' is not supported"),
        (GPT2, {"model_type": ...}, "model_type None is not supported"),
        (GPT2, {"activation_function": "relu"}, "activation_function 'relu' is not supported"),
        (GPT2, {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx = True is not supported"),
        (GPT2, {"n_layer": "two"}, "n_layer must be a positive integer, not 'two'"),
        (GPT2, {"n_layer": 2 * 10**9}, "n_layer = 2000000000: must be at most 1,024"),
        (GPT2, {"n_head": 2 * 10**9}, "n_head = 2000000000: must be at most 1,024"),
        (LLAMA, {"num_hidden_layers": 2 * 10**9}, "num_hidden_layers = 2000000000: must be at most 1,024"),
        (LLAMA, {"head_dim": 2 * 10**9}, "head_dim = 2000000000: must be at most 1,048,576"),
        (LLAMA, {"hidden_size": 2 * 10**9}, "hidden_size = 2000000000: must be at most 1,048,576"),
        (GEMMA, {"num_hidden_layers": 2 * 10**9}, "num_hidden_layers = 2000000000: must be at most 1,024"),
        (GPT2, {"n_embd": ...}, "n_embd must be a positive integer, not None"),
        (GPT2, {"n_head": 3}, "n_embd 8 is not a multiple of n_head 3"),
        (LLAMA, {"rope_parameters": {"rope_type": "yarn", "rope_theta": 5e5}}, "rotary positions of type 'yarn'"),
        (LLAMA, {"rope_parameters": ..., "rope_scaling": {"type": "linear"}}, "factor must be a positive number, not None"),
        (LLAMA, {"attention_bias": "yes"}, "attention_bias must be true or false, not 'yes'"),
        (LLAMA, {"num_key_value_heads": 3}, "4 attention heads cannot share 3"),
        (LLAMA, {"head_dim": 5}, "even head_dim"),
        (GEMMA, {"hidden_activation": "gelu"}, "Gemma with the activation 'gelu' is not supported"),
        (GEMMA, {"hidden_activation": "relu"}, "hidden_activation 'relu' is not supported"),
    ],
)
def test_configs_beyond_this_decoder_are_refused(config, changes, message):
    raw = {k: v for k, v in (families.to_hf_config(config) | changes).items() if v is not ...}
    with pytest.raises(UserError, match=message) as caught:
        families.from_hf_config(raw, "DIR/config.json")
    assert str(caught.value).startswith("DIR/config.json: ") and "\n" not in str(caught.value)


def test_the_rotary_base_of_older_configs_and_of_newer():
    older = families.to_hf_config(LLAMA) | {"rope_theta": 250.0}
    newer = {key: value for key, value in older.items() if not key.startswith("rope_")}
    newer["rope_parameters"] = {"rope_type": "default", "rope_theta": 250.0}
    for raw in (older, newer):
        assert families.from_hf_config(raw) == dataclasses.replace(LLAMA, rope_theta=250.0, family="llama")


def test_old_gemma_configs_say_gelu_and_mean_its_tanh_form():
    raw = families.to_hf_config(GEMMA) | {"hidden_act": "gelu"}
    for old in (raw | {"hidden_activation": None}, {k: v for k, v in raw.items() if k != "hidden_activation"}):
        assert families.from_hf_config(old) == dataclasses.replace(GEMMA, family="gemma")


# ---------------------------------------------------------------- tokenizers and special ids


def test_tokenizer_round_trip_and_vocabulary_mismatch(tmp_path):
    tokenizer = make_tokenizer(13)
    hf.save_folder(tmp_path, GPT2, random_trunk(GPT2), tokenizer)
    assert hf.load_tokenizer(tmp_path)("w0 w3")["input_ids"] == tokenizer("w0 w3")["input_ids"] == [3, 6]
    edit_json(tmp_path / "config.json", vocab_size=12)
    with pytest.raises(UserError, match="tokenizer has ids up to 12, the weights a vocabulary of 12"):
        hf.load_tokenizer(tmp_path)
    with pytest.raises(UserError, match="wte.weight has shape"):
        hf.load_folder(tmp_path)
    with pytest.raises(UserError, match="vocabulary of 13"):
        hf.save_folder(tmp_path, GPT2, random_trunk(GPT2), make_tokenizer(14))


def test_added_tokens_may_have_ids_past_the_embeddings_but_not_those_that_rows_are_made_with(tmp_path):
    tokenizer = make_tokenizer(13)
    tokenizer.add_tokens(["<image>"], special_tokens=True)
    hf.save_folder(tmp_path, GPT2, random_trunk(GPT2), tokenizer)
    assert hf.load_tokenizer(tmp_path).convert_tokens_to_ids("<image>") == 13
    for name in ("bos", "eos", "unk", "pad"):
        other = make_tokenizer(13)
        other.add_special_tokens({f"{name}_token": "<new>"})
        with pytest.raises(UserError, match=f"the tokenizer's {name}_token '<new>' has the id 13, the weights a vocabulary of 13"):
            hf.check_vocabulary(other, 13, "m")


def test_a_folder_without_a_tokenizer(tmp_path):
    hf.save_folder(tmp_path, GPT2, random_trunk(GPT2))
    with pytest.raises(UserError, match="no tokenizer; one of"):
        hf.load_tokenizer(tmp_path)
    for broken in ('{"version": ', "{}"):
        (tmp_path / "tokenizer.json").write_text(broken)
        with pytest.raises(UserError, match="no tokenizer that transformers can read"):
            hf.load_tokenizer(tmp_path)


def test_eos_and_pad_ids(tmp_path):
    tokenizer = make_tokenizer()
    assert hf.eos_ids(None, tokenizer) == (2,) and hf.pad_id(None, tokenizer) == 1
    (tmp_path / "config.json").write_text('{"eos_token_id": 7, "pad_token_id": 5}')
    assert hf.eos_ids(tmp_path) == (7,) and hf.pad_id(tmp_path) == 5
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [4, 2], "pad_token_id": null}')
    assert hf.eos_ids(tmp_path) == (4, 2)
    assert hf.eos_ids(tmp_path, tokenizer) == (2, 4)  # the one that training appends comes first
    tokenizer.pad_token = None
    assert hf.pad_id(None, tokenizer) == 2  # falls back on EOS
    tokenizer.eos_token = None
    with pytest.raises(UserError, match="no EOS token"):
        hf.eos_ids(None, tokenizer)


# ---------------------------------------------------------------- from scratch


@pytest.mark.parametrize("architecture", families.FAMILIES)
def test_every_family_begins_from_scratch(architecture, tmp_path):
    """Settings that are accepted, a model that knows nothing yet, and a folder that holds it."""
    changed = default()
    changed.model.architecture = architecture
    checks.check(changed)
    config = families.from_size(changed.model, 100, 64)
    assert families.family(config) == architecture
    trunk = transformer.init_trunk(jax.random.key(0), config)
    tokens = np.random.default_rng(0).integers(0, 100, (4, 32))
    hidden = jax.jit(transformer.hidden_states, static_argnums=0)(
        config, {"params": trunk}, tokens, np.broadcast_to(np.arange(32), tokens.shape), np.ones(tokens.shape, np.int32))
    logprobs = jax.nn.log_softmax(transformer.vocab_logits(config, {"params": trunk}, hidden))
    nats = -np.take_along_axis(np.asarray(logprobs)[:, :-1], tokens[:, 1:, None], -1).mean()
    assert abs(nats - np.log(100)) < 2
    again, leaves = hf.load_folder(hf.save_folder(tmp_path, config, trunk))
    assert again == config
    jax.tree.map(np.testing.assert_array_equal, leaves, trunk)


def test_the_settings_name_every_family():
    assert tuple(families.FAMILIES) == ARCHITECTURES


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architecture": "gpt3"}, "architecture: 'gpt3'"),
        ({"width": 98}, "width: 98 is not a multiple of num_heads = 4"),
        ({"num_kv_heads": 2}, "num_kv_heads: 2 must equal num_heads in GPT-2"),
        ({"architecture": "llama", "num_kv_heads": 3}, "num_kv_heads: 3 must divide num_heads = 4"),
        ({"architecture": "llama", "width": 20, "num_heads": 4}, "width: rotary positions need an even width / num_heads, not 5"),
        ({"num_layers": 0}, "num_layers: 0 is not positive"),
        ({"remat": "ful"}, "remat: 'ful' is none of"),
    ],
)
def test_sizes_that_do_not_fit_together(changes, message):
    section = ConfigDict(default().model.to_dict() | changes)
    with pytest.raises(UserError, match=f"^config.model.{message}"):
        families.from_size(section, 100, 64)


# ---------------------------------------------------------------- the shared models


@pytest.mark.shared
@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("imdb-gpt2-6m", "This movie was one of the best I have seen this year, and the actors"),
        ("stories260k", "Once upon a time"),
    ],
)
def test_shared_models_against_torch(name, text, shared, torch):
    folder = shared / "models" / name
    config, trunk = hf.load_folder(folder)
    tokens = np.array([hf.load_tokenizer(folder)(text)["input_ids"]])
    expected, _ = torch_logits(torch, folder, tokens)
    np.testing.assert_allclose(logits_of(config, trunk, tokens), expected, atol=1e-4, rtol=0)


@pytest.mark.shared
def test_stories260k_continues_greedily(shared):
    folder = shared / "models" / "stories260k"
    config, trunk = hf.load_folder(folder)
    tokenizer = hf.load_tokenizer(folder)
    prompt = tokenizer("Once upon a time")["input_ids"]
    steps = 44
    assert hf.eos_ids(folder, tokenizer) == (2,) and hf.pad_id(folder, tokenizer) == 0

    @jax.jit
    def greedy(trunk):
        variables = transformer.unstack(config, {"params": trunk})
        lengths = jnp.array([len(prompt)])
        logits, prompt_cache = transformer.prefill(config, variables, jnp.array([prompt]), lengths)
        cache = transformer.init_response_cache(config, 1, 1, steps)

        def step(carry, t):
            token, cache = carry
            logits, cache = transformer.decode(config, variables, token, t[None, None], t, lengths, prompt_cache, cache)
            return (jnp.argmax(logits, -1), cache), token[0, 0]

        return jax.lax.scan(step, (jnp.argmax(logits, -1)[:, None], cache), jnp.arange(steps))[1]

    text = tokenizer.decode(prompt + np.asarray(greedy(trunk)).tolist(), skip_special_tokens=True)
    assert text.startswith(
        "Once upon a time, there was a little girl named Lily. She loved to play outside in the park. "
        "One day, she saw a big, red ball."
    )
