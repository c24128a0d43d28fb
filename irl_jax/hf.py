"""Reads and writes Hugging Face folders: config, tokenizer, special tokens. hf_import and hf_export handle the weights."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from irl_jax import foreign, hf_export, hf_import, paths, sharding
from irl_jax.errors import UserError
from irl_jax.hf_import import one_line, read_json
from irl_jax.models import families, published, tensors
from irl_jax.models.transformer import ModelConfig
from irl_jax.types import PyTree

DECIDING = ("config.json", "generation_config.json", "tok*.json", "*vocab*", "merges.txt", "bpe.codes", "dict.txt", "*.model",
            "*.tokenizer", "byte_maps.json", "emoji.json", "normalizer.json", "tekken.json", "word_*.json", "special_tokens_map.json",
            "added_tokens.json", "chat_template.*", "additional_chat_templates/*", hf_export.INDEX)
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")


def resolve(name: str | Path, revision: str = "") -> Path:
    """The folder of a model: the folder itself, or a snapshot of that name from the Hugging Face hub (or its cache).

    Args:
      name: of the folder or the hub model. revision: the hub's branch, tag or commit; "" is its main branch.
    Raises: UserError if there is neither, or a folder is given a revision.
    """
    folder = paths.here(name)
    if folder.is_dir():
        _no_revision(name, revision)
        return folder
    if folder.is_absolute() or folder.exists() or str(name).startswith((".", "~")) or str(name).count("/") > 1:
        raise UserError(f"{name}: no such model folder")
    import huggingface_hub

    try:
        patterns = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]
        return Path(huggingface_hub.snapshot_download(str(name), revision=revision or None, allow_patterns=patterns))
    except (OSError, ValueError) as error:  # the hub's own errors are subclasses of these
        raise UserError(f"{name}: neither a folder nor a model the Hugging Face hub gives ({one_line(error)})") from error


def _no_revision(name: str | Path, revision: str) -> None:
    if revision:
        raise UserError(f"{name}: is a folder, which has no revision {revision!r}; leave the revision out, or name a hub model")


def deciding_files(folder: Path) -> list[Path]:
    """The files that decide what a model's folder computes: weights, configs, tokenizer and chat template, sorted by name.

    Raises: UserError if the folder has no weights.
    """
    found = {file for pattern in DECIDING for file in folder.glob(pattern) if file.is_file()} | set(hf_import.weight_files(folder))
    return sorted(found)


def read_config(name: str | Path, revision: str = "") -> ModelConfig:
    """The architecture of a folder, of a model in `models.published`, or of a hub model, of which only config.json is fetched.

    Args: as for `resolve`.
    Raises: UserError if there is none, or if this decoder doesn't support it.
    """
    folder = paths.here(name)
    if folder.is_dir():
        _no_revision(name, revision)
    elif str(name) in published.HF_CONFIGS and not revision:
        return families.from_hf_config(published.HF_CONFIGS[str(name)], str(name))
    file = folder / "config.json"
    if not folder.is_dir():
        import huggingface_hub

        try:
            file = Path(huggingface_hub.hf_hub_download(str(name), "config.json", revision=revision or None))
        except (OSError, ValueError) as error:
            listed = ", ".join(published.HF_CONFIGS)
            raise UserError(f"{name}: neither a folder nor a model whose config the Hugging Face hub gives ({one_line(error)}); without "
                            f"network these are known: {listed}") from error
    return families.from_hf_config(read_json(file), str(file))


def load_folder(
    path: str | Path, mesh: jax.sharding.Mesh | None = None, *, param_dtype: str = "float32", **computed: Any
) -> tuple[ModelConfig, PyTree]:
    """Reads a folder's config, and its weights tensor by tensor onto the mesh; see `hf_import.load_trunk`.

    Args:
      path: a folder with config.json and model.safetensors (or its shards and their index), or a hub name.
      mesh: from `sharding.make_mesh`; None is only the first device.
      param_dtype: of the trunk, "float32" or "bfloat16".
      computed: ModelConfig fields for computing and padding: dtype, scan_layers, remat, loss_chunk, vocab_multiple.
    Returns: the config and the trunk, split over the mesh by the rule table.
    Raises: UserError, naming file and field or tensor.
    """
    folder = resolve(path)
    config = dataclasses.replace(read_config(folder), **computed)
    return config, hf_import.load_trunk(config, hf_import.stored_in(folder), str(folder), mesh or sharding.one_device(), param_dtype)


class RewardModel(NamedTuple):
    """A classifier's folder: h = w . z at the last non-padding token.

    model, trunk: the body, on the mesh. weight: w of the label, float32 [D]. label: its name. pad_id: config.json's padding id, or None.
    """

    model: ModelConfig
    trunk: PyTree
    weight: np.ndarray
    label: str
    pad_id: int | None


def load_reward_model(
    path: str | Path,
    label: str = "",
    mesh: jax.sharding.Mesh | None = None,
    *,
    key: str = "golden.label",
    param_dtype: str = "float32",
    **computed: Any,
) -> RewardModel:
    """Reads a `*ForSequenceClassification` folder: a trunk without the vocabulary's head, and `score.weight` [labels, D].

    Args:
      path: a folder or a hub name.
      label: the label whose score is read, by its name in id2label; "" if the folder has one label.
      mesh, param_dtype, computed: as in `load_folder`.
      key: the setting that names the label, for errors.
    Raises: UserError if the folder is no such classifier, lacks the label, or has several and none is named.
    """
    found = _classifier(path, label, key, **computed)
    trunk = hf_import.load_trunk(found.model, found.stored, str(found.folder), mesh or sharding.one_device(), param_dtype)
    return RewardModel(found.model, trunk, found.score.read()[found.row].astype(np.float32), found.label, found.pad_id)


def check_reward_model(path: str | Path, label: str = "", *, key: str = "golden.label") -> Any:
    """Refuses what `load_reward_model` and `load_tokenizer` would refuse. Reads the weights without keeping them.

    Returns: its tokenizer.
    Raises: UserError.
    """
    found = _classifier(path, label, key)
    tokenizer = load_tokenizer(found.folder)
    found.score.read()
    hf_import.check(found.model, found.stored, str(found.folder))
    return tokenizer


class _Classifier(NamedTuple):
    """A classifier's folder before its weights are read. Row `row` of the head `score` is the label's. `stored` holds the rest."""

    folder: Path
    model: ModelConfig
    stored: dict[str, hf_import.StoredTensor]
    score: hf_import.StoredTensor
    row: int
    label: str
    pad_id: int | None


def _classifier(path: str | Path, label: str, key: str, **computed: Any) -> _Classifier:
    """Raises: UserError, as `load_reward_model`."""
    folder = resolve(path)
    file = folder / "config.json"
    hf_config = read_json(file)
    named = hf_config.get("architectures") or ["none"]
    if not str(named[0]).endswith("ForSequenceClassification"):
        raise UserError(f"{file}: architectures says {named[0]}, a reward model is a *ForSequenceClassification")
    # A classifier has no vocabulary head: whatever config.json says, there is no such tensor.
    config = dataclasses.replace(families.from_hf_config(hf_config, str(file)), tie_embeddings=True, **computed)
    stored = hf_import.stored_in(folder)
    if "score.weight" not in stored:
        raise UserError(f"{folder}: has no tensor score.weight, a classifier's head")
    score = stored.pop("score.weight")
    labels = _labels(hf_config, score.shape[0] if score.shape else 0, file)
    if score.shape != (len(labels), config.width):
        raise UserError(f"{folder}: tensor score.weight has shape {score.shape}, the config asks for {(len(labels), config.width)}")
    if not label and len(labels) > 1:
        raise UserError(f"{folder}: has the labels {', '.join(labels)}; name the one whose score is the reward ({key})")
    if label and label not in labels:
        raise UserError(f"{folder}: has no label {label!r}, only {', '.join(labels)} ({key})")
    index, pad = labels.index(label) if label else 0, hf_config.get("pad_token_id")
    return _Classifier(folder, config, stored, score, index, labels[index], pad if isinstance(pad, int) else None)


def _labels(hf_config: dict, rows: int, file: Path) -> list[str]:
    """The labels' names in order; LABEL_0, LABEL_1, ... (as in transformers) if config.json names none."""
    named = hf_config.get("id2label")
    if named is None:
        return [f"LABEL_{index}" for index in range(rows)]
    if not isinstance(named, dict) or sorted(map(str, named)) != sorted(map(str, range(len(named)))):
        raise UserError(f"{file}: id2label must name the labels 0 to {len(named) - 1 if isinstance(named, dict) else 'n'}")
    return [str({str(key): value for key, value in named.items()}[str(index)]) for index in range(len(named))]


