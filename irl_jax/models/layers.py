"""The decoder's layers as Flax modules, and the config they read."""

from __future__ import annotations

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec

from irl_jax.errors import UserError
from irl_jax.types import Array


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The architecture and how it is computed.

    mlp_width counts the hidden units; max_positions, tokens. use_bias: every kernel has a bias (layer norms always do,
    RMS norms never). Gemma's: unit_offset, norms multiply by 1 + scale; embed_scale, the token embeddings are multiplied by
    sqrt(width). dtype is that of the computation. scan_layers, remat and loss_chunk do not change the function:
    lax.scan over the layers; what the backward pass recomputes ("none", "full", or "dots": all but the products with
    parameters); tokens, over all rows, whose vocabulary logits exist at one time (0: all). adapter_scale: alpha / rank.
    """

    vocab_size: int
    num_layers: int
    width: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    mlp_width: int
    max_positions: int
    positions: str = "learned"  # "learned" or "rotary"
    rope_theta: float = 10000.0
    norm: str = "layer"  # "layer" or "rms"
    norm_eps: float = 1e-5
    gated_mlp: bool = False
    activation: str = "gelu_tanh"  # "gelu_tanh", "gelu" or "silu"
    use_bias: bool = True
    tie_embeddings: bool = True
    unit_offset: bool = False
    embed_scale: bool = False
    dtype: str = "float32"
    scan_layers: bool = False
    remat: str = "none"
    loss_chunk: int = 0
    adapter_scale: float = 0.0

    def __post_init__(self):
        for field, allowed in (("dtype", ("float32", "bfloat16")), ("remat", ("none", "full", "dots"))):
            if getattr(self, field) not in allowed:
                raise UserError(f"config.model.{field}: {getattr(self, field)!r} is none of {', '.join(allowed)}")
        if self.loss_chunk < 0:
            raise UserError(f"config.model.loss_chunk: {self.loss_chunk} is negative; 0 is one chunk")


_ACTIVATIONS = {
    "gelu_tanh": functools.partial(jax.nn.gelu, approximate=True),
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
    "silu": jax.nn.silu,
}


class Dense(nn.Module):
    """y = x W + b + adapter_scale (x A) B, the last term where the "adapter" collection has A and B for this kernel."""

    config: ModelConfig
    features: int
    init_std: float

    @nn.compact
    def __call__(self, x):
        dtype = jnp.dtype(self.config.dtype)
        kernel = self.param("kernel", nn.initializers.normal(self.init_std), (x.shape[-1], self.features), jnp.float32)
        # Two axes: the gradient of a kernel then contracts one axis, which on CPU is several times faster than two.
        leading, x = x.shape[:-1], x.reshape(-1, x.shape[-1])
        y = x @ kernel.astype(dtype)
        if self.has_variable("adapter", "a"):
            a = self.get_variable("adapter", "a").astype(dtype)
            b = self.get_variable("adapter", "b").astype(dtype)
            y = y + self.config.adapter_scale * ((x @ a) @ b)
        if self.config.use_bias:
            y = y + self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32).astype(dtype)
        return y.reshape(*leading, self.features)


class Norm(nn.Module):
    """Layer norm (scale and bias) or RMS norm (scale), in float32."""

    config: ModelConfig

    @nn.compact
    def __call__(self, x):
        offset = self.config.unit_offset
        start = nn.initializers.zeros if offset else nn.initializers.ones
        scale = self.param("scale", start, (x.shape[-1],), jnp.float32) + (1.0 if offset else 0.0)
        y = x.astype(jnp.float32)
        if self.config.norm == "layer":
            y = y - y.mean(-1, keepdims=True)
        y = y * lax.rsqrt(jnp.square(y).mean(-1, keepdims=True) + self.config.norm_eps) * scale
        if self.config.norm == "layer":
            y = y + self.param("bias", nn.initializers.zeros, (x.shape[-1],), jnp.float32)
        return y.astype(self.config.dtype)


class Attention(nn.Module):
    """The projections of attention; the caller attends between `qkv` and `output`."""

    config: ModelConfig

    def setup(self):
        c, std = self.config, kernel_std(self.config)
        self.q = Dense(c, c.num_heads * c.head_dim, std)
        self.k = Dense(c, c.num_kv_heads * c.head_dim, std)
        self.v = Dense(c, c.num_kv_heads * c.head_dim, std)
        self.o = Dense(c, c.width, std / (2 * c.num_layers) ** 0.5)

    def qkv(self, x, rotation):
        def heads(y):
            return y.reshape(*y.shape[:-1], -1, self.config.head_dim)

        return _rotate(heads(self.q(x)), rotation), _rotate(heads(self.k(x)), rotation), heads(self.v(x))

    def output(self, attended):
        return self.o(attended.reshape(*attended.shape[:-2], -1))


class Mlp(nn.Module):
    """down(f(up(x))), or down(f(gate(x)) * up(x)) where gated (SwiGLU with f = SiLU, GeGLU with f = GELU)."""

    config: ModelConfig

    @nn.compact
    def __call__(self, x):
        c, std = self.config, kernel_std(self.config)
        activation = _ACTIVATIONS[c.activation]
        hidden = Dense(c, c.mlp_width, std, name="up")(x)
        if c.gated_mlp:
            hidden = activation(Dense(c, c.mlp_width, std, name="gate")(x)) * hidden
        else:
            hidden = activation(hidden)
        return Dense(c, c.width, std / (2 * c.num_layers) ** 0.5, name="down")(hidden)


class Block(nn.Module):
    """One pre-norm layer: x + attention(norm(x)), then x + mlp(norm(x))."""

    config: ModelConfig

    def setup(self):
        self.attention_norm = Norm(self.config)
        self.attention = Attention(self.config)
        self.mlp_norm = Norm(self.config)
        self.mlp = Mlp(self.config)

    def __call__(self, x_BxTxD, rotation, mask_Bx1xTxT):
        """Returns the layer's output and its keys and values [B, T, G, E]."""
        q, k, v = self.qkv(x_BxTxD, rotation)
        # XLA's attention, for a gradient penalty differentiates it twice and cuDNN's has no second derivative
        attended_BxTxHxE = jax.nn.dot_product_attention(q, k, v, mask=mask_Bx1xTxT, implementation="xla")
        return self.finish(x_BxTxD, attended_BxTxHxE), (k, v)

    def qkv(self, x, rotation):
        return self.attention.qkv(self.attention_norm(x), rotation)

    def finish(self, x, attended):
        x = x + self.attention.output(attended)
        return x + self.mlp(self.mlp_norm(x))


