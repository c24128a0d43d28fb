"""Folders that are broken anywhere: one clear line, never another error."""

import json

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from test_export import GPT2, base_folder

from irl_jax import cli, hf, hf_export
from irl_jax.errors import UserError
from irl_jax.models import families

SIZES = {"num_hidden_layers": 6, "hidden_size": 16, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 4,
         "intermediate_size": 24, "max_position_embeddings": 32, "vocab_size": 16, "tie_word_embeddings": True,
         "sliding_window": 4, "use_sliding_window": True, "query_pre_attn_scalar": 8}  # fmt: skip
WRONG = (None, "x", "", -1, 0, 1.5, float("nan"), float("inf"), 10**400, True, [], [1], {}, {"rope_type": "x"}, {"factor": []})


def full(kind):
    """A config of this family with every field that we write."""
    given = {"n_layer": 2, "n_embd": 16, "n_head": 2, "n_positions": 32, "vocab_size": 16} if kind == "gpt2" else SIZES
    return families.to_hf_config(families.from_hf_config({"model_type": kind, **given})) | ({} if kind == "gpt2" else given)


def complaint(read):
    """What is said of it; None where it does."""
    try:
        read()
    except UserError as error:
        assert "\n" not in str(error) and len(str(error)) < 600
        return str(error)
    return None


@pytest.mark.parametrize("kind", families.FAMILIES)
def test_every_field_with_every_wrong_value(kind):
    good, refused = full(kind), 0
    assert complaint(lambda: families.from_hf_config(good)) is None
    for key in good:
        left = {name: value for name, value in good.items() if name != key}
        for changed in (left, *({**good, key: wrong} for wrong in WRONG)):
            said = complaint(lambda changed=changed: families.from_hf_config(changed, "DIR/config.json"))
            refused += said is not None
            assert said is None or said.startswith("DIR/config.json"), said
    assert refused > 40


@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"])
def test_random_damage(name, tmp_path):
    """Bytes cut, changed, doubled or put in, in each file in turn; damage that nothing can see (a weight's digits) may load."""
    folder = base_folder(tmp_path / "m", GPT2)
    file, rng, refused = folder / name, np.random.default_rng(0), 0
    whole = file.read_bytes()
    head = min(len(whole), 1500)  # of the weights, the header
    trials = 60 if name == "model.safetensors" else 16  # the tokenizer takes long to load
    for trial in range(trials):
        at, kind = int(rng.integers(0, head)), trial % 4
        some = rng.integers(0, 256, int(rng.integers(1, 4)), dtype=np.uint8).tobytes()
        file.write_bytes([whole[:at], whole[:at] + some + whole[at + len(some):], whole[:at] + some + whole[at:],
                          whole[:at] + whole[at : at + 9] * 2 + whole[at + 9:]][kind])

        def read():
            hf.load_folder(folder)
            tokenizer = hf.load_tokenizer(folder)
            hf.eos_ids(folder, tokenizer), hf.pad_id(folder, tokenizer)

        refused += complaint(read) is not None
    assert refused >= trials / 4


def edited(file, **fields):
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


def with_tensors(folder, change):
    stored = load_file(folder / hf_export.WEIGHTS)
    save_file(change(stored), folder / hf_export.WEIGHTS)


BREAKS = {  # what is done to a folder, and what the line says
    "a shard that is not there": (lambda m: ((m / hf_export.WEIGHTS).unlink(), (m / hf_export.INDEX).write_text(
        '{"weight_map": {"a": "model-00001-of-00002.safetensors"}}')), "model-00001-of-00002.safetensors: the index names this shard"),
    "a wrong shape": (lambda m: with_tensors(m, lambda held: held | {"transformer.ln_f.bias": np.zeros(9, np.float32)}),
                      "tensor transformer.ln_f.bias has shape (9,), the config asks for (8,)"),
    "a tensor too many": (lambda m: with_tensors(m, lambda held: held | {"transformer.x": np.zeros(9, np.float32)}),
                          "has the unknown tensor transformer.x"),
    "a tensor too few": (lambda m: with_tensors(m, lambda held: {name: held[name] for name in held if "ln_f.bias" not in name}),
                         "lacks the tensor transformer.ln_f.bias"),
    "a weight that is NaN": (lambda m: with_tensors(m, lambda held: held | {"transformer.h.1.mlp.c_fc.weight": np.full_like(
        held["transformer.h.1.mlp.c_fc.weight"], [0.0] * 11 + [np.nan])}),
        "model.safetensors: tensor transformer.h.1.mlp.c_fc.weight holds NaN or infinities"),
    "a weight of bfloat16 that is infinite": (lambda m: with_tensors(m, lambda held: held | {"transformer.wpe.weight": np.where(
        np.arange(24)[:, None] == 23, -np.inf, held["transformer.wpe.weight"]).astype(ml_dtypes.bfloat16)}),
        "model.safetensors: tensor transformer.wpe.weight holds NaN or infinities"),
    "a config without a key": (lambda m: edited(m / "config.json", n_embd=None), "config.json: n_embd must be a positive integer"),
    "another architecture": (lambda m: edited(m / "config.json", model_type="mamba"), "config.json: model_type 'mamba' is not supported"),
    "more tokens than embeddings": (lambda m: edited(m / "config.json", vocab_size=12), "the tokenizer has ids up to 13"),
    "an EOS that is none": (lambda m: edited(m / "generation_config.json", eos_token_id=[2, "x"]),
                            'generation_config.json: eos_token_id must be a token\'s id or a list of them, not [2, "x"]'),
    "a folder in the place of a file": (lambda m: ((m / "config.json").unlink(), (m / "config.json").mkdir()),
                                        "config.json: cannot be read (Is a directory)"),
}


