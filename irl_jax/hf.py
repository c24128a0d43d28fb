"""Hugging Face folders in and out: weights, tokenizer, special tokens."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from irl_jax import hf_export
from irl_jax.errors import UserError
from irl_jax.hf_export import INDEX, WEIGHTS
from irl_jax.models import families, published, tensors
from irl_jax.models.transformer import ModelConfig
from irl_jax.types import PyTree

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")


def resolve(name: str | Path) -> Path:
    """The folder of a model: the folder itself, or a snapshot of that name from the Hugging Face hub (or its cache).

    Raises: UserError where there is neither.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    if folder.is_absolute() or folder.exists() or str(name).startswith((".", "~")) or str(name).count("/") > 1:
        raise UserError(f"{name}: no such model folder")
    import huggingface_hub

    try:
        patterns = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]
        return Path(huggingface_hub.snapshot_download(str(name), allow_patterns=patterns))
    except (OSError, ValueError) as error:  # the hub's own errors are subclasses of these
        raise UserError(f"{name}: neither a folder nor a model the Hugging Face hub gives ({_line(error)})") from error


def read_config(name: str | Path) -> ModelConfig:
    """The architecture of a folder, of a model in `models.published`, or of one on the hub, whose config.json alone is fetched.

    Raises: UserError where there is none, or one beyond what this decoder does.
    """
    folder = Path(name).expanduser()
    if not folder.is_dir() and str(name) in published.HF_CONFIGS:
        return families.from_hf_config(published.HF_CONFIGS[str(name)], str(name))
    file = folder / "config.json"
    if not folder.is_dir():
        import huggingface_hub

        try:
            file = Path(huggingface_hub.hf_hub_download(str(name), "config.json"))
        except (OSError, ValueError) as error:
            listed = ", ".join(published.HF_CONFIGS)
            raise UserError(f"{name}: neither a folder nor a model whose config the Hugging Face hub gives ({_line(error)}); without "
                            f"network these are known: {listed}") from error
    return families.from_hf_config(_read_json(file), str(file))


def load_folder(
    path: str | Path,
    *,
    dtype: str = "float32",
    param_dtype: str = "float32",
    scan_layers: bool = False,
    remat: str = "none",
    loss_chunk: int = 0,
) -> tuple[ModelConfig, dict]:
    """Reads config and weights of a folder.

    Args:
      path: a folder with config.json and model.safetensors, or its shards and their index; or a hub name.
      dtype, scan_layers, remat, loss_chunk: how the model is computed, as in ModelConfig.
      param_dtype: of the trunk, "float32" or "bfloat16".
    Returns: the config and the trunk, numpy arrays. Every tensor was used exactly once and had the right shape.
    Raises: UserError, naming file and field or tensor.
    """
    folder = resolve(path)
    config = dataclasses.replace(
        families.from_hf_config(_read_json(folder / "config.json"), str(folder / "config.json")),
        dtype=dtype,
        scan_layers=scan_layers,
        remat=remat,
        loss_chunk=loss_chunk,
    )
    with _stored(folder) as home:
        return config, tensors.import_tensors(config, home, lambda name: home[name].get_tensor(name), str(folder), param_dtype)


class RewardModel(NamedTuple):
    """A classifier's folder: h = w . z at the last token that is not padding.

    model, trunk: the body. weight: w, float32 [D], of the label. label: its name. pad_id: the id that config.json calls
    padding, or None.
    """

    model: ModelConfig
    trunk: dict
    weight: np.ndarray
    label: str
    pad_id: int | None


def load_reward_model(path: str | Path, label: str = "", *, key: str = "golden.label", param_dtype: str = "float32") -> RewardModel:
    """Reads a `*ForSequenceClassification` folder: a trunk without the vocabulary's head, and `score.weight` [labels, D].

    Args:
      path: a folder or a hub name.
      label: whose score is read, by its name in id2label; "" where the folder has one label.
      key: the setting that names the label, for errors.
      param_dtype: of the trunk, as in `load_folder`.
    Raises: UserError where the folder is no such classifier, has no such label, or several and none is named.
    """
    with _classifier(path, label, key) as (folder, config, home, labels, index, pad):
        head = home.pop("score.weight").get_tensor("score.weight").astype(np.float32)
        trunk = tensors.import_tensors(config, home, lambda name: home[name].get_tensor(name), str(folder), param_dtype)
    return RewardModel(config, trunk, head[index], labels[index], pad)


