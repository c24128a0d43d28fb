"""The verb `export`: folders that transformers and peft load, with the same numbers; its model card; its refusals."""

import dataclasses
import functools
import json
import re

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from tiny import tiny_config

from irl_jax import artifacts, checkpoint, cli, hf, hf_export, outputs, roles, workdir
from irl_jax.config import default
from irl_jax.data import chat, testbed, tokenize
from irl_jax.errors import UserError
from irl_jax.models import adapters, families, peft, transformer
from irl_jax.models.transformer import ModelConfig
from irl_jax.stages import export, generate, model_card, run_tables
from irl_jax.stages.context import Context

GPT2 = ModelConfig(vocab_size=16, num_layers=2, width=8, num_heads=2, num_kv_heads=2, head_dim=4, mlp_width=12, max_positions=24)
LLAMA = ModelConfig(
    vocab_size=16, num_layers=2, width=8, num_heads=4, num_kv_heads=2, head_dim=6, mlp_width=12, max_positions=24,
    positions="rotary", rope_theta=500.0, norm="rms", norm_eps=1e-4, gated_mlp=True, activation="silu", qkv_bias=False,
    output_bias=False, mlp_bias=False, tie_embeddings=False,
)  # fmt: skip
GEMMA3 = dataclasses.replace(
    LLAMA, num_kv_heads=1, activation="gelu_tanh", unit_offset=True, embed_scale=True, tie_embeddings=True, qk_norm=True, post_norms=True,
    window=4, windowed=(True, False), local_rope_theta=50.0, query_scalar=8.0, family="gemma3_text",
)  # fmt: skip
PHI3 = dataclasses.replace(LLAMA, head_dim=2, family="phi3")
FAMILIES = {"gpt2": GPT2, "llama": LLAMA, "gemma3_text": GEMMA3, "phi3": PHI3}  # what they share with others is in test_families
one_of_each_layout = pytest.mark.parametrize("run", ["gpt2", "llama", "phi3"], indirect=True)  # of the tensors beneath adapters
RECORDS = [{"prompt": "w1 w2 w3", "response": " w4 w5"}, {"prompt": "w6", "response": " w7 w8 w9 w1 w2 w3 w3"},
           {"prompt": "w9 w9", "response": " w1"}]
SCALE = {"adapter.rank": 2, "adapter.alpha": 3.0}


def filled(shapes, seed=0, scale=0.5):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: (scale * rng.normal(size=leaf.shape)).astype(np.float32), shapes)


def make_tokenizer(pad="<pad>"):
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers

    names = ["<unk>", "<pad>", "<eos>"] + [f"w{i}" for i in range(11)]  # 14 of the 16 embeddings
    core = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>", pad_token=pad, eos_token="<eos>")


def base_folder(path, model, **tokenizer):
    trunk = filled(jax.eval_shape(lambda: transformer.init_trunk(jax.random.key(0), model)))
    return hf.save_folder(path, model, trunk, make_tokenizer(**tokenizer))


def run_on(path, base, body="adapter", leaves_scale=0.5, **settings):
    """A workdir whose sft, policy/init_sft and reward/init_sft have leaves drawn at random instead of trained."""
    config = default()
    config.data.source, config.model.path = "file", str(base)
    config.update_from_flattened_dict(SCALE | {"reward.body": body} | settings)
    with workdir.Workdir(path, ConfigDict(config)):
        pass
    model, trunk = hf.load_folder(base)
    model = dataclasses.replace(model, adapter_scale=1.5)
    reward = roles.RewardSpec.of(config.reward)
    for seed, role in enumerate(("sft", "policy/init_sft", "reward/init_sft")):
        shapes = jax.eval_shape(lambda role=role: roles.finished_leaves(
            jax.random.key(0), role.split("/")[0], model, config.adapter.rank, trunk, reward=reward))
        checkpoint.save_tree(path / role / "leaves", filled(shapes, seed + 1, leaves_scale))
    return path


@pytest.fixture(scope="module", params=FAMILIES, ids=str)
def run(request, tmp_path_factory):
    """(family, base folder, workdir) of one family."""
    folder = tmp_path_factory.mktemp(request.param)
    base = base_folder(folder / "base", FAMILIES[request.param])
    return request.param, base, run_on(folder / "w", base)


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory):
    """(base folder, workdir) of a GPT-2."""
    folder = tmp_path_factory.mktemp("one")
    base = base_folder(folder / "base", GPT2)
    return base, run_on(folder / "w", base)


def exported(w, role, out, *flags):
    assert cli.main(["export", f"--workdir={w}", f"--role={role}", f"--out={out}", *flags]) == 0
    return out


def scored(source, folder, *flags, records=RECORDS):
    """The lines of `score`."""
    given, out = folder / "in.jsonl", folder / "scored.jsonl"
    given.write_text("".join(json.dumps(record) + "\n" for record in records))
    assert cli.main(["score", source, f"--data={given}", f"--out={out}", "--eos", *flags]) == 0
    return [json.loads(line) for line in out.read_text().splitlines()]


