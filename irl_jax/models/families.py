"""Checkpoint families: how the Hugging Face configs and tensors of GPT-2, Llama, Mistral, Qwen, Gemma and Phi-3 map to ours.

FAMILIES says, per family, how to read and write its config and which tensor holds which of our leaves. Families reuse Llama's parts.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

from irl_jax.errors import UserError
from irl_jax.models.hf_fields import (
    HF_ACTIVATIONS,
    activation,
    fields_of,
    layer_types,
    layer_types_to_hf,
    number,
    refuse,
    rope,
    rope_to_hf,
    size,
    switch,
)
from irl_jax.models.layers import ModelConfig


class Tensor(NamedTuple):
    """One tensor of a checkpoint, or one per layer if its name has "{}".

    leaves: paths in the trunk (under "blocks" if there is one per layer). Several lie side by side on the last axis, as in
    GPT-2's fused c_attn. transposed: stored [out, in].
    """

    name: str
    leaves: tuple[str, ...]
    transposed: bool = False


def _linear(name: str, leaf: str, transposed: bool) -> tuple[Tensor, Tensor]:
    return Tensor(f"{name}.weight", (f"{leaf}/kernel",), transposed), Tensor(f"{name}.bias", (f"{leaf}/bias",))


def _norm(name: str, leaf: str) -> tuple[Tensor, Tensor]:
    return Tensor(f"{name}.weight", (f"{leaf}/scale",)), Tensor(f"{name}.bias", (f"{leaf}/bias",))


# The tables list biases and the unembedding for every variant; import and export skip those that a config doesn't have.
_QKV = ("attention/q", "attention/k", "attention/v")


def _llama_tensors(fused: bool = False, qk_norm: bool = False, gemma2_norms: bool = False) -> tuple[Tensor, ...]:
    """Llama's tensors, and what others name or fuse differently. Layer tensors start with model.layers.N."""
    layer = "model.layers.{}"
    q_k_v = [Tensor(f"{layer}.self_attn.qkv_proj.weight", tuple(f"{path}/kernel" for path in _QKV), transposed=True)]
    up = [Tensor(f"{layer}.mlp.gate_up_proj.weight", ("mlp/gate/kernel", "mlp/up/kernel"), transposed=True)]
    if not fused:
        q_k_v = [t for x in "qkv" for t in _linear(f"{layer}.self_attn.{x}_proj", f"attention/{x}", transposed=True)]
        up = [t for x in ("gate", "up") for t in _linear(f"{layer}.mlp.{x}_proj", f"mlp/{x}", transposed=True)]
    norms = [Tensor(f"{layer}.self_attn.{x}_norm.weight", (f"attention/{x}_norm/scale",)) for x in "qk" if qk_norm]
    mlp_norm = "pre_feedforward_layernorm" if gemma2_norms else "post_attention_layernorm"
    if gemma2_norms:  # they use Llama's name of the norm before the MLP for the one after attention
        norms.append(Tensor(f"{layer}.post_attention_layernorm.weight", ("attention_post_norm/scale",)))
        norms.append(Tensor(f"{layer}.post_feedforward_layernorm.weight", ("mlp_post_norm/scale",)))
    return (
        Tensor("model.embed_tokens.weight", ("embed/tokens",)),
        Tensor(f"{layer}.input_layernorm.weight", ("attention_norm/scale",)),
        *q_k_v,
        *_linear(f"{layer}.self_attn.o_proj", "attention/o", transposed=True),
        Tensor(f"{layer}.{mlp_norm}.weight", ("mlp_norm/scale",)),
        *norms,
        *up,
        *_linear(f"{layer}.mlp.down_proj", "mlp/down", transposed=True),
        Tensor("model.norm.weight", ("final_norm/scale",)),
        Tensor("lm_head.weight", ("unembed/kernel",), transposed=True),
    )