def check_reward_model(path: str | Path, label: str = "", *, key: str = "golden.label") -> None:
    """Refuses what `load_reward_model` and `load_tokenizer` would, by the files' heads: no weight is read. Raises: UserError."""
    with _classifier(path, label, key) as (folder, *_):
        load_tokenizer(folder)


@contextlib.contextmanager
def _classifier(path: str | Path, label: str, key: str) -> Iterator[tuple[Path, ModelConfig, dict, list[str], int, int | None]]:
    """(folder, architecture, where its tensors are, labels, the label's number, id of the padding) of a classifier's folder."""
    folder = resolve(path)
    file = folder / "config.json"
    hf_config = _read_json(file)
    named = hf_config.get("architectures") or ["none"]
    if not str(named[0]).endswith("ForSequenceClassification"):
        raise UserError(f"{file}: architectures says {named[0]}, a reward model is a *ForSequenceClassification")
    # A classifier has no vocabulary to predict: whatever config.json says of it, there is no such tensor.
    config = dataclasses.replace(families.from_hf_config(hf_config, str(file)), tie_embeddings=True)
    with _stored(folder) as home:
        if "score.weight" not in home:
            raise UserError(f"{folder}: has no tensor score.weight, a classifier's head")
        shape = tuple(home["score.weight"].get_slice("score.weight").get_shape())
        labels = _labels(hf_config, shape[0] if shape else 0, file)
        if shape != (len(labels), config.width):
            raise UserError(f"{folder}: tensor score.weight has shape {shape}, the config asks for {(len(labels), config.width)}")
        if not label and len(labels) > 1:
            raise UserError(f"{folder}: has the labels {', '.join(labels)}; name the one whose score is the reward ({key})")
        if label and label not in labels:
            raise UserError(f"{folder}: has no label {label!r}, only {', '.join(labels)} ({key})")
        pad = hf_config.get("pad_token_id")
        yield folder, config, home, labels, labels.index(label) if label else 0, pad if isinstance(pad, int) else None


def _labels(hf_config: dict, rows: int, file: Path) -> list[str]:
    """The labels' names in their order; LABEL_0, LABEL_1, ... (transformers' own) where config.json names none."""
    named = hf_config.get("id2label")
    if named is None:
        return [f"LABEL_{index}" for index in range(rows)]
    if not isinstance(named, dict) or sorted(map(str, named)) != sorted(map(str, range(len(named)))):
        raise UserError(f"{file}: id2label must name the labels 0 to {len(named) - 1 if isinstance(named, dict) else 'n'}")
    return [str({str(key): value for key, value in named.items()}[str(index)]) for index in range(len(named))]