def stored(folder):
    return {name: tensor for file in sorted(folder.glob("*.safetensors")) for name, tensor in stored_in(file).items()}


def stored_in(file):
    from safetensors.numpy import load_file

    return load_file(file)


@functools.partial(jax.jit, static_argnums=0)
def our_logits(model, variables, tokens):
    positions = np.broadcast_to(np.arange(tokens.shape[1]), tokens.shape)
    hidden = transformer.hidden_states(model, variables, tokens, positions, np.ones(tokens.shape, np.int32))
    return transformer.vocab_logits(model, variables, hidden)


def policy_logits(base, w):
    """(tokens, our policy's logits) with its adapter apart."""
    tokens = np.random.default_rng(0).integers(0, 16, (3, 9))
    return tokens, np.asarray(our_logits(*with_adapter(base, w, "policy/init_sft"), tokens))


@functools.cache
def our_rewards(w):
    """What `score` gives RECORDS by the run's own reward."""
    return np.array([line["reward"] for line in scored(f"--workdir={w}", w.parent, "--reward=init_sft")])


def with_adapter(base, w, role):
    """(model, {"params", "adapter"}) of a role."""
    model, trunk = hf.load_folder(base)
    model = dataclasses.replace(model, adapter_scale=1.5)
    shapes = jax.eval_shape(lambda: roles.finished_leaves(jax.random.key(0), role.split("/")[0], model, 2, trunk))
    return model, roles.variables(trunk, checkpoint.load_tree(w / role / "leaves", shapes))


def read(folder, name):
    return json.loads((folder / name).read_text(encoding="utf-8"))


# ---------------------------------------------------------------- policies


def test_a_policy_is_the_merged_model_and_a_model_here_again(run, tmp_path):
    family, base, w = run
    out = exported(w, "policy", tmp_path / "out")
    model, variables = with_adapter(base, w, "policy/init_sft")
    config, trunk = hf.load_folder(out)
    assert config == dataclasses.replace(model, adapter_scale=0.0) and families.family(config) == family
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6), trunk, adapters.merge(model, variables))
    assert sorted(file.name for file in out.iterdir()) == ["README.md", "config.json", "generation_config.json", "model.safetensors",
                                                           "tokenizer.json", "tokenizer_config.json"]


def test_a_folder_scores_as_the_run_did(gpt2, tmp_path):
    _, w = gpt2
    ours = scored(f"--workdir={w}", tmp_path, "--role=policy")
    theirs = scored(f"--model={exported(w, 'policy', tmp_path / 'out')}", tmp_path)
    np.testing.assert_allclose([line["logprob"] for line in theirs], [line["logprob"] for line in ours], rtol=1e-5)
    assert abs(ours[0]["logprob"] - scored(f"--workdir={w}", tmp_path, "--role=init")[0]["logprob"]) > 0.1  # an adapter that does something


def test_transformers_has_the_policys_logits(run, tmp_path, torch):
    from transformers import AutoModelForCausalLM

    _, base, w = run
    tokens, expected = policy_logits(base, w)
    out = exported(w, "policy", tmp_path / "out", "--max_shard_size=2KB")
    loaded, info = AutoModelForCausalLM.from_pretrained(out, output_loading_info=True)
    assert not any(info.values()) and (out / hf_export.INDEX).is_file(), info
    tied = {"lm_head.weight"} if loaded.config.tie_word_embeddings else set()
    assert set(stored(out)) == set(loaded.state_dict()) - tied
    with torch.no_grad():
        np.testing.assert_allclose(loaded(torch.tensor(tokens)).logits, expected, atol=1e-5 * np.abs(expected).max())


def test_special_ids_templates_and_token_types(tmp_path):
    base = base_folder(tmp_path / "base", GPT2, pad=None)
    tokenizer = make_tokenizer(pad=None)
    tokenizer.chat_template = "{{ messages[0]['content'] }}"
    tokenizer.save_pretrained(base)
    (base / "tokenizer.model").write_bytes(b"sentences")
    (base / "generation_config.json").write_text('{"eos_token_id": [2, 7], "bos_token_id": 2}')
    out = exported(run_on(tmp_path / "w", base), "init", tmp_path / "out")
    assert read(out, "generation_config.json") == {"bos_token_id": None, "eos_token_id": [2, 7], "pad_token_id": 2}
    config = read(out, "config.json")
    assert (config["eos_token_id"], config["pad_token_id"], config["bos_token_id"]) == (2, 2, None)
    assert config["architectures"] == ["GPT2LMHeadModel"] and config["dtype"] == config["torch_dtype"] == "float32"
    settings = read(out, "tokenizer_config.json")  # what transformers 4 reads too
    assert settings["tokenizer_class"] == "PreTrainedTokenizerFast" and settings["model_input_names"] == ["input_ids", "attention_mask"]
    assert not {"is_local", "local_files_only", "backend"} & set(settings)
    assert (out / "tokenizer.model").read_bytes() == b"sentences"  # llama.cpp's converter wants it
    loaded = hf.load_tokenizer(out)
    assert loaded.chat_template == tokenizer.chat_template and hf.eos_ids(out, loaded) == (2, 7)
    assert list(loaded("w1 w2")) == ["input_ids", "attention_mask"]  # GPT-2 would embed token types
    jax.tree.map(np.testing.assert_array_equal, hf.load_folder(out)[1], hf.load_folder(base)[1])