_GPT2_TENSORS = (
    Tensor("transformer.wte.weight", ("embed/tokens",)),
    Tensor("transformer.wpe.weight", ("embed/positions",)),
    *_norm("transformer.h.{}.ln_1", "attention_norm"),
    Tensor("transformer.h.{}.attn.c_attn.weight", tuple(f"{path}/kernel" for path in _QKV)),
    Tensor("transformer.h.{}.attn.c_attn.bias", tuple(f"{path}/bias" for path in _QKV)),
    *_linear("transformer.h.{}.attn.c_proj", "attention/o", transposed=False),
    *_norm("transformer.h.{}.ln_2", "mlp_norm"),
    *_linear("transformer.h.{}.mlp.c_fc", "mlp/up", transposed=False),
    *_linear("transformer.h.{}.mlp.c_proj", "mlp/down", transposed=False),
    *_norm("transformer.ln_f", "final_norm"),
    Tensor("lm_head.weight", ("unembed/kernel",), transposed=True),
)


class Family(NamedTuple):
    """One family of checkpoints.

    architecture: the transformers class. read(hf, where) -> ModelConfig; the fields of hf may be malformed. write(config) -> the
    fields that `read` reads. tensors: which tensor holds which leaf. prefix: of the names, absent if the model was saved without its
    head. buffers: ends of names that are constants, not parameters.
    """

    architecture: str
    read: Callable[[dict, str], ModelConfig]
    write: Callable[[ModelConfig], dict]
    tensors: tuple[Tensor, ...]
    prefix: str = "model."
    buffers: tuple[str, ...] = (".rotary_emb.inv_freq",)


def _read_gpt2(hf: dict, where: str) -> ModelConfig:
    refuse(hf, where, scale_attn_weights=True, scale_attn_by_inverse_layer_idx=False, add_cross_attention=False)
    width, heads = size(hf, "n_embd", where), size(hf, "n_head", where)
    if width % heads:
        raise UserError(f"{where}: n_embd {width} is not a multiple of n_head {heads}")
    return ModelConfig(
        vocab_size=size(hf, "vocab_size", where),
        num_layers=size(hf, "n_layer", where),
        width=width,
        num_heads=heads,
        num_kv_heads=heads,
        head_dim=width // heads,
        mlp_width=size(hf, "n_inner", where, 4 * width),
        max_positions=size(hf, "n_positions", where),
        norm_eps=number(hf, "layer_norm_epsilon", where, 1e-5),
        activation=activation(hf, "activation_function", "gelu_new", where),
        tie_embeddings=switch(hf, "tie_word_embeddings", where, True),
    )


def _write_gpt2(config: ModelConfig) -> dict:
    return {
        "n_layer": config.num_layers,
        "n_embd": config.width,
        "n_head": config.num_heads,
        "n_inner": config.mlp_width,
        "n_positions": config.max_positions,
        "activation_function": {"gelu_tanh": "gelu_new"}.get(config.activation, config.activation),
        "layer_norm_epsilon": config.norm_eps,
    }


