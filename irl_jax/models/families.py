"""The families of checkpoints: how the Hugging Face configs and tensors of GPT-2, Llama and Gemma map to ours.

One table a family says which tensor holds which of our leaves; import and export both read it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import numpy as np

from irl_jax.errors import UserError
from irl_jax.models.transformer import ModelConfig, init_trunk
from irl_jax.types import PyTree


class Tensor(NamedTuple):
    """One tensor of a checkpoint, or one a layer where its name has "{}".

    leaves: paths in the trunk (under "blocks" where there is one a layer); several lie side by side on the last axis, as
    in GPT-2's fused c_attn. transposed: stored [out, in].
    """

    name: str
    leaves: tuple[str, ...]
    transposed: bool = False


def _linear(name: str, leaf: str, transposed: bool) -> tuple[Tensor, Tensor]:
    return Tensor(f"{name}.weight", (f"{leaf}/kernel",), transposed), Tensor(f"{name}.bias", (f"{leaf}/bias",))


def _norm(name: str, leaf: str) -> tuple[Tensor, Tensor]:
    return Tensor(f"{name}.weight", (f"{leaf}/scale",)), Tensor(f"{name}.bias", (f"{leaf}/bias",))


_QKV = ("attention/q", "attention/k", "attention/v")

# Biases and the unembedding stand in the tables for every variant; `tensors` leaves out those that a config does not have.
_TABLES: dict[str, tuple[Tensor, ...]] = {
    "gpt2": (
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
    ),
    "llama": (
        Tensor("model.embed_tokens.weight", ("embed/tokens",)),
        *_norm("model.layers.{}.input_layernorm", "attention_norm"),
        *(t for x in "qkvo" for t in _linear(f"model.layers.{{}}.self_attn.{x}_proj", f"attention/{x}", transposed=True)),
        *_norm("model.layers.{}.post_attention_layernorm", "mlp_norm"),
        *(t for x in ("gate", "up", "down") for t in _linear(f"model.layers.{{}}.mlp.{x}_proj", f"mlp/{x}", transposed=True)),
        *_norm("model.norm", "final_norm"),
        Tensor("lm_head.weight", ("unembed/kernel",), transposed=True),
    ),
}
_TABLES["gemma"] = _TABLES["llama"]  # the same tensors; what differs is how they are computed with
_PREFIX = {"gpt2": "transformer.", "llama": "model.", "gemma": "model."}  # left out where the model without its head was saved
_BUFFERS = {  # constants, not parameters
    "gpt2": (".attn.bias", ".attn.masked_bias"),
    "llama": (".rotary_emb.inv_freq",),
    "gemma": (".rotary_emb.inv_freq",),
}

_ACTIVATIONS = {
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu": "gelu",
    "silu": "silu",
    "swish": "silu",
}
_HF_ACTIVATIONS = {"gelu_tanh": "gelu_new", "gelu": "gelu", "silu": "silu"}


def family(config: ModelConfig) -> str:
    """The family that can hold this architecture, "gpt2", "llama" or "gemma"; ValueError where none can."""
    gemma = (config.unit_offset, config.embed_scale)
    if not any(gemma) and (config.positions, config.norm, config.gated_mlp, config.use_bias) == ("learned", "layer", False, True):
        if config.num_kv_heads == config.num_heads and config.head_dim * config.num_heads == config.width:
            return "gpt2"
    if (config.positions, config.norm, config.gated_mlp) == ("rotary", "rms", True):
        if not any(gemma):
            return "llama"
        if all(gemma) and config.activation == "gelu_tanh":
            return "gemma"
    raise ValueError(f"neither GPT-2 nor Llama nor Gemma has this architecture: {config}")


def from_size(model: Any, vocab_size: int, max_positions: int) -> ModelConfig:
    """The architecture that the config's section `model` describes, for training from scratch; embeddings are tied.

    Args:
      model: config.model (architecture, num_layers, width, num_heads, num_kv_heads, mlp_width, dtype, scan_layers,
        remat, loss_chunk).
      vocab_size: entries of the vocabulary.
      max_positions: tokens of the longest prompt and response together.
    Raises: UserError for sizes that do not fit together.
    """
    if model.architecture not in _TABLES:
        raise UserError(f"config.model.architecture: {model.architecture!r} is none of {', '.join(_TABLES)}")
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
    architecture = (
        {"positions": "rotary", "norm": "rms", "gated_mlp": True, "activation": "silu", "use_bias": False} if llama else {}
    )
    if model.architecture == "gemma":
        architecture |= {"activation": "gelu_tanh", "unit_offset": True, "embed_scale": True}
    return ModelConfig(
        vocab_size=vocab_size,
        num_layers=model.num_layers,
        width=model.width,
        num_heads=model.num_heads,
        num_kv_heads=model.num_kv_heads,
        head_dim=head_dim,
        mlp_width=model.mlp_width,
        max_positions=max_positions,
        dtype=model.dtype,
        scan_layers=model.scan_layers,
        remat=model.remat,
        loss_chunk=model.loss_chunk,
        **architecture,
    )


def from_hf_config(hf: dict, where: str = "config.json") -> ModelConfig:
    """Reads a Hugging Face config.

    Args:
      hf: the parsed config.json.
      where: the file's name, for errors.
    Returns: the architecture, computed in float32.
    Raises: UserError naming the field that is missing, malformed or beyond what this decoder does.
    """
    readers = {"gpt2": _from_gpt2, "llama": _from_llama, "gemma": _from_gemma}
    if hf.get("model_type") not in readers:
        raise UserError(f"{where}: model_type {hf.get('model_type')!r} is not supported, only {', '.join(readers)}")
    config = readers[hf["model_type"]](hf, where)
    if config.num_heads % config.num_kv_heads:
        raise UserError(f"{where}: {config.num_heads} attention heads cannot share {config.num_kv_heads} key/value heads")
    return config


def _from_gpt2(hf: dict, where: str) -> ModelConfig:
    _refuse(hf, where, scale_attn_weights=True, scale_attn_by_inverse_layer_idx=False, add_cross_attention=False)
    width, heads = _size(hf, "n_embd", where), _size(hf, "n_head", where)
    if width % heads:
        raise UserError(f"{where}: n_embd {width} is not a multiple of n_head {heads}")
    return ModelConfig(
        vocab_size=_size(hf, "vocab_size", where),
        num_layers=_size(hf, "n_layer", where),
        width=width,
        num_heads=heads,
        num_kv_heads=heads,
        head_dim=width // heads,
        mlp_width=_size(hf, "n_inner", where, 4 * width),
        max_positions=_size(hf, "n_positions", where),
        norm_eps=hf.get("layer_norm_epsilon", 1e-5),
        activation=_activation(hf, "activation_function", "gelu_new", where),
        tie_embeddings=hf.get("tie_word_embeddings", True),
    )


def _from_llama(hf: dict, where: str) -> ModelConfig:
    width, heads = _size(hf, "hidden_size", where), _size(hf, "num_attention_heads", where)
    bias = hf.get("attention_bias", False)
    if hf.get("mlp_bias", False) != bias:
        raise UserError(f"{where}: attention_bias and mlp_bias differ; only models with both or neither are supported")
    head_dim = _size(hf, "head_dim", where, width // heads)
    if head_dim % 2:
        raise UserError(f"{where}: rotary positions need an even head_dim, not {head_dim}")
    return ModelConfig(
        vocab_size=_size(hf, "vocab_size", where),
        num_layers=_size(hf, "num_hidden_layers", where),
        width=width,
        num_heads=heads,
        num_kv_heads=_size(hf, "num_key_value_heads", where, heads),
        head_dim=head_dim,
        mlp_width=_size(hf, "intermediate_size", where),
        max_positions=_size(hf, "max_position_embeddings", where, 2048),
        positions="rotary",
        rope_theta=_rope_theta(hf, where),
        norm="rms",
        norm_eps=hf.get("rms_norm_eps", 1e-6),
        gated_mlp=True,
        activation=_activation(hf, "hidden_act", "silu", where),
        use_bias=bias,
        tie_embeddings=hf.get("tie_word_embeddings", False),
    )


def _from_gemma(hf: dict, where: str) -> ModelConfig:
    """Gemma 1: Llama's fields; configs as old as the model say hidden_act "gelu" and mean the tanh form that it was trained with."""
    if hf.get("hidden_activation") is not None:
        activation = _activation(hf, "hidden_activation", "gelu_pytorch_tanh", where)
    else:
        activation = _activation(hf, "hidden_act", "gelu_pytorch_tanh", where)
        activation = "gelu_tanh" if activation == "gelu" else activation
    if activation != "gelu_tanh":
        raise UserError(f"{where}: Gemma with the activation {activation!r} is not supported, only gelu_pytorch_tanh")
    base = _from_llama({**hf, "hidden_act": "gelu_pytorch_tanh", "tie_word_embeddings": hf.get("tie_word_embeddings", True)}, where)
    return dataclasses.replace(base, unit_offset=True, embed_scale=True)