def load_tokenizer(path: str | Path) -> Any:
    """The tokenizer of a folder or hub name, checked against the vocabulary size in the folder's config.json.

    Raises: UserError if there is none, or if it belongs to other weights; see `check_vocabulary`.
    """
    from transformers import AutoTokenizer
    from transformers.models.auto import tokenization_auto

    folder = resolve(path)
    if not any((folder / file).is_file() for file in TOKENIZER_FILES):  # transformers would make up an empty one
        raise UserError(f"{folder}: no tokenizer; one of {', '.join(TOKENIZER_FILES)} must be there")
    # Read before transformers does: it would report a bad field as a tokenizer error.
    config = read_config(folder) if (folder / "config.json").is_file() else None
    chosen = _tokenizers_only(tokenization_auto.tokenizer_class_from_name)
    try:
        with foreign.replaced(tokenization_auto, "tokenizer_class_from_name", chosen):
            # runs no code from the folder
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # tokenizers raises a bare Exception
        raise UserError(f"{folder}: no tokenizer that transformers can read ({one_line(error)})") from error
    if config is not None:
        check_vocabulary(tokenizer, config.vocab_size, folder)
    return tokenizer


def _tokenizers_only(from_name: Callable[[str], Any]) -> Callable[[str], Any]:
    """transformers' lookup of a class by name, refusing non-tokenizer classes: some of them ask whether to run the folder's code."""
    from transformers import PreTrainedTokenizerBase
    from transformers.utils import DummyObject

    def chosen(name: str) -> Any:
        found = from_name(name)
        missing = found is None or isinstance(found, DummyObject)  # unknown, or a stand-in that says which package it needs
        if missing or isinstance(found, type) and issubclass(found, PreTrainedTokenizerBase):
            return found
        raise ValueError(f"tokenizer_class names {name!r}, which is no tokenizer")

    return chosen