def by_rows(x: Array) -> Array:
    """Holds the first axis of an activation, its rows, to the mesh axes `data` and `fsdp`; the other axes are the compiler's choice.

    Parameters are split over `fsdp` too. Left alone, the compiler may then split activations along their width instead, sum
    partial products of all rows on every device, and need the memory and the network of the whole batch. Without a mesh in
    context (`sharding.compile_step` sets one), or where the rows do not divide, x comes back as it is.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or x.shape[0] % (mesh.shape["data"] * mesh.shape["fsdp"]):
        return x
    free = (PartitionSpec.UNCONSTRAINED,) * (x.ndim - 1)
    return lax.with_sharding_constraint(x, PartitionSpec(("data", "fsdp"), *free))


def kernel_std(config: ModelConfig) -> float:
    """GPT-2's 0.02 at its width of 768, scaled as 1 / sqrt(width) to other widths."""
    return 0.02 * (768 / config.width) ** 0.5


def rotation_of(config: ModelConfig, positions) -> tuple[Array, Array] | None:
    """Cosine and sine of the rotary angles, float32 [..., 1, E / 2]; None for learned positions."""
    if config.positions != "rotary":
        return None
    exponent = jnp.arange(0, config.head_dim, 2, dtype=jnp.float32) / config.head_dim
    angle = positions.astype(jnp.float32)[..., None, None] * config.rope_theta**-exponent
    return jnp.cos(angle), jnp.sin(angle)


def _rotate(x, rotation):
    """Rotary positions on [..., heads, E]: dimension i is paired with i + E / 2, as Llama checkpoints of the hub are."""
    if rotation is None:
        return x
    cos, sin = rotation
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)