@pytest.mark.parametrize("name", BREAKS)
def test_one_line_and_status_2_of_the_command_line(name, tmp_path, capsys):
    folder, (change, words) = base_folder(tmp_path / "m", GPT2), BREAKS[name]
    change(folder)
    (tmp_path / "d.jsonl").write_text('{"prompt": "w1", "response": " w2"}\n')
    for verb, *flags in (("score", f"--data={tmp_path / 'd.jsonl'}"), ("generate", f"--prompts={tmp_path / 'd.jsonl'}", "--max_tokens=4")):
        assert cli.main([verb, f"--model={folder}", *flags, f"--out={tmp_path / 'o'}"]) == 2
        said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("irl_jax")]
        assert len(said) == 1 and said[0].startswith("irl_jax: error: ") and str(folder) in said[0] and words in said[0]
        assert not (tmp_path / "o").exists()


def test_a_weight_that_bfloat16_does_not_hold(tmp_path):
    folder = base_folder(tmp_path / "m", GPT2)
    with_tensors(folder, lambda held: held | {"transformer.wpe.weight": np.full_like(held["transformer.wpe.weight"], 3.4e38)})
    hf.load_folder(folder)
    with pytest.raises(UserError, match="tensor transformer.wpe.weight holds NaN or infinities in bfloat16"):
        hf.load_folder(folder, param_dtype="bfloat16")


@pytest.mark.parametrize("value", [-1, None, []])
def test_ids_that_older_folders_write_for_none(value, tmp_path):
    folder = base_folder(tmp_path / "m", GPT2, pad=None)
    edited(folder / "generation_config.json", eos_token_id=value, pad_token_id=value)
    edited(folder / "config.json", eos_token_id=None, pad_token_id=None)
    tokenizer = hf.load_tokenizer(folder)
    assert hf.eos_ids(folder, tokenizer) == (2,) and hf.pad_id(folder, tokenizer) == 2
    with pytest.raises(UserError, match="no EOS token"):
        hf.eos_ids(folder)


@pytest.mark.parametrize("value", [
    None, "x", [1, 2], {"weight_map": {}}, {"weight_map": {"a": 3}}, {"weight_map": {"a": "elsewhere.safetensors"}}])
def test_indices_that_are_none(value, tmp_path):
    folder = base_folder(tmp_path / "m", GPT2)
    (folder / hf_export.WEIGHTS).rename(folder / "one.safetensors")
    (folder / hf_export.INDEX).write_text(json.dumps(value))
    assert str(folder) in complaint(lambda: hf.load_folder(folder))


def test_numbers_that_overflow_are_never_null(tmp_path, capsys):
    """Finite weights whose log-probs are not: one line that names the record."""
    folder = base_folder(tmp_path / "m", GPT2)
    with_tensors(folder, lambda held: {name: np.full_like(tensor, 3e38) if "mlp" in name else tensor for name, tensor in held.items()})
    (tmp_path / "d.jsonl").write_text('\n{"prompt": "w1", "response": " w2"}\n')
    for verb, *flags in (("score", f"--data={tmp_path / 'd.jsonl'}"), ("generate", f"--prompts={tmp_path / 'd.jsonl'}", "--max_tokens=4")):
        assert cli.main([verb, f"--model={folder}", *flags, f"--out={tmp_path / 'o'}"]) == 2
        assert f"error: {tmp_path / 'd.jsonl'}, line 2: its log-probability came out as nan" in capsys.readouterr().err
        assert not (tmp_path / "o").exists()


def test_fields_of_the_records_that_are_replaced_are_named(tmp_path, capsys):
    folder, given, out = base_folder(tmp_path / "m", GPT2), tmp_path / "d.jsonl", tmp_path / "o"
    given.write_text('{"prompt": "w1", "response": " w2", "reward": 9, "tokens": "mine"}\n{"prompt": "w1", "response": " w3"}\n')
    assert cli.main(["score", f"--model={folder}", f"--data={given}", f"--out={out}"]) == 0
    assert capsys.readouterr().err == f"irl_jax: {out}: 2 records, in which new values replace the records' own fields 'tokens' (1)\n"
    first = json.loads(out.read_text().splitlines()[0])
    assert (first["reward"], first["tokens"]) == (9, 1)
    assert cli.main(["generate", f"--model={folder}", f"--prompts={out}", f"--out={tmp_path / 'p'}", "--max_tokens=2"]) == 0
    assert "fields 'response' (2), 'logprob' (2), 'tokens' (1)" in capsys.readouterr().err