def check_vocabulary(tokenizer: Any, vocab_size: int, where: str | Path) -> None:
    """Raises UserError if the tokenizer doesn't belong to weights with `vocab_size` embeddings.

    The table may be larger than the tokenizer's vocabulary: many are padded. Added tokens may have ids past the table, such as Gemma 3's
    <image_soft_token>. Only records that use one are refused (`tokenize.check_ids`). The vocabulary itself and the special tokens that rows
    are made with may not.
    """
    added = tokenizer.get_added_vocab()
    largest = max((number for token, number in tokenizer.get_vocab().items() if token not in added), default=-1)
    if largest >= vocab_size:
        raise UserError(
            f"{where}: the tokenizer has ids up to {largest}, the weights a vocabulary of {vocab_size}; "
            "tokenizer and weights are of different models"
        )
    for name in ("bos", "eos", "unk", "pad"):
        token, number = (getattr(tokenizer, f"{name}_token{of}", None) for of in ("", "_id"))
        if number is not None and number >= vocab_size:
            raise UserError(f"{where}: the tokenizer's {name}_token {token!r} has the id {number}, the weights a vocabulary of "
                            f"{vocab_size}; name a {name}_token that has an embedding in tokenizer_config.json")


def eos_ids(folder: str | Path | None = None, tokenizer: Any = None) -> tuple[int, ...]:
    """The ids that end a response: the tokenizer's own EOS first (which training appends), then further ids in the folder's files.

    The files are generation_config.json or, if it names none, config.json.
    Raises: UserError if nothing names an EOS, or if a value is not an id.
    """
    ids = [] if tokenizer is None or tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    ids += _special_ids(folder, "eos_token_id")
    if not ids:
        raise UserError(f"{folder or 'the tokenizer'}: no EOS token in the tokenizer, generation_config.json or config.json")
    return tuple(dict.fromkeys(ids))


def pad_id(folder: str | Path | None = None, tokenizer: Any = None) -> int:
    """The id that fills rows: the tokenizer's, else the folder's, else EOS. Masks never look at it, so pad = EOS is harmless.

    Raises: UserError as `eos_ids`.
    """
    if tokenizer is not None and tokenizer.pad_token_id is not None:
        return int(tokenizer.pad_token_id)
    return [*_special_ids(folder, "pad_token_id"), *eos_ids(folder, tokenizer)][0]


def _special_ids(folder: str | Path | None, field: str) -> list[int]:
    """The ids in a field, which holds one or a list; [] if no file has it, or if it is -1, which older folders write for none."""
    if folder is None:
        return []
    for file in ("generation_config.json", "config.json"):
        path = Path(folder) / file
        value = read_json(path).get(field) if path.is_file() else None
        if value is None:
            continue
        ids = value if isinstance(value, list) else [] if value == -1 else [value]
        if not all(isinstance(number, int) and not isinstance(number, bool) and 0 <= number < 2**31 for number in ids):
            raise UserError(f"{path}: {field} must be a token's id or a list of them, not {one_line(json.dumps(value))}")
        return ids
    return []


def save_folder(directory: str | Path, config: ModelConfig, trunk: PyTree, tokenizer: Any = None) -> Path:
    """Writes a Hugging Face folder: config.json, generation_config.json, model.safetensors and the tokenizer's files.

    Args:
      directory: made if missing; files of these names are replaced.
      config: the architecture, of one of the families.
      trunk: float32 leaves, with any adapter already merged.
      tokenizer: from transformers; None writes none and no special ids.
    Returns: the directory.
    """
    directory = Path(directory)
    special = {}
    if tokenizer is not None:
        check_vocabulary(tokenizer, config.vocab_size, directory)
        special = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    # Ids that are None are written too: transformers would fill in the family's defaults.
    hf_config = families.to_hf_config(config) | {f"{name}_token_id": None for name in ("bos", "eos", "pad")} | special
    stored = tensors.stored_tensors(config, {"params": trunk})
    hf_export.write_folder(directory, hf_config, stored, tokenizer=tokenizer, generation=special)
    return directory