@pytest.mark.parametrize("given", [
    {"additional_special_tokens": ["w1", "w2"]},
    {"extra_special_tokens": ["w1", "w2"]},
    {"additional_special_tokens": ["w1"], "extra_special_tokens": {"image_token": "w2"}},
    {"backend": "tokenizers", "is_local": True, "tokenizer_class": "TokenizersBackend", "auto_map": {"AutoTokenizer": ["code.X", None]},
     "processor_class": "Gemma3Processor", "clean_up_tokenization_spaces": True},
])
def test_tokenizers_are_written_in_the_fields_of_transformers_4(given, tmp_path):
    """Written so, 4.45, 4.57 and 5.23 gave the same ids, special tokens, texts and conversations for thirty tokenizers made from a BPE."""
    base = base_folder(tmp_path / "base", GPT2)
    before = read(base, "tokenizer_config.json") | given | {"chat_template": "{{ messages[0]['content'] }}"}
    (base / "tokenizer_config.json").write_text(json.dumps(before))
    live = hf.load_tokenizer(base)
    hf_export.write_tokenizer(tmp_path, live)
    settings, again = read(tmp_path, "tokenizer_config.json"), hf.load_tokenizer(tmp_path)
    assert isinstance(settings.get("extra_special_tokens", {}), dict) and isinstance(settings.get("additional_special_tokens", []), list)
    assert not {"backend", "is_local", "local_files_only", "model_specific_special_tokens", "auto_map", "processor_class"} & set(settings)
    assert settings["chat_template"] == live.chat_template == again.chat_template and not list(tmp_path.glob("*.jinja"))
    assert settings["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert sorted(again.all_special_tokens) == sorted(live.all_special_tokens)
    assert {"w1", "w2"} <= set(live.all_special_tokens) or "backend" in given
    assert getattr(again, "image_token", None) == getattr(live, "image_token", None)
    for text in ("w1 w2<eos>w3", "", "w9 nothing"):
        assert again(text)["input_ids"] == live(text)["input_ids"]
        assert again.decode(again(text)["input_ids"], skip_special_tokens=True) == live.decode(live(text)["input_ids"], skip_special_tokens=True)


def test_the_side_of_the_padding_is_kept(tmp_path):
    """A family's class may have another than the generic one, and say so in no field: Gemma's pads on the left."""
    live = make_tokenizer()
    live.padding_side = "left"
    hf_export.write_tokenizer(tmp_path, live)
    assert hf.load_tokenizer(tmp_path).padding_side == "left"


@pytest.mark.parametrize("prefix, cleans", [(True, False), (False, False), (None, True)])
def test_what_transformers_4_takes_from_fields_is_what_tokenizer_json_does(prefix, cleans, tmp_path):
    """4 sets its default add_prefix_space on a pre-tokenizer that says otherwise, and cleans up text where 5 does not for BPE."""
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers

    core = Tokenizer(models.WordLevel({"a": 0}, unk_token="a") if cleans else models.BPE({"a": 0, "\u0120": 1}, []))
    core.pre_tokenizer = pre_tokenizers.Whitespace() if prefix is None else pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    hf_export.write_tokenizer(tmp_path, transformers.PreTrainedTokenizerFast(tokenizer_object=core, clean_up_tokenization_spaces=True))
    settings = read(tmp_path, "tokenizer_config.json")
    assert settings.get("add_prefix_space") == prefix and settings["clean_up_tokenization_spaces"] == cleans


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "phi3"])
def test_configs_are_written_in_the_fields_of_transformers_4(family):
    """vLLM beside 4 mixes rope_parameters with the older fields; from those alone 4.57 and 5 read the same."""
    written = families.to_hf_config(FAMILIES[family])
    assert "rope_parameters" not in written and {"rope_theta", "rope_scaling"} <= set(written)
    assert ("rope_local_base_freq" in written) == (family == "gemma3_text")


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_shards_and_dtypes(gpt2, tmp_path, dtype):
    base, w = gpt2
    whole = exported(w, "sft", tmp_path / "whole", f"--dtype={dtype}")
    out = exported(w, "sft", tmp_path / "shards", f"--dtype={dtype}", "--max_shard_size=600B")
    files = sorted(file.name for file in out.glob("*.safetensors"))
    assert files[0] == f"model-00001-of-{len(files):05d}.safetensors" and len(files) > 3
    index, tensors = read(out, hf_export.INDEX), stored(out)
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in tensors.values())
    assert {name: file for file in files for name in stored_in(out / file)} == index["weight_map"]
    sizes = [sum(tensor.nbytes for tensor in stored_in(out / file).values()) for file in files]
    assert all(size <= 600 or len(stored_in(out / file)) == 1 for size, file in zip(sizes, files, strict=True))
    assert {tensor.dtype.name for tensor in tensors.values()} == {dtype} and read(out, "config.json")["dtype"] == dtype
    jax.tree.map(np.testing.assert_array_equal, hf.load_folder(out)[1], hf.load_folder(whole)[1])
    exact = hf.load_folder(exported(w, "sft", tmp_path / "exact"))[1]
    rounded = jax.tree.map(lambda leaf: hf_export.cast("", leaf, dtype).astype(np.float32), exact)
    jax.tree.map(np.testing.assert_array_equal, hf.load_folder(out)[1], rounded)