def _rope_theta(hf: dict, where: str) -> float:
    """The base of the rotary angles; older configs have it at the top level and the scaling in rope_scaling."""
    rope = hf.get("rope_parameters") or hf.get("rope_scaling") or {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind != "default" or rope.get("partial_rotary_factor", 1.0) != 1.0:
        raise UserError(f"{where}: rotary positions of type {kind!r} ({rope}) are not supported, only unscaled ones")
    return float(rope.get("rope_theta", hf.get("rope_theta", 10000.0)))


def _size(hf: dict, key: str, where: str, default: int | None = None) -> int:
    value = hf.get(key)
    value = default if value is None else value
    if not isinstance(value, int) or value < 1:
        raise UserError(f"{where}: {key} must be a positive integer, not {value!r}")
    return value


def _activation(hf: dict, key: str, default: str, where: str) -> str:
    name = hf.get(key, default)
    if name not in _ACTIVATIONS:
        raise UserError(f"{where}: {key} {name!r} is not supported, only {', '.join(_ACTIVATIONS)}")
    return _ACTIVATIONS[name]


def _refuse(hf: dict, where: str, **supported: Any) -> None:
    for key, value in supported.items():
        if hf.get(key, value) != value:
            raise UserError(f"{where}: {key} = {hf[key]!r} is not supported, only {value!r}")


def to_hf_config(config: ModelConfig) -> dict:
    """The Hugging Face config of an architecture: the inverse of `from_hf_config`, without token ids."""
    common = {"vocab_size": config.vocab_size, "tie_word_embeddings": config.tie_embeddings, "dtype": "float32"}
    activation = _HF_ACTIVATIONS[config.activation]
    if family(config) == "gpt2":
        return common | {
            "model_type": "gpt2",
            "architectures": ["GPT2LMHeadModel"],
            "n_layer": config.num_layers,
            "n_embd": config.width,
            "n_head": config.num_heads,
            "n_inner": config.mlp_width,
            "n_positions": config.max_positions,
            "activation_function": activation,
            "layer_norm_epsilon": config.norm_eps,
        }
    gemma = {"model_type": "gemma", "architectures": ["GemmaForCausalLM"], "hidden_act": "gelu_pytorch_tanh",
             "hidden_activation": "gelu_pytorch_tanh"} if family(config) == "gemma" else {}
    return common | {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "num_hidden_layers": config.num_layers,
        "hidden_size": config.width,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "intermediate_size": config.mlp_width,
        "max_position_embeddings": config.max_positions,
        "hidden_act": activation,
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
        "attention_bias": config.use_bias,
        "mlp_bias": config.use_bias,
    } | gemma


def _flat_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Path -> shape of every leaf of the trunk; the paths of blocks lack "blocks/", their shapes the layers."""
    leaves = jax.tree_util.tree_leaves_with_path(jax.eval_shape(lambda: init_trunk(jax.random.key(0), config)))
    shapes = {jax.tree_util.keystr(path, simple=True, separator="/"): leaf.shape for path, leaf in leaves}
    return {path.removeprefix("blocks/"): shape[1:] if path.startswith("blocks/") else shape for path, shape in shapes.items()}


def import_tensors(config: ModelConfig, names: Iterable[str], get: Callable[[str], np.ndarray], where: str) -> dict:
    """Turns a checkpoint's tensors into a trunk, using each exactly once and checking its shape.

    Args:
      config: the architecture.
      names: the names of all tensors in the checkpoint.
      get: name -> tensor.
      where: the checkpoint's name, for errors.
    Returns: the trunk as numpy arrays, float32.
    Raises: UserError naming missing, unknown or misshapen tensors.
    """
    kind = family(config)
    stored = _stored_names(kind, names)
    shapes = _flat_shapes(config)
    rules = [rule for rule in _TABLES[kind] if rule.leaves[0] in shapes]
    layers = {rule: range(config.num_layers) if "{}" in rule.name else (None,) for rule in rules}
    wanted = {rule.name.format(layer) for rule in rules for layer in layers[rule]}
    duplicate = {"lm_head.weight"} if config.tie_embeddings else set()
    _complain("lacks the tensor", wanted - set(stored), where)
    _complain("has the unknown tensor", set(stored) - wanted - duplicate, where)
    trunk = {}
    for rule in rules:
        parts = [_split(get(stored[name]), rule, shapes, name, where) for name in map(rule.name.format, layers[rule])]
        for leaf, *arrays in zip(rule.leaves, *parts, strict=True):
            if "{}" in rule.name:
                _put(trunk, f"blocks/{leaf}", np.stack(arrays))
            else:
                _put(trunk, leaf, arrays[0])
    for name in duplicate & set(stored):
        if not np.array_equal(np.asarray(get(stored[name]), np.float32), trunk["embed"]["tokens"]):
            raise UserError(f"{where}: tie_word_embeddings is set, but {name} differs from the token embeddings")
    return trunk


def _stored_names(kind: str, names: Iterable[str]) -> dict[str, str]:
    """Full name -> name in the checkpoint, without buffers."""
    names = [name for name in names if not name.endswith(_BUFFERS[kind])]
    prefix = "" if any(name.startswith(_PREFIX[kind]) for name in names) else _PREFIX[kind]
    return {name if name == "lm_head.weight" else prefix + name: name for name in names}


def _complain(verb: str, names: set[str], where: str) -> None:
    if names:
        listed = sorted(names)
        more = f" and {len(listed) - 3} more" if len(listed) > 3 else ""
        raise UserError(f"{where}: {verb}{'s' if len(listed) > 1 else ''} {', '.join(listed[:3])}{more}")


def _split(tensor: np.ndarray, rule: Tensor, shapes: dict, name: str, where: str) -> list[np.ndarray]:
    """One tensor cut into its leaves, as contiguous float32 arrays."""
    widths = [shapes[leaf][-1] for leaf in rule.leaves]
    expected = (*shapes[rule.leaves[0]][:-1], sum(widths))
    expected = expected[::-1] if rule.transposed else expected
    if tensor.shape != expected:
        raise UserError(f"{where}: tensor {name} has shape {tensor.shape}, the config asks for {expected}")
    tensor = (tensor.T if rule.transposed else tensor).astype(np.float32)
    return [np.ascontiguousarray(part) for part in np.split(tensor, np.cumsum(widths)[:-1], axis=-1)]


def _put(tree: dict, path: str, value: np.ndarray) -> None:
    *parents, last = path.split("/")
    for parent in parents:
        tree = tree.setdefault(parent, {})
    tree[last] = value


def export_tensors(config: ModelConfig, trunk: PyTree) -> dict[str, np.ndarray]:
    """The checkpoint's tensors of a trunk: the inverse of `import_tensors`."""
    leaves = {
        jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf, np.float32)
        for path, leaf in jax.tree_util.tree_leaves_with_path(trunk)
    }
    tensors = {}
    for rule in _TABLES[family(config)]:
        layered = "{}" in rule.name
        paths = [f"blocks/{leaf}" if layered else leaf for leaf in rule.leaves]
        if paths[0] not in leaves:
            continue
        joined = np.concatenate([leaves[path] for path in paths], axis=-1)
        for layer in range(config.num_layers) if layered else (None,):
            tensor = joined[layer] if layered else joined
            tensors[rule.name.format(layer)] = np.ascontiguousarray(tensor.T if rule.transposed else tensor)
    return tensors