def _read_shared(
    hf: dict, where: str, *, head_dim: int | None = None, positions: int = 2048, tied: bool = False, **fields: Any
) -> ModelConfig:
    """What Llama and later families share. head_dim, positions, tied: the family's defaults. fields: its own fields of ModelConfig."""
    width, heads = size(hf, "hidden_size", where), size(hf, "num_attention_heads", where)
    bias = switch(hf, "attention_bias", where, False)
    read: dict[str, Any] = dict(
        vocab_size=size(hf, "vocab_size", where),
        num_layers=size(hf, "num_hidden_layers", where),
        width=width,
        num_heads=heads,
        num_kv_heads=size(hf, "num_key_value_heads", where, heads),
        head_dim=size(hf, "head_dim", where, head_dim or width // heads),
        mlp_width=size(hf, "intermediate_size", where),
        max_positions=size(hf, "max_position_embeddings", where, positions),
        positions="rotary",
        norm="rms",
        norm_eps=number(hf, "rms_norm_eps", where, 1e-6),
        gated_mlp=True,
        qkv_bias=bias,
        output_bias=bias,
        mlp_bias=False,
        tie_embeddings=switch(hf, "tie_word_embeddings", where, tied),
    )
    if "activation" not in fields:
        read["activation"] = activation(hf, "hidden_act", "silu", where)
    if "rope_theta" not in fields:
        read |= rope(hf, where)
    config = ModelConfig(**read | fields)
    if config.head_dim % 2 or int(config.head_dim * config.rotary_share) % 2:
        raise UserError(f"{where}: rotary positions need an even head_dim (and rotated share of it), not {config.head_dim}")
    return config


def _write_shared(config: ModelConfig) -> dict:
    return {
        "num_hidden_layers": config.num_layers,
        "hidden_size": config.width,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "intermediate_size": config.mlp_width,
        "max_position_embeddings": config.max_positions,
        "hidden_act": HF_ACTIVATIONS[config.activation],
        "rms_norm_eps": config.norm_eps,
        "attention_bias": config.output_bias,
    } | rope_to_hf(config)


def _read_llama(hf: dict, where: str) -> ModelConfig:
    return _read_shared(hf, where, mlp_bias=switch(hf, "mlp_bias", where, False))


def _write_llama(config: ModelConfig) -> dict:
    return _write_shared(config) | {"mlp_bias": config.mlp_bias}


def _window(hf: dict, where: str, default: int | None) -> dict:
    """The window of all layers (the config may say null), and no biases, since these families have none."""
    none = {"qkv_bias": False, "output_bias": False}
    if hf.get("sliding_window", default) is None:
        return none
    layers = size(hf, "num_hidden_layers", where)
    return none | {"window": size(hf, "sliding_window", where, default), "windowed": (True,) * layers}


def _read_mistral(hf: dict, where: str) -> ModelConfig:
    return _read_shared(hf, where, positions=131072, **_window(hf, where, 4096))


def _write_mistral(config: ModelConfig) -> dict:
    return _write_shared(config) | {"sliding_window": config.window if config.windowed else None}


def _qwen_window(hf: dict, where: str) -> dict:
    """If use_sliding_window is true, Qwen's layers from max_window_layers on see a window."""
    if not switch(hf, "use_sliding_window", where, False) or hf.get("sliding_window", 4096) is None:
        return {}
    layers, whole = size(hf, "num_hidden_layers", where), hf.get("max_window_layers", 28)
    if not isinstance(whole, int) or whole < 0:
        raise UserError(f"{where}: max_window_layers must be a number of layers, not {whole!r}")
    windowed = layer_types(hf, where, layers, [index >= whole for index in range(layers)])
    return {"window": size(hf, "sliding_window", where, 4096), "windowed": windowed} if windowed else {}


def _write_qwen(config: ModelConfig) -> dict:
    fields = _write_shared(config) | {"use_sliding_window": bool(config.windowed), "layer_types": layer_types_to_hf(config)}
    fields |= {"sliding_window": config.window, "max_window_layers": config.windowed.index(True)} if config.windowed else {}
    return fields


def _read_qwen2(hf: dict, where: str) -> ModelConfig:
    if "head_dim" in hf:  # not a field of Qwen2; transformers uses it only for rotary angles
        refuse(hf, where, head_dim=size(hf, "hidden_size", where) // size(hf, "num_attention_heads", where))
    return _read_shared(hf, where, positions=32768, qkv_bias=True, output_bias=False, **_qwen_window(hf, where))


def _write_qwen2(config: ModelConfig) -> dict:
    return {key: value for key, value in _write_qwen(config).items() if key not in ("head_dim", "attention_bias")}


def _read_qwen3(hf: dict, where: str) -> ModelConfig:
    return _read_shared(hf, where, head_dim=128, positions=32768, qk_norm=True, **_qwen_window(hf, where))


def _read_gemma(hf: dict, where: str, **fields: Any) -> ModelConfig:
    """Gemma 1. Configs as old as the model say hidden_act "gelu" but mean the tanh form it was trained with."""
    if hf.get("use_bidirectional_attention"):
        refuse(hf, where, use_bidirectional_attention=False)
    key = "hidden_activation" if hf.get("hidden_activation") is not None else "hidden_act"
    named = activation(hf, key, "gelu_pytorch_tanh", where)
    if named != "gelu_tanh" and not (named == "gelu" and key == "hidden_act"):
        raise UserError(f"{where}: Gemma with the activation {named!r} is not supported, only gelu_pytorch_tanh")
    gemma: dict[str, Any] = {"head_dim": 256, "positions": 8192, "tied": True, "unit_offset": True, "embed_scale": True}
    return _read_shared(hf, where, **gemma | {"activation": "gelu_tanh"} | fields)


def _write_gemma(config: ModelConfig) -> dict:
    return _write_shared(config) | {"hidden_activation": "gelu_pytorch_tanh"}


def _read_gemma2(hf: dict, where: str, pattern: int = 2, softcaps: tuple[float, float] = (50.0, 30.0), **fields: Any) -> ModelConfig:
    """Gemma 2, or Gemma 3 with qk_norm and without the caps. Every pattern-th layer sees everything."""
    layers = size(hf, "num_hidden_layers", where)
    windowed = layer_types(hf, where, layers, [bool((index + 1) % pattern) for index in range(layers)])
    caps = {}
    for name, key, default in zip(("attention_softcap", "logit_softcap"), ("attn_logit_softcapping", "final_logit_softcapping"), softcaps,
                                  strict=True):
        value = hf.get(key, default)
        caps[name] = number(hf, key, where, default) if value else 0.0
    window = size(hf, "sliding_window", where, 4096) if windowed else 0
    scalar = number(hf, "query_pre_attn_scalar", where, 256)
    return _read_gemma(hf, where, window=window, windowed=windowed, query_scalar=scalar, post_norms=True, **caps, **fields)


def _write_gemma2(config: ModelConfig) -> dict:
    scalar = config.query_scalar
    return _write_gemma(config) | {
        "query_pre_attn_scalar": int(scalar) if scalar == int(scalar) else scalar,
        "attn_logit_softcapping": config.attention_softcap or None,
        "final_logit_softcapping": config.logit_softcap or None,
        "layer_types": layer_types_to_hf(config),
    } | ({"sliding_window": config.window} if config.windowed else {})


def _read_gemma3(hf: dict, where: str) -> ModelConfig:
    """Gemma 3's text model. Windowed layers have their own rotary base; only the other layers' is scaled."""
    both = fields_of(hf, "rope_parameters", where)
    nested = both if "full_attention" in both or "sliding_attention" in both else {"full_attention": both}
    whole = rope(hf | {"rope_parameters": nested.get("full_attention")}, where, 1e6)
    local = fields_of(nested, "sliding_attention", where)
    refuse(local, f"{where}: rope_parameters.sliding_attention", rope_type="default")
    base = number(local, "rope_theta", where, number(hf, "rope_local_base_freq", where, 1e4))
    pattern = size(hf, "sliding_window_pattern", where, 6)
    return _read_gemma2(hf, where, pattern, (0.0, 0.0), positions=131072, qk_norm=True, **whole, local_rope_theta=base)


def _write_gemma3(config: ModelConfig) -> dict:
    return _write_gemma2(config) | {"rope_local_base_freq": config.local_rope_theta}


def _read_phi3(hf: dict, where: str) -> ModelConfig:
    return _read_shared(hf, where, positions=4096, norm_eps=number(hf, "rms_norm_eps", where, 1e-5), **_window(hf, where, None))


FAMILIES: dict[str, Family] = {  # by model_type
    "gpt2": Family("GPT2LMHeadModel", _read_gpt2, _write_gpt2, _GPT2_TENSORS, "transformer.", (".attn.bias", ".attn.masked_bias")),
    "llama": Family("LlamaForCausalLM", _read_llama, _write_llama, _llama_tensors()),
    "mistral": Family("MistralForCausalLM", _read_mistral, _write_mistral, _llama_tensors()),
    "qwen2": Family("Qwen2ForCausalLM", _read_qwen2, _write_qwen2, _llama_tensors()),
    "qwen3": Family("Qwen3ForCausalLM", _read_qwen3, _write_qwen, _llama_tensors(qk_norm=True)),
    "gemma": Family("GemmaForCausalLM", _read_gemma, _write_gemma, _llama_tensors()),
    "gemma2": Family("Gemma2ForCausalLM", _read_gemma2, _write_gemma2, _llama_tensors(gemma2_norms=True)),
    "gemma3_text": Family("Gemma3ForCausalLM", _read_gemma3, _write_gemma3, _llama_tensors(qk_norm=True, gemma2_norms=True)),
    "phi3": Family("Phi3ForCausalLM", _read_phi3, _write_mistral, _llama_tensors(fused=True)),
}


def family(config: ModelConfig) -> str:
    """The family of this architecture: its own, or the first in FAMILIES that can hold it. ValueError if none can."""
    if config.family:
        return config.family
    for name in FAMILIES:
        try:
            there_and_back = from_hf_config(_written(name, config), name)
        except (UserError, KeyError):
            continue
        if _architecture(there_and_back) == _architecture(config):
            return name
    raise ValueError(f"none of {', '.join(FAMILIES)} has this architecture: {config}")


def _architecture(config: ModelConfig) -> ModelConfig:
    """The config without its family and how it is computed."""
    return dataclasses.replace(config, dtype="float32", scan_layers=False, remat="none", loss_chunk=0, adapter_scale=0.0, family="",
                               vocab_multiple=1, query_scalar=config.query_scalar or float(config.head_dim))


def from_size(model: Any, vocab_size: int, max_positions: int) -> ModelConfig:
    """The architecture that the config's `model` section describes, for training from scratch. Embeddings are tied.

    Args:
      model: config.model (architecture, num_layers, width, num_heads, num_kv_heads, mlp_width, dtype, scan_layers, remat, loss_chunk).
      vocab_size: entries of the vocabulary.
      max_positions: tokens of the longest prompt plus response.
    Raises: UserError for sizes that don't fit together.
    """
    if model.architecture not in FAMILIES:
        raise UserError(f"config.model.architecture: {model.architecture!r} is none of {', '.join(FAMILIES)}")
    for key in ("num_layers", "width", "num_heads", "num_kv_heads", "mlp_width"):
        if model[key] < 1:
            raise UserError(f"config.model.{key}: {model[key]} is not positive")
    if model.width % model.num_heads:
        raise UserError(f"config.model.width: {model.width} is not a multiple of num_heads = {model.num_heads}")
    llama, head_dim = model.architecture != "gpt2", model.width // model.num_heads
    if model.num_heads % model.num_kv_heads or not (llama or model.num_heads == model.num_kv_heads):
        rule = "must divide num_heads" if llama else "must equal num_heads in GPT-2"
        raise UserError(f"config.model.num_kv_heads: {model.num_kv_heads} {rule} = {model.num_heads}")
    if llama and head_dim % 2:
        raise UserError(f"config.model.width: rotary positions need an even width / num_heads, not {head_dim}")
    sizes = {"num_hidden_layers": model.num_layers, "hidden_size": model.width, "num_attention_heads": model.num_heads,
             "num_key_value_heads": model.num_kv_heads, "head_dim": head_dim, "intermediate_size": model.mlp_width, "rms_norm_eps": 1e-5,
             "max_position_embeddings": max_positions, "query_pre_attn_scalar": head_dim}  # fmt: skip
    if not llama:
        sizes = {"n_layer": model.num_layers, "n_embd": model.width, "n_head": model.num_heads, "n_inner": model.mlp_width,
                 "n_positions": max_positions}  # fmt: skip
    hf = sizes | {"model_type": model.architecture, "vocab_size": vocab_size, "tie_word_embeddings": True}
    return dataclasses.replace(from_hf_config(hf, "config.model"), dtype=model.dtype, scan_layers=model.scan_layers, remat=model.remat,
                               loss_chunk=model.loss_chunk)


def from_hf_config(hf: dict, where: str = "config.json") -> ModelConfig:
    """Reads a Hugging Face config.

    Args:
      hf: the parsed config.json.
      where: the file's name, for errors.
    Returns: the architecture, computed in float32.
    Raises: UserError naming the field that is missing, malformed or unsupported by this decoder.
    """
    kind = hf.get("model_type")
    if not isinstance(kind, str) or kind not in FAMILIES:
        raise UserError(f"{where}: model_type {kind!r} is not supported, only {', '.join(FAMILIES)}")
    config = dataclasses.replace(FAMILIES[kind].read(hf, where), family=kind)
    if config.num_heads % config.num_kv_heads:
        raise UserError(f"{where}: {config.num_heads} attention heads cannot share {config.num_kv_heads} key/value heads")
    return config


def to_hf_config(config: ModelConfig) -> dict:
    """The Hugging Face config of an architecture: the inverse of `from_hf_config`, without token ids."""
    return _written(family(config), config)


def _written(kind: str, config: ModelConfig) -> dict:
    common = {"model_type": kind, "architectures": [FAMILIES[kind].architecture], "dtype": "float32",
              "vocab_size": config.vocab_size, "tie_word_embeddings": config.tie_embeddings}  # fmt: skip
    return common | FAMILIES[kind].write(config)
