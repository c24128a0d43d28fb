"""Writes Hugging Face folders: weights in shards, one shard at a time, and the JSON beside them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from irl_jax.errors import UserError
from irl_jax.models.tensors import Stored

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
SENTENCEPIECE = "tokenizer.model"
DTYPES = ("float32", "bfloat16", "float16")
# Fields of tokenizer_config.json about how it was loaded here, and about code and processors that an export doesn't have.
_NOT_OF_A_TOKENIZER = ("backend", "is_local", "local_files_only", "auto_map", "processor_class")
SHARD = 5 * 10**9  # bytes; transformers' own limit


class Written(NamedTuple):
    """What `write_weights` wrote: number of tensors, their bytes, and the files' names."""

    tensors: int
    size: int
    files: tuple[str, ...]


def in_shards(tensors: Iterable[Stored], itemsize: int, limit: int) -> list[list[Stored]]:
    """Splits tensors, in order, before the one that would take a shard over `limit` bytes. A larger tensor is a shard alone."""
    shards: list[list[Stored]] = [[]]
    size = 0
    for tensor in tensors:
        own = int(np.prod(tensor.shape, dtype=np.int64)) * itemsize
        if shards[-1] and size + own > limit:
            shards.append([])
            size = 0
        shards[-1].append(tensor)
        size += own
    return shards


def write_weights(directory: Path, tensors: Iterable[Stored], dtype: str = "float32", limit: int = SHARD) -> Written:
    """Writes model.safetensors, or shards and their index if it would exceed `limit` bytes.

    Args:
      directory: an existing folder.
      tensors: read in order, one shard at a time on the host.
      dtype: one of DTYPES.
      limit: bytes per shard.
    Raises: UserError if a weight is not finite in a 16-bit dtype; OSError if a file can't be written.
    """
    kind = np_dtype(dtype)
    shards = in_shards(tensors, kind.itemsize, limit)
    names = [WEIGHTS] if len(shards) == 1 else [
        f"model-{number:05d}-of-{len(shards):05d}.safetensors" for number in range(1, len(shards) + 1)]
    total = 0
    for name, shard in zip(names, shards, strict=True):
        total += save_tensors(directory / name, {tensor.name: cast(tensor.name, tensor.read(), dtype) for tensor in shard})
    if len(shards) > 1:
        weight_map = {tensor.name: name for name, shard in zip(names, shards, strict=True) for tensor in shard}
        write_json(directory / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})
    return Written(sum(map(len, shards)), total, tuple(names))


def save_tensors(file: Path, tensors: dict[str, np.ndarray]) -> int:
    """Writes one safetensors file as torch's tools expect it. Returns the tensors' bytes. Raises: OSError."""
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    try:
        file.touch()
        mode = file.stat().st_mode  # as the umask allows; the library gives access to the owner alone
        save_file(tensors, file, metadata={"format": "pt"})
        file.chmod(mode)
    except SafetensorError as error:  # raised if the disk is full
        raise OSError(" ".join(str(error).split())[:200]) from error
    return sum(tensor.nbytes for tensor in tensors.values())


def np_dtype(name: str) -> np.dtype:
    """The numpy dtype of a name in DTYPES."""
    import ml_dtypes

    return np.dtype(getattr(ml_dtypes, name, name))


def cast(name: str, tensor: np.ndarray, dtype: str) -> np.ndarray:
    """A tensor in another dtype. Raises: UserError if a number is not finite in a 16-bit dtype, such as one above 65504 in float16."""
    with np.errstate(over="ignore"):
        out = tensor.astype(np_dtype(dtype))
    if dtype != "float32" and not np.isfinite(out.astype(np.float32)).all():
        raise UserError(f"--dtype={dtype}: tensor {name} has numbers that are not finite in it; take --dtype=bfloat16 or float32")
    return out


def write_json(file: Path, value: dict) -> None:
    """Writes an object as JSON. Raises: OSError."""
    file.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def write_tokenizer(directory: Path, tokenizer: Any) -> None:
    """Writes a transformers tokenizer such that versions 4.45 and later, version 5 and vLLM read it as it is here.

    tokenizer.json determines how text becomes ids, so the class is the generic one. The families' classes add rules of their own, and the
    two versions disagree on them. The SentencePiece model is copied because llama.cpp's converter needs Gemma's.
    """
    tokenizer.save_pretrained(directory, save_jinja_files=False)  # chat template as a field: older versions read no file of it
    file = directory / "tokenizer_config.json"
    settings = json.loads(file.read_text(encoding="utf-8"))
    settings = {key: value for key, value in settings.items() if key not in _NOT_OF_A_TOKENIZER}
    # Version 5 lists further special tokens where version 4 expects an object of named ones, and gives that object another name.
    further, named = settings.pop("extra_special_tokens", None), settings.pop("model_specific_special_tokens", None)
    settings |= {"additional_special_tokens": further} if further else {}
    settings |= {"extra_special_tokens": named} if named else {}
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        settings["tokenizer_class"] = "PreTrainedTokenizerFast"
        # Version 4 sets add_prefix_space on a pre-tokenizer that has it. Version 5 cleans up no BPE text, whatever the field says.
        before = json.loads(backend.to_str())["pre_tokenizer"] or {}
        settings |= {"add_prefix_space": before["add_prefix_space"]} if "add_prefix_space" in before else {}
        cleans = tokenizer.clean_up_tokenization_spaces and type(backend.model).__name__ != "BPE"
        settings["clean_up_tokenization_spaces"] = bool(cleans)
    # The family's class sets these; the generic one doesn't.
    write_json(file, settings | {"model_input_names": list(tokenizer.model_input_names), "padding_side": tokenizer.padding_side})
    model = Path(tokenizer.name_or_path) / SENTENCEPIECE
    if tokenizer.name_or_path and model.is_file():
        shutil.copyfile(model, directory / SENTENCEPIECE)


def write_folder(
    directory: Path,
    hf_config: dict,
    tensors: Iterable[Stored],
    *,
    tokenizer: Any = None,
    generation: dict | None = None,
    dtype: str = "float32",
    limit: int = SHARD,
) -> Written:
    """Writes config.json, the weights and, if given, the tokenizer's files and generation_config.json.

    Args:
      directory: made if missing; files of these names are replaced.
      hf_config: without dtype, which is that of the weights.
      tensors, dtype, limit: as in `write_weights`.
    """
    directory.mkdir(parents=True, exist_ok=True)
    if tokenizer is not None:
        write_tokenizer(directory, tokenizer)
    written = write_weights(directory, tensors, dtype, limit)
    write_json(directory / "config.json", hf_config | {"dtype": dtype, "torch_dtype": dtype})  # the new name and the old
    if generation is not None:
        write_json(directory / "generation_config.json", generation)
    return written