# ---------------------------------------------------------------- rewards


def transformers_rewards(torch, folder, loaded=None, records=RECORDS):
    """The classifier's logits for the records: one row at a time, and in one padded batch."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model = loaded or AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    texts = [f"{record['prompt']}{record['response']}{tokenizer.eos_token}" for record in records]
    with torch.no_grad():
        alone = [model(**tokenizer(text, return_tensors="pt")).logits[0, 0].item() for text in texts]
        if tokenizer.pad_token_id is None:
            return alone, None
        return alone, model(**tokenizer(texts, return_tensors="pt", padding=True)).logits[:, 0].tolist()


def test_transformers_has_the_rewards(run, tmp_path, torch):
    family, base, w = run
    expected = our_rewards(w)
    assert np.ptp(expected) > 0.1
    out = exported(w, "reward/init_sft", tmp_path / "out")
    config = read(out, "config.json")
    shift = config["irl_jax"]["score_bias"]
    assert (shift == 0) == (family == "gpt2") and config["id2label"] == {"0": "reward"} and config["irl_jax"]["role"] == "reward/init_sft"
    for got in transformers_rewards(torch, out):
        np.testing.assert_allclose(np.array(got) + shift, expected, atol=1e-5 * np.abs(expected).max())
    assert not any("lm_head" in name for name in stored(out))


@pytest.mark.parametrize("pad, full", [(None, True), ("<eos>", False)])
def test_padding_that_is_not_the_eos(pad, full, tmp_path, torch):
    """A tokenizer that pads with EOS, or not at all; a table of embeddings with room for a new token, or without."""
    base = base_folder(tmp_path / "base", dataclasses.replace(GPT2, vocab_size=14 if full else 16), pad=pad)
    w = run_on(tmp_path / "w", base, "frozen")
    expected = our_rewards(w)
    out = exported(w, "reward", tmp_path / "out")
    config = read(out, "config.json")
    assert config["pad_token_id"] == 14 and config["vocab_size"] == (15 if full else 16) and config["eos_token_id"] == 2
    for got in transformers_rewards(torch, out):
        np.testing.assert_allclose(got, expected, atol=1e-5 * np.abs(expected).max())
    card = (out / "README.md").read_text()
    assert "`<|irl_jax_pad|>` (id 14)" in card and "a row of zeros" in card


@pytest.mark.shared
def test_rewards_of_real_rows(shared, tmp_path, torch):
    records = [{"prompt": "This movie was", "response": " a complete waste of time, and the acting is terrible."},
               {"prompt": "Once upon a time, there was a film", "response": " that I have seen three times.\n\nWatch it!"}]
    w = run_on(tmp_path / "w", shared / "models" / "stories260k", leaves_scale=0.1)
    expected = np.array([line["reward"] for line in scored(f"--workdir={w}", tmp_path, "--reward=init_sft", records=records)])
    out = exported(w, "reward", tmp_path / "out")
    shift = read(out, "config.json")["irl_jax"]["score_bias"]
    for got in transformers_rewards(torch, out, records=records):
        np.testing.assert_allclose(np.array(got) + shift, expected, atol=1e-5 * max(1, np.abs(expected).max()))


@pytest.mark.parametrize("body, rank", [("trunk", 2), ("adapter", 0)])
def test_rewards_with_a_trunk_of_their_own(body, rank, gpt2, tmp_path):
    base, _ = gpt2
    w = run_on(tmp_path / "w", base, body, **{"adapter.rank": rank})
    out = exported(w, "reward", tmp_path / "out")
    kernel = stored(out)["transformer.h.1.mlp.c_fc.weight"]
    model, trunk = hf.load_folder(base)
    reward = roles.RewardSpec(body)
    shapes = jax.eval_shape(lambda: roles.finished_leaves(jax.random.key(0), "reward", model, rank, trunk, reward=reward))
    own = checkpoint.load_tree(w / "reward" / "init_sft" / "leaves", shapes)["trunk"]
    np.testing.assert_array_equal(kernel, own["blocks"]["mlp"]["up"]["kernel"][1])
    assert np.abs(kernel - trunk["blocks"]["mlp"]["up"]["kernel"][1]).max() > 0.1


def test_the_heads_bias_goes_into_the_final_norm_or_is_left_over():
    rng = np.random.default_rng(0)
    kernel, bias, z = rng.normal(size=(8, 1)).astype(np.float32), np.array([0.7], np.float32), rng.normal(size=8)
    norm = {"scale": np.ones(8, np.float32), "bias": np.full(8, 0.1, np.float32)}
    made = export.classifier({"params": {"final_norm": norm}}, {"kernel": kernel, "bias": bias})
    moved = made.variables["params"]["final_norm"]["bias"] - norm["bias"]
    assert made.shift == 0 and (made.weight @ (z + moved))[0] == pytest.approx(float(kernel[:, 0] @ z) + 0.7, abs=1e-6)
    assert norm["bias"][0] == np.float32(0.1)  # the run's own is as it was
    tiny = export.classifier({"params": {"final_norm": norm}}, {"kernel": kernel * np.float32(1e-25), "bias": bias})
    assert np.isfinite(tiny.variables["params"]["final_norm"]["bias"]).all() and tiny.shift == 0
    for trunk, w in (({"final_norm": {"scale": norm["scale"]}}, kernel), ({"final_norm": norm}, kernel * 0)):
        made = export.classifier({"params": trunk}, {"kernel": w, "bias": bias})
        assert made.shift == pytest.approx(0.7) and made.variables["params"] is trunk


@pytest.mark.parametrize("settings, words", [
    ({"reward.ensemble": 3}, "an ensemble of 3"),
    ({"reward.head": "mlp"}, "reward.head = mlp"),
    ({"reward.granularity": "token"}, "reward.granularity = token"),
    ({"reward.length_residual": True}, "reward.length_residual"),
])  # fmt: skip
def test_rewards_that_a_folder_cannot_hold(settings, words, gpt2, tmp_path, capsys):
    config = default()
    config.data.source, config.model.path = "file", str(gpt2[0])
    config.update_from_flattened_dict(settings)
    with workdir.Workdir(tmp_path / "w", config):
        pass
    err = refused(capsys, tmp_path / "out", f"--workdir={tmp_path / 'w'}", "--role=reward")
    assert words in err and "--role=reward/init_sft" in err and "score --reward" in err


# ---------------------------------------------------------------- adapters


def test_fused_adapters_are_block_diagonal():
    shapes = jax.eval_shape(lambda: adapters.init_adapter(jax.random.key(0), GPT2, 2))
    made = peft.lora(dataclasses.replace(GPT2, adapter_scale=1.5), filled(shapes))
    assert made.settings == {"r": 2, "lora_alpha": 3, "target_modules": ["c_attn", "c_fc", "c_proj"], "fan_in_fan_out": True,
                             "rank_pattern": {"attn.c_attn": 6}, "alpha_pattern": {"attn.c_attn": 9}}
    name = "base_model.model.transformer.h.1.attn.c_attn"
    a, b = made.tensors[f"{name}.lora_A.weight"], made.tensors[f"{name}.lora_B.weight"]
    assert a.shape == (6, 8) and b.shape == (24, 6) and len(made.tensors) == 2 * 2 * 4
    ours = filled(shapes)["blocks"]["attention"]
    parts = [ours[part]["a"][1] @ ours[part]["b"][1] for part in "qkv"]
    np.testing.assert_allclose((b @ a).T, np.concatenate(parts, axis=1), atol=1e-6)
    llama = peft.lora(dataclasses.replace(LLAMA, adapter_scale=0.25), filled(jax.eval_shape(
        lambda: adapters.init_adapter(jax.random.key(0), LLAMA, 2)))).settings
    assert llama["target_modules"] == ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]
    assert llama["lora_alpha"] == 0.5 and not llama["fan_in_fan_out"] and llama["rank_pattern"] == {}


@one_of_each_layout
def test_peft_has_the_policys_logits(run, tmp_path, torch, peft):
    from transformers import AutoModelForCausalLM

    _, base, w = run
    tokens, expected = policy_logits(base, w)
    out = exported(w, "policy", tmp_path / "out", "--adapter")
    assert read(out, "adapter_config.json")["base_model_name_or_path"] == str(base)
    loaded = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), out).eval()
    for model in (loaded, loaded.merge_and_unload()):
        with torch.no_grad():
            np.testing.assert_allclose(model(torch.tensor(tokens)).logits, expected, atol=1e-5 * np.abs(expected).max())


@one_of_each_layout
def test_peft_has_the_rewards_but_for_the_bias(run, tmp_path, torch, peft):
    from transformers import AutoModelForSequenceClassification

    _, base, w = run
    expected = our_rewards(w)
    out = exported(w, "reward", tmp_path / "out", "--adapter")
    classifier = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1, pad_token_id=1)
    loaded = peft.PeftModel.from_pretrained(classifier, out).eval()
    for got in transformers_rewards(torch, out, loaded):
        shift = expected - np.array(got)
        np.testing.assert_allclose(shift, shift.mean(), atol=1e-5 * np.abs(expected).max())
        assert f"{shift.mean():+.4f}"[:5] in (out / "README.md").read_text()


# ---------------------------------------------------------------- from scratch


def test_a_testbed_run(tmp_path, capsys, monkeypatch):
    w, config = tmp_path / "w", tiny_config()
    world = testbed.build_world(config.data.testbed, 0)
    monkeypatch.setattr(testbed, "build_world", lambda *_: world)  # once, not at every call
    with workdir.Workdir(w, config) as opened:
        model, tokenizer = Context(config, opened).model, world.tokenizer
    shapes = jax.eval_shape(lambda: transformer.init_trunk(jax.random.key(0), model))
    checkpoint.save_tree(w / "pretrain" / "leaves", filled(shapes))
    checkpoint.save_tree(w / "sft" / "leaves", filled(jax.eval_shape(
        lambda: roles.finished_leaves(jax.random.key(0), "sft", model, 2, None))))
    out = exported(w, "init", tmp_path / "init")
    words = world.corpus.train[0].prompt
    assert hf.load_tokenizer(out)(words)["input_ids"] == tokenizer(words)["input_ids"]
    assert len(tokenizer(words)["input_ids"]) > 3 and tokenizer.unk_token_id not in tokenizer(words)["input_ids"]
    jax.tree.map(np.testing.assert_array_equal, hf.load_folder(out)[1], filled(shapes))
    capsys.readouterr()
    card = (out / "README.md").read_text()
    assert "60 demonstrations" in card and "not evaluated" in card and "adapter.rank = 2" in card and "base_model" not in card
    err = refused(capsys, tmp_path / "a", f"--workdir={w}", "--role=sft", "--adapter")
    assert "--role=init" in err and "--base=DIR" in err
    adapter = exported(w, "sft", tmp_path / "adapter", "--adapter", f"--base={out}")
    assert read(adapter, "adapter_config.json")["base_model_name_or_path"] == str(out)
    merged = exported(w, "sft", tmp_path / "merged")
    assert "only with --adapter" in refused(capsys, tmp_path / "a", f"--workdir={w}", "--role=sft", f"--base={out}")
    err = refused(capsys, tmp_path / "a", f"--workdir={w}", "--role=sft", "--adapter", f"--base={merged}")
    assert "not the model that this run's adapters were trained on: its weights differ" in err
    other = base_folder(tmp_path / "other", GPT2)
    assert "another architecture" in refused(capsys, tmp_path / "a", f"--workdir={w}", "--role=sft", "--adapter", f"--base={other}")


# ---------------------------------------------------------------- the card


def test_the_card_says_how_it_was_made_and_what_it_scored(gpt2, tmp_path):
    base, _ = gpt2
    w = run_on(tmp_path / "w", base, variants=("policy/clipped = init_sft policy.surrogate=ppo_clip",))
    checkpoint.save_tree(w / "policy" / "clipped" / "leaves", filled(jax.eval_shape(
        lambda: roles.finished_leaves(jax.random.key(0), "policy", GPT2, 2, None))))
    row = {"golden_mean": 0.8125, "golden_stderr": 0.0094, "length_mean": 63.82, "kl_to_sft": 3.891, "kl_to_sft_stderr": 0.12,
           "distinct_2": 0.8134, "n": 80}
    reward = {"heldout_auc": 0.693, "heldout_auc_stderr": 0.019, "spearman_golden": 0.376, "spearman_length": 0.34,
              "best_of_n": [{"n": 4, "golden": 0.7}, {"n": 16, "golden": 0.794, "stderr": 0.01}]}
    artifacts.write_json(w / "results.json", {"golden": {"name": "classifier", "heldout_accuracy": 0.801}, "rewards": {"init_sft": reward},
                                            "policies": {"sft": {**row, "golden_mean": None}, "policy/clipped": row}})
    card = (exported(w, "policy/clipped", tmp_path / "out") / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: transformers\n") and "\nbase_model:" not in card  # a folder is no hub name
    for words in ("| **`policy/clipped`** (this one) | 0.812 ± 0.009 | 63.8 | 3.89 ± 0.12 | 0.813 | 80 |", "| `sft` | – | 63.8 |",
                  "held-out accuracy 0.801", "| `init_sft` | 0.693 ± 0.019 | 0.376 | 0.340 | 0.794 ± 0.010 |", "adapter.alpha = 3.0",
                  "Its own settings: `policy/clipped = init_sft policy.surrogate=ppo_clip`", "the source being no longer there",
                  read(w, "config.json")["versions"]["jax"]):  # fmt: skip
        assert words in card, words
    assert "config.seed" not in card and "\nseed = " not in card  # a default


def test_hub_names_are_base_models(tmp_path, monkeypatch):
    assert model_card.is_hub_name("gpt2") and model_card.is_hub_name("google/gemma-2b")
    assert not any(map(model_card.is_hub_name, ("", "/models/gpt2", "./gpt2", "../x", "~/gpt2", "a/b/c", "x: [y", "a\nb")))
    (tmp_path / "google" / "gemma-2b").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert not model_card.is_hub_name("google/gemma-2b") and not model_card.is_hub_name("google")  # folders that are there


def front_matter(card):
    import yaml

    _, head, _ = card.split("---\n", 2)
    return yaml.safe_load(head)


@pytest.mark.parametrize("name", ["x: [y", "m", "a`b|<img src=x>", "- {#&*!|>'\"%@"])
@pytest.mark.parametrize("flags", [("policy",), ("policy", "--adapter")])
def test_cards_of_folders_with_any_name_publish_no_path(name, flags, gpt2, tmp_path, monkeypatch):
    """A base folder named relative to the working folder, and data, a variant and a golden reward named from the root on."""
    (tmp_path / name).symlink_to(gpt2[0])
    monkeypatch.chdir(tmp_path)
    w = run_on(tmp_path / "w", name, **{
        "data.source": "/home/someone/secret/d.jsonl", "data.preference_source": "~/private/p.jsonl", "golden.kind": "classifier",
        "golden.source": "hh:/srv/hidden/g.jsonl", "variants": ("reward/own = init_sft reward.start=/mnt/closed/start",)})
    odd = "\x1b[31m`|<img src=x>\n---"
    artifacts.write_json(w / "results.json", {"policies": {"sft": {"golden_mean": odd, "n": odd}, odd: {"n": 1}},
                                            "rewards": {odd: {"best_of_n": []}}, "golden": {"name": odd, "heldout_accuracy": odd}})
    card = (exported(w, *flags[:1], tmp_path / "out", *flags[1:]) / "README.md").read_text()
    head = front_matter(card)
    assert head["library_name"] in ("transformers", "peft") and "irl_jax" in head["tags"] and "base_model" not in head
    assert not [folder for folder in ("/home", "someone", "private", "hidden", "closed", str(tmp_path), str(gpt2[0])) if folder in card]
    for kept in ("`d.jsonl`", '"p.jsonl"', '"hh:g.jsonl"', "reward.start=start", f"Base model: {run_tables.code(name)}."):
        assert kept in card, kept
    assert all(line.isprintable() for line in card.splitlines())
    bare = re.sub(r"(`+).*?[^`]\1(?!`)", "", re.sub(r"```.*?\n```", "", card, flags=re.DOTALL))
    assert "<img" not in bare.replace(r"\<img", "")
    rows = [line for line in card.splitlines() if line.startswith("| ")]
    assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows} == {6, 7}  # of two tables


def test_settings_are_published_without_the_folders_of_the_machine():
    for given, shown in (("/a b/c d.jsonl", "c d.jsonl"), ("~/x/y", "y"), ("~me/x/y/", "y"), ("file:///a/b", "b"), ("gs://bucket/a", "gs://bucket/a"),
                         ("tfds:name@train", "tfds:name@train"), ("hh:/a/b", "hh:b"), ("a/b", "a/b"), (3, 3), (["/a/b"], ["b"]),
                         ("policy/x = y reward.start=/a/b reward.steps=3", "policy/x = y reward.start=b reward.steps=3")):  # fmt: skip
        assert model_card.public(given) == shown


def code_of(folder):
    """The example in a card's first block of code."""
    return (folder / "README.md").read_text().split("```python\n")[1].split("```")[0]