@contextlib.contextmanager
def _stored(folder: Path) -> Iterator[dict[str, Any]]:
    """{tensor's name: the open file that holds it}."""
    with contextlib.ExitStack() as stack:
        home = {}
        for file in weight_files(folder):
            handle = _open(file, stack)
            for name in handle.keys():
                if name in home:
                    raise UserError(f"{file}: tensor {name} stands in another shard too")
                home[name] = handle
        yield home


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a folder. Raises: UserError where there are none."""
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    if not (folder / INDEX).is_file():
        raise UserError(f"{folder}: has neither {WEIGHTS} nor {INDEX}; other formats must be converted to safetensors first")
    shards = _read_json(folder / INDEX).get("weight_map")
    if not isinstance(shards, dict) or not shards:
        raise UserError(f"{folder / INDEX}: has no weight_map")
    return [folder / name for name in sorted(set(map(str, shards.values())))]


def _open(file: Path, stack: contextlib.ExitStack):
    import ml_dtypes  # noqa: F401 (teaches numpy bfloat16)
    from safetensors import SafetensorError, safe_open

    try:
        return stack.enter_context(safe_open(file, framework="numpy"))
    except FileNotFoundError as error:
        raise UserError(f"{file}: the index names this shard, but it is not there") from error
    except (SafetensorError, OSError) as error:
        raise UserError(f"{file}: truncated or not a safetensors file ({_line(error)}); fetch it again") from error


def _read_json(file: Path) -> dict:
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{file}: no such file; a model folder needs it") from error
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror})") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{file}: not valid JSON ({_line(error)})") from error
    if not isinstance(value, dict):
        raise UserError(f"{file}: must hold a JSON object")
    return value


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


def load_tokenizer(path: str | Path) -> Any:
    """The tokenizer of a folder or hub name, checked against the vocabulary that the folder's config.json states.

    Raises: UserError where there is none or where it has ids that the weights lack.
    """
    from transformers import AutoTokenizer

    folder = resolve(path)
    if not any((folder / file).is_file() for file in TOKENIZER_FILES):  # transformers would make an empty one up
        raise UserError(f"{folder}: no tokenizer; one of {', '.join(TOKENIZER_FILES)} must be there")
    # Before transformers reads it too, whose complaint about a field would be one about the tokenizer.
    config = read_config(folder) if (folder / "config.json").is_file() else None
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # what tokenizers raises is a bare Exception
        raise UserError(f"{folder}: no tokenizer that transformers can read ({_line(error)})") from error
    if config is not None:
        check_vocabulary(tokenizer, config.vocab_size, folder)
    return tokenizer


def check_vocabulary(tokenizer: Any, vocab_size: int, where: str | Path) -> None:
    """Raises UserError where the tokenizer can give ids >= vocab_size (entries of the embedding table).

    The table may be larger than the tokenizer's vocabulary: many are padded.
    """
    largest = max(tokenizer.get_vocab().values(), default=-1)
    if largest >= vocab_size:
        raise UserError(
            f"{where}: the tokenizer has ids up to {largest}, the weights a vocabulary of {vocab_size}; "
            "tokenizer and weights are of different models"
        )


def eos_ids(folder: str | Path | None = None, tokenizer: Any = None) -> tuple[int, ...]:
    """The ids that end a response: the tokenizer's own EOS first (the one that training appends), then further ones that
    generation_config.json (or, where it names none, config.json) lists.

    Raises: UserError where nothing names an EOS, or something that is no id.
    """
    ids = [] if tokenizer is None or tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    ids += _special_ids(folder, "eos_token_id")
    if not ids:
        raise UserError(f"{folder or 'the tokenizer'}: no EOS token in the tokenizer, generation_config.json or config.json")
    return tuple(dict.fromkeys(ids))


def pad_id(folder: str | Path | None = None, tokenizer: Any = None) -> int:
    """The id that fills rows: the tokenizer's, else the folder's, else EOS. Masks never look at it, so that pad = EOS is
    harmless.

    Raises: UserError as `eos_ids`.
    """
    if tokenizer is not None and tokenizer.pad_token_id is not None:
        return int(tokenizer.pad_token_id)
    return [*_special_ids(folder, "pad_token_id"), *eos_ids(folder, tokenizer)][0]


def _special_ids(folder: str | Path | None, field: str) -> list[int]:
    """The ids of a field, of one of them or a list; [] where no file has it, or it is -1, which older folders write for none."""
    for file in () if folder is None else ("generation_config.json", "config.json"):
        value = _read_json(Path(folder) / file).get(field) if (Path(folder) / file).is_file() else None
        if value is None:
            continue
        ids = value if isinstance(value, list) else [] if value == -1 else [value]
        if not all(isinstance(number, int) and not isinstance(number, bool) and 0 <= number < 2**31 for number in ids):
            raise UserError(f"{Path(folder) / file}: {field} must be a token's id or a list of them, not {_line(json.dumps(value))}")
        return ids
    return []


def save_folder(directory: str | Path, config: ModelConfig, trunk: PyTree, tokenizer: Any = None) -> Path:
    """Writes a Hugging Face folder: config.json, generation_config.json, model.safetensors and the tokenizer's files.

    Args:
      directory: made if it is not there; files of these names are replaced.
      config: the architecture, of one of the families.
      trunk: float32 leaves; an adapter must have been merged into it.
      tokenizer: of transformers; None writes none and no special ids.
    Returns: the directory.
    """
    directory = Path(directory)
    special = {}
    if tokenizer is not None:
        check_vocabulary(tokenizer, config.vocab_size, directory)
        special = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    # Ids that are None are written too: transformers would put the family's own defaults in their place.
    hf_config = families.to_hf_config(config) | {f"{name}_token_id": None for name in ("bos", "eos", "pad")} | special
    stored = tensors.stored_tensors(config, {"params": trunk})
    hf_export.write_folder(directory, hf_config, stored, tokenizer=tokenizer, generation=special)
    return directory
