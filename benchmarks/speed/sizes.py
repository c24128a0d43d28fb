"""The models that are timed, as Hugging Face folders that every side reads, and the prompts and rows they are timed on."""

from __future__ import annotations

import os
import pathlib
from typing import NamedTuple

import numpy as np

PAD, EOS, SPECIAL = 0, 1, 2  # ids of the made-up tokenizer; prompts and rows have none of the first two
ROWS, ROW_TOKENS = 16, 256  # of a training step and of scoring
PROMPTS, PROMPT_TOKENS = 8, 32  # of sampling; the shortest prompt has half as many


class Size(NamedTuple):
    """A model: fields of its GPT-2 config.json, response tokens a sample, the share of the whole job that is run, and how patient
    the timing is: (rounds at least, at most, seconds)."""

    name: str
    label: str
    layers: int
    width: int
    heads: int
    vocabulary: int
    positions: int
    response: int
    job: float
    patience: tuple[int, int, float]


SIZES = {size.name: size for size in (
    Size("testbed", "testbed's (0.4M)", 3, 96, 4, 576, 256, 48, 1.0, (5, 15, 6.0)),
    Size("6m", "6M shape", 6, 256, 8, 4096, 256, 64, 1.0, (5, 11, 12.0)),
    Size("gpt2", "GPT-2 small shape", 12, 768, 12, 50257, 1024, 32, 1 / 32, (2, 5, 30.0)),
)}
TINY = Size("tiny", "tiny", 1, 32, 2, 128, 256, 24, 1 / 128, (1, 2, 1.0))  # for tests of the harness itself


def hf_config(size: Size, family: str = "gpt2") -> dict:
    """config.json of the size: GPT-2, or the Llama of as many layers, heads and units (its gated MLP is two thirds as wide)."""
    if family == "gpt2":
        return {"model_type": "gpt2", "n_layer": size.layers, "n_embd": size.width, "n_head": size.heads, "n_inner": 4 * size.width,
                "n_positions": size.positions, "vocab_size": size.vocabulary, "tie_word_embeddings": True}
    # Tunix rotates by a base of 1e6 whatever its config says, and transformers' default differs: so both are told 1e6.
    return {"model_type": "llama", "num_hidden_layers": size.layers, "hidden_size": size.width, "num_attention_heads": size.heads,
            "num_key_value_heads": size.heads, "head_dim": size.width // size.heads, "intermediate_size": 8 * size.width // 3,
            "max_position_embeddings": size.positions, "vocab_size": size.vocabulary, "rms_norm_eps": 1e-5, "rope_theta": 1e6,
            "tie_word_embeddings": True}


def found_model(given: str) -> pathlib.Path | None:
    """The folder of the trained 6M model: --model, or models/imdb-gpt2-6m of IRL_JAX_SHARED or ../shared where it is."""
    if given:
        return pathlib.Path(given)
    shared = pathlib.Path(os.environ.get("IRL_JAX_SHARED", "../shared"))
    folder = shared / "models" / "imdb-gpt2-6m"
    return folder if (folder / "config.json").is_file() else None


def label(size: Size, trained: pathlib.Path | None) -> str:
    """The size's name in the table: the trained model's own where that was read."""
    return trained.name if size.name == "6m" and trained else size.label


def make_folder(size: Size, root: pathlib.Path, family: str = "gpt2", trained: pathlib.Path | None = None) -> pathlib.Path:
    """Writes the model's folder (random weights unless `trained` holds them) with a tokenizer of numbered words, once.

    A trained model's weights are written again without its own tokenizer, so that text means the same to every size.
    """
    folder = root / f"{size.name}-{family}"
    if (folder / "config.json").is_file():
        return folder
    import jax

    from irl_jax import hf
    from irl_jax.models import families, transformer

    if trained and size.name == "6m" and family == "gpt2":
        config, trunk = hf.load_folder(trained)
    else:
        config = families.from_hf_config(hf_config(size, family))
        trunk = jax.tree.map(np.asarray, transformer.init_trunk(jax.random.key(0), config))
    hf.save_folder(folder, config, trunk, tokenizer(config.vocab_size))
    return folder


def tokenizer(vocabulary: int):
    """One word a token: "<pad>", "<eos>", "w2", "w3", ...; text and ids are one to one."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {"<pad>": PAD, "<eos>": EOS} | {f"w{number}": number for number in range(SPECIAL, vocabulary)}
    plain = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    plain.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=plain, pad_token="<pad>", eos_token="<eos>",
                                   model_input_names=["input_ids", "attention_mask"], clean_up_tokenization_spaces=False)


def prompts(size: Size, count: int = PROMPTS, longest: int = PROMPT_TOKENS) -> list[np.ndarray]:
    """Ids of prompts whose lengths go evenly from half of `longest` to `longest`."""
    rng = np.random.default_rng(1)
    lengths = np.linspace(longest // 2, longest, count).round().astype(int)
    return [rng.integers(SPECIAL, size.vocabulary, length).astype(np.int32) for length in lengths]


def rows(size: Size, count: int = ROWS, tokens: int = ROW_TOKENS) -> np.ndarray:
    """int32 [count, tokens]: full rows, the first PROMPT_TOKENS of each its prompt."""
    return np.random.default_rng(2).integers(SPECIAL, size.vocabulary, (count, tokens)).astype(np.int32)


def eos_ids(size: Size, mean: float | None) -> tuple[int, ...]:
    """Tokens that end a response: none that can be drawn (all lengths equal), or a random share of 1/mean of the vocabulary.

    A random model draws all tokens about equally often, so that the lengths are then geometric with this mean.
    """
    if mean is None:
        return (size.vocabulary,)
    count = max(1, round(size.vocabulary / mean))
    return tuple(int(i) for i in np.random.default_rng(3).choice(np.arange(SPECIAL, size.vocabulary), count, replace=False))
