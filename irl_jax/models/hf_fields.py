"""Reads and writes the fields of a Hugging Face config.json, for all families."""

from __future__ import annotations

from typing import Any

from irl_jax.errors import UserError
from irl_jax.models.layers import ModelConfig, RopeScaling

ACTIVATIONS = {
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu": "gelu",
    "silu": "silu",
    "swish": "silu",
}
HF_ACTIVATIONS = {"gelu_tanh": "gelu_pytorch_tanh", "gelu": "gelu", "silu": "silu"}
_LARGEST = {  # far beyond any model; a larger size would cost time or memory before it is checked against the weights
    **dict.fromkeys(("num_hidden_layers", "n_layer", "num_attention_heads", "num_key_value_heads", "n_head"), 2**10),
    **dict.fromkeys(("hidden_size", "n_embd", "head_dim"), 2**20),
}
_LLAMA3_ROPE = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")


def size(hf: dict, key: str, where: str, default: int | None = None) -> int:
    """A positive 31-bit integer, at most _LARGEST. Raises: UserError if it isn't one, or is missing without a default."""
    value = hf.get(key)
    value = default if value is None else value
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < 2**31:
        raise UserError(f"{where}: {key} must be a positive integer, not {_short(value)}")
    if value > _LARGEST.get(key, value):
        raise UserError(f"{where}: {key} = {value}: must be at most {_LARGEST[key]:,}")
    return value


def number(hf: dict, key: str, where: str, default: float | None = None) -> float:
    """A positive number. Raises: UserError if it isn't one, or is missing without a default."""
    value = hf.get(key)
    value = default if value is None else value
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 < value < 1e38:
        raise UserError(f"{where}: {key} must be a positive number, not {_short(value)}")
    return float(value)


def _short(value: Any) -> str:
    return value if len(value := repr(value)) < 100 else f"{value[:40]}..."


def switch(hf: dict, key: str, where: str, default: bool) -> bool:
    """True or false. Raises: UserError if it is neither."""
    value = hf.get(key, default)
    if not isinstance(value, bool):
        raise UserError(f"{where}: {key} must be true or false, not {value!r}")
    return value


def activation(hf: dict, key: str, default: str, where: str) -> str:
    """Our name for their activation. Raises: UserError if we don't have it."""
    name = hf.get(key, default)
    if not isinstance(name, str) or name not in ACTIVATIONS:
        raise UserError(f"{where}: {key} {name!r} is not supported, only {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]


def refuse(hf: dict, where: str, **supported: Any) -> None:
    """Raises: UserError if a field is there with any value but the supported one."""
    for key, value in supported.items():
        if hf.get(key, value) != value:
            raise UserError(f"{where}: {key} = {hf[key]!r} is not supported, only {value!r}")


def fields_of(hf: dict, key: str, where: str) -> dict:
    """An object; {} if there is none. Raises: UserError if it is something else."""
    value = hf.get(key) or {}
    if not isinstance(value, dict):
        raise UserError(f"{where}: {key} must be an object, not {_short(value)}")
    return value


def rope(hf: dict, where: str, default_theta: float = 1e4) -> dict:
    """The fields rope_theta, rope_scaling and rotary_share of ModelConfig.

    Older configs have the base at the top level and the scaling in rope_scaling. Newer ones have both in rope_parameters.
    Raises: UserError for a scaling that this decoder doesn't support.
    """
    newer = fields_of(hf, "rope_parameters", where)
    fields = fields_of(hf, "rope_scaling", where) or newer
    top = newer | hf
    kind = fields.get("rope_type", fields.get("type", "default"))
    if kind not in ("default", "linear", "llama3"):
        raise UserError(f"{where}: rotary positions of type {kind!r} ({fields}) are not supported, only default, linear and llama3")
    scaling = None
    if kind == "linear":
        scaling = RopeScaling("linear", number(fields, "factor", where))
    elif kind == "llama3":
        named = {"original_max_position_embeddings": hf.get("max_position_embeddings")} | fields
        factor, low, high = (number(named, key, where) for key in _LLAMA3_ROPE[:3])
        if low >= high:
            raise UserError(f"{where}: low_freq_factor {low:g} must be below high_freq_factor {high:g}")
        scaling = RopeScaling("llama3", factor, low, high, size(named, _LLAMA3_ROPE[3], where))
    theta = number(fields, "rope_theta", where, number(top, "rope_theta", where, default_theta))
    share = number(fields, "partial_rotary_factor", where, number(top, "partial_rotary_factor", where, 1.0))
    if share > 1:
        raise UserError(f"{where}: partial_rotary_factor {share:g} is above 1")
    return {"rope_theta": theta, "rope_scaling": scaling, "rotary_share": share}


def rope_to_hf(config: ModelConfig) -> dict:
    """The inverse of `rope`, in the older fields. All versions of transformers and vLLM read them."""
    scaling = config.rope_scaling
    fields: dict[str, Any] | None = None
    if scaling is not None:
        fields = {"rope_type": scaling.kind, "factor": scaling.factor}
        fields |= dict(zip(_LLAMA3_ROPE, scaling[1:], strict=True)) if scaling.kind == "llama3" else {}
    share = {"partial_rotary_factor": config.rotary_share} if config.rotary_share != 1 else {}
    return {"rope_theta": config.rope_theta, "rope_scaling": fields, **share}


def layer_types(hf: dict, where: str, layers: int, windowed: list[bool]) -> tuple[bool, ...]:
    """Which layers see a window: from layer_types if present, else `windowed`; () if none does."""
    kinds = hf.get("layer_types")
    if kinds is not None:
        names = {"sliding_attention": True, "full_attention": False}
        if not isinstance(kinds, list) or len(kinds) != layers or not all(kind in names for kind in kinds):
            raise UserError(f"{where}: layer_types must name full_attention or sliding_attention for each of the {layers} layers")
        windowed = [names[kind] for kind in kinds]
    return tuple(windowed) if any(windowed) else ()


def layer_types_to_hf(config: ModelConfig) -> list[str]:
    """The inverse of `layer_types`."""
    return ["sliding_attention" if windowed else "full_attention" for windowed in config.windowed or (False,) * config.num_layers]
