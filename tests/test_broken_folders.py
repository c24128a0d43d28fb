"""Folders that are broken anywhere: one clear line, never another error."""

import json

import numpy as np
import pytest
from test_export import GPT2, base_folder

from irl_jax import hf, hf_export
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
    for trial in range(60):
        at, kind = int(rng.integers(0, head)), trial % 4
        some = rng.integers(0, 256, int(rng.integers(1, 4)), dtype=np.uint8).tobytes()
        file.write_bytes([whole[:at], whole[:at] + some + whole[at + len(some):], whole[:at] + some + whole[at:],
                          whole[:at] + whole[at : at + 9] * 2 + whole[at + 9:]][kind])

        def read():
            hf.load_folder(folder)
            tokenizer = hf.load_tokenizer(folder)
            hf.eos_ids(folder, tokenizer), hf.pad_id(folder, tokenizer)

        refused += complaint(read) is not None
    assert refused >= 15


@pytest.mark.parametrize("value", [
    None, "x", [1, 2], {"weight_map": {}}, {"weight_map": {"a": 3}}, {"weight_map": {"a": "elsewhere.safetensors"}}])
def test_indices_that_are_none(value, tmp_path):
    folder = base_folder(tmp_path / "m", GPT2)
    (folder / hf_export.WEIGHTS).rename(folder / "one.safetensors")
    (folder / hf_export.INDEX).write_text(json.dumps(value))
    assert str(folder) in complaint(lambda: hf.load_folder(folder))