@pytest.mark.parametrize("bos", ["", "<s>"])
def test_the_cards_examples_of_a_chat_are_the_runs_numbers(bos, tmp_path, torch):
    """The example of each card is run; a template that spells BOS out, which the tokenizer adds too."""
    from test_chat import TEMPLATES, tokenizer_of

    tokenizer = tokenizer_of("chatml")
    tokenizer.chat_template = bos + TEMPLATES["chatml"]
    model = dataclasses.replace(GPT2, vocab_size=len(tokenizer), max_positions=96)
    trunk = filled(jax.eval_shape(lambda: transformer.init_trunk(jax.random.key(0), model)))
    base = hf.save_folder(tmp_path / "base", model, trunk, tokenizer)
    w, messages = run_on(tmp_path / "w", base, "frozen"), [{"role": "user", "content": "ab"}]
    ended = {"messages": [*messages, {"role": "assistant", "content": "sts"}]}
    (expected,) = scored(f"--workdir={w}", tmp_path, "--reward=init_sft", records=[ended])
    names = {"DIR": str(exported(w, "reward", tmp_path / "reward")), "messages": messages, "response": "sts"}
    exec(code_of(tmp_path / "reward"), names)
    assert names["rewards"].item() == pytest.approx(expected["reward"], abs=1e-4)
    names = {"DIR": str(exported(w, "policy", tmp_path / "policy")), "messages": messages}
    exec(code_of(tmp_path / "policy"), names)
    prompt = tokenize.tokenize_prompts(tokenizer, [chat.of(tokenizer).prompt(messages)], max_prompt=99, eos_id=1)[0][0]
    np.testing.assert_array_equal(names["rows"]["input_ids"][0], prompt)
    assert prompt[0] == tokenizer.bos_token_id and (prompt == tokenizer.bos_token_id).sum() == 1


# ---------------------------------------------------------------- mistakes


def refused(capsys, out, *arguments) -> str:
    """The one line on stderr of an export that must fail with status 2 and leave nothing."""
    before = sorted(out.parent.iterdir()) if out.parent.exists() else None
    assert cli.main(["export", *arguments, f"--out={out}"]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and err.startswith("irl_jax: error: "), err
    assert (sorted(out.parent.iterdir()) if out.parent.exists() else None) == before
    return err


def test_mistakes(gpt2, tmp_path, capsys, monkeypatch):
    base, w = gpt2
    run, out = f"--workdir={w}", tmp_path / "out"
    assert "unknown role 'policy/x'; one of init, sft, reward/init_sft" in refused(capsys, out, run, "--role=policy/x")
    assert "nothing is trained under 'reward/init_demo' yet" in refused(capsys, out, run, "--role=reward/init_demo")
    assert "has trained no adversarial" in refused(capsys, out, run, "--role=adversarial")
    assert "not a workdir" in refused(capsys, out, f"--workdir={tmp_path}", "--role=sft")
    assert "--dtype: invalid choice: 'int8'" in refused(capsys, out, run, "--role=sft", "--dtype=int8")
    for size in ("big", "0", "-1GB", "5XB", ""):
        assert "is no size; write it as 5GB" in refused(capsys, out, run, "--role=sft", f"--max_shard_size={size}")
    assert "init is what the adapters stand on" in refused(capsys, out, run, "--role=init", "--adapter")
    assert "has no inputs.json, so that nothing tells" in refused(capsys, out, run, "--role=sft", f"--base={base}")
    assert "in a folder that exists" in refused(capsys, tmp_path / "none" / "out", run, "--role=sft")
    assert cli.main(["export", run, "--role=sft", "--out=gs://bucket/out"]) == 2
    assert "a folder of this machine" in capsys.readouterr().err

    def full(*_):
        raise UserError("no room")

    monkeypatch.setattr(outputs.paths, "write", full)
    assert f"--out={out}: cannot be written (no room)" in refused(capsys, out, run, "--role=sft")


def test_roles_without_adapters(gpt2, tmp_path, capsys):
    whole = run_on(tmp_path / "whole", gpt2[0], **{"adapter.rank": 0})
    assert "adapter.rank = 0" in refused(capsys, tmp_path / "out", f"--workdir={whole}", "--role=sft", "--adapter")
    frozen = run_on(tmp_path / "frozen", gpt2[0], "frozen")
    assert "reward.body = frozen" in refused(capsys, tmp_path / "out", f"--workdir={frozen}", "--role=reward", "--adapter")


def test_an_out_that_is_there(gpt2, tmp_path, capsys):
    _, w = gpt2
    out = tmp_path / "out"
    out.mkdir()
    exported(w, "sft", out)  # an empty folder is filled
    written = {file: file.stat().st_mtime_ns for file in out.iterdir()}
    assert "not an empty folder" in refused(capsys, out, f"--workdir={w}", "--role=sft")
    assert written == {file: file.stat().st_mtime_ns for file in out.iterdir()}
    assert "not an empty folder" in refused(capsys, out / "config.json", f"--workdir={w}", "--role=sft")


def test_what_is_said_moves_no_terminal(gpt2, tmp_path, capsys):
    exported(gpt2[1], "init", tmp_path / "a\x1b[31mb")
    assert r"a\x1b[31mb" in (out := capsys.readouterr().out) and all(line.isprintable() for line in out.splitlines())


def test_a_full_disk_leaves_nothing(gpt2, tmp_path, capsys, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(hf_export, "write_json", full)
    err = refused(capsys, tmp_path / "out", f"--workdir={gpt2[1]}", "--role=sft")
    assert "No space left on device" in err and list(tmp_path.iterdir()) == []


def test_numbers_that_a_dtype_does_not_hold(gpt2):
    with pytest.raises(UserError, match="--dtype=float16: tensor x"):
        hf_export.cast("x", np.array([1e5], np.float32), "float16")
    assert hf_export.cast("x", np.array([1e5], np.float32), "bfloat16").dtype.name == "bfloat16"


@pytest.mark.parametrize("text, size", [
    ("5GB", 5 * 10**9), ("1.5MB", 1_500_000), ("2GiB", 2**31), ("10k", 10_000), ("7", 7), ("300B", 300)])
def test_sizes(text, size):
    arguments, _ = cli.parse(["export", "--workdir=W", "--role=sft", "--out=D", f"--max_shard_size={text}"])
    assert arguments.max_shard_size == size
    assert cli.parse(["export", "--workdir=W", "--role=sft", "--out=D"])[0].max_shard_size == 5 * 10**9


def test_a_padded_run_exports_scores_and_stands_on_what_an_unpadded_one_does(gpt2, tmp_path):
    """model.vocab_multiple = 24: 16 tokens padded to 24, beyond the padding token that a classifier may be given."""
    base, w = gpt2
    padded = run_on(tmp_path / "w", base, **{"model.vocab_multiple": 24})
    context = generate.open_run(workdir.read_config(padded), padded)
    assert context.trunk["embed"]["tokens"].shape == (24, GPT2.width) and context.model.vocab_size == 16
    for role, *flags in (("init",), ("policy",), ("reward",), ("sft", "--adapter")):
        one, other = (exported(run, role, tmp_path / f"{role}-{run is w}", *flags) for run in (w, padded))
        for file in {file.name for file in one.iterdir()} - {"README.md"}:
            assert (one / file).read_bytes() == (other / file).read_bytes(), (role, file)
    lines = [scored(f"--workdir={run}", tmp_path, "--reward=init_sft") for run in (w, padded)]
    for key in ("logprob", "reward"):
        np.testing.assert_allclose(*([line[key] for line in some] for some in lines), rtol=1e-6)
