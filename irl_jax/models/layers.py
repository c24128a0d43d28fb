"""The decoder's layers as Flax modules, and the config they read."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import PartitionSpec

from irl_jax.errors import UserError
from irl_jax.models.attention import Scores, attend
from irl_jax.types import Array


class RopeScaling(NamedTuple):
    """How rotary frequencies are scaled for longer contexts.

    kind: "linear" divides every frequency by `factor`. "llama3" (Llama 3.1) divides only those with wavelengths above
    original_positions / low_freq_factor, keeps those below original_positions / high_freq_factor, and mixes both in between.
    """

    kind: str
    factor: float
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_positions: int = 8192


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The architecture and how it is computed.

    family: whose checkpoints it came from (`models.families`); "" means any that fits. mlp_width: hidden units. max_positions: tokens.
    qkv_bias, output_bias, mlp_bias: which kernels have a bias (layer norms always do, RMS norms never). rotary_share: share of a head's
    dimensions that is rotated. windowed: which layers see only the last `window` tokens, including the token itself.
    local_rope_theta: the unscaled rotary base of those layers (0: same as the others). attention_softcap c > 0: scores are
    c tanh(score / c). logit_softcap: the same for vocabulary logits. query_scalar: scores are divided by its square root (0: by
    head_dim's). qk_norm: queries and keys are normalised per head before rotation. post_norms: outputs of attention and MLP are
    normalised too before they are added. Gemma's unit_offset: norms multiply by 1 + scale. Gemma's embed_scale: token embeddings are
    multiplied by sqrt(width). dtype: of the computation. adapter_scale: alpha / rank.
    The rest doesn't change the function. scan_layers: lax.scan over the layers. remat: what the backward pass recomputes ("none",
    "full", or "dots": all but the products with parameters). loss_chunk: tokens, over all rows, whose vocabulary logits exist at once
    (0: `logprobs` chooses). vocab_multiple: zeros pad the embedding table and the unembedding to `padded_vocab` entries, a multiple of it.
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
    rope_scaling: RopeScaling | None = None
    local_rope_theta: float = 0.0
    rotary_share: float = 1.0
    window: int = 0
    windowed: tuple[bool, ...] = ()
    attention_softcap: float = 0.0
    logit_softcap: float = 0.0
    query_scalar: float = 0.0
    qk_norm: bool = False
    post_norms: bool = False
    norm: str = "layer"  # "layer" or "rms"
    norm_eps: float = 1e-5
    gated_mlp: bool = False
    activation: str = "gelu_tanh"  # "gelu_tanh", "gelu" or "silu"
    qkv_bias: bool = True
    output_bias: bool = True
    mlp_bias: bool = True
    tie_embeddings: bool = True
    unit_offset: bool = False
    embed_scale: bool = False
    dtype: str = "float32"
    scan_layers: bool = False
    remat: str = "none"
    loss_chunk: int = 0
    adapter_scale: float = 0.0
    family: str = ""
    vocab_multiple: int = 1

    @property
    def padded_vocab(self) -> int:
        """Entries of the embedding table: vocab_size, plus padding that is zero and never sampled."""
        return -(-self.vocab_size // self.vocab_multiple) * self.vocab_multiple

    def __post_init__(self):
        for field, allowed in (("dtype", ("float32", "bfloat16")), ("remat", ("none", "full", "dots"))):
            if getattr(self, field) not in allowed:
                raise UserError(f"config.model.{field}: {getattr(self, field)!r} is none of {', '.join(allowed)}")
        if self.loss_chunk < 0:
            raise UserError(f"config.model.loss_chunk: {self.loss_chunk} is negative; 0 chooses")
        if self.vocab_multiple < 1:
            raise UserError(f"config.model.vocab_multiple: {self.vocab_multiple} is not positive; 1 pads nothing")
        if self.windowed and (len(self.windowed) != self.num_layers or self.window < 1):
            raise ValueError(f"windowed needs one entry a layer and window > 0, not {len(self.windowed)} and {self.window}")


_ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu_tanh": functools.partial(jax.nn.gelu, approximate=True),
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
    "silu": jax.nn.silu,
}


class Dense(nn.Module):
    """y = x W + b + adapter_scale (x A) B, the last term only if the "adapter" collection has A and B for this kernel."""

    config: ModelConfig
    features: int
    init_std: float
    use_bias: bool

    @nn.compact
    def __call__(self, x):
        dtype = jnp.dtype(self.config.dtype)
        kernel = self.param("kernel", nn.initializers.normal(self.init_std), (x.shape[-1], self.features), jnp.float32)
        # Two axes: a kernel's gradient then contracts one axis, several times faster on CPU than two.
        leading, x = x.shape[:-1], x.reshape(-1, x.shape[-1])
        if self.has_variable("adapter", "a"):
            a: Array = self.get_variable("adapter", "a")
            b: Array = self.get_variable("adapter", "b")
            y = adapted(self.config, x, kernel, a, b)
        else:
            y = x @ kernel.astype(dtype)
        if self.use_bias:
            y = y + self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32).astype(dtype)
        return y.reshape(*leading, self.features)


def adapted(config: ModelConfig, x_NxI, kernel_IxO, a_IxR, b_RxO) -> Array:
    """x W + adapter_scale (x A) B.

    float32 computes x (W + adapter_scale A B), which passes over [N, O] once instead of three times. bfloat16 would round the
    adapter away in that sum.
    """
    if config.dtype == "float32":
        return _merged(config.adapter_scale, x_NxI, kernel_IxO.astype(jnp.float32), a_IxR, b_RxO)
    kernel, a, b = (leaf.astype(config.dtype) for leaf in (kernel_IxO, a_IxR, b_RxO))
    return x_NxI @ kernel + config.adapter_scale * ((x_NxI @ a) @ b)


def merged_kernel(scale: float, kernel, a, b) -> Array:
    """W + scale A B; all three share any leading axes, such as the layers."""
    return kernel + jnp.matmul(scale * a, b, precision="highest")


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _merged(scale: float, x, kernel, a, b) -> Array:
    return x @ merged_kernel(scale, kernel, a, b)


def _merged_forward(scale, x, kernel, a, b):
    return _merged(scale, x, kernel, a, b), (x, kernel, a, b)


def _merged_backward(scale, residuals, gradient_NxO):
    """Goes through A and B separately, so their gradients need none as large as the kernel."""
    x, kernel, a, b = residuals
    gradient_NxR = gradient_NxO @ (scale * b).T
    return (gradient_NxO @ merged_kernel(scale, kernel, a, b).T, x.T @ gradient_NxO,  # the latter is dropped if the kernel is frozen
            x.T @ gradient_NxR, (scale * (x @ a)).T @ gradient_NxO)


_merged.defvjp(_merged_forward, _merged_backward)


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
    """Attention's projections; the caller attends between `qkv` and `output`."""

    config: ModelConfig

    def setup(self):
        c, std = self.config, kernel_std(self.config)
        self.q = Dense(c, c.num_heads * c.head_dim, std, c.qkv_bias)
        self.k = Dense(c, c.num_kv_heads * c.head_dim, std, c.qkv_bias)
        self.v = Dense(c, c.num_kv_heads * c.head_dim, std, c.qkv_bias)
        self.o = Dense(c, c.width, std / (2 * c.num_layers) ** 0.5, c.output_bias)
        if c.qk_norm:
            self.q_norm, self.k_norm = Norm(c), Norm(c)

    def qkv(self, x, rotation):
        def heads(y):
            return y.reshape(*y.shape[:-1], -1, self.config.head_dim)

        q, k = heads(self.q(x)), heads(self.k(x))
        if self.config.qk_norm:
            q, k = self.q_norm(q), self.k_norm(k)
        return _rotate(q, rotation), _rotate(k, rotation), heads(self.v(x))

    def output(self, attended):
        return self.o(attended.reshape(*attended.shape[:-2], -1))


class Mlp(nn.Module):
    """down(f(up(x))), or down(f(gate(x)) * up(x)) if gated (SwiGLU with f = SiLU, GeGLU with f = GELU)."""

    config: ModelConfig

    @nn.compact
    def __call__(self, x):
        c, std = self.config, kernel_std(self.config)
        activation = _ACTIVATIONS[c.activation]
        hidden = Dense(c, c.mlp_width, std, c.mlp_bias, name="up")(x)
        if c.gated_mlp:
            hidden = activation(Dense(c, c.mlp_width, std, c.mlp_bias, name="gate")(x)) * hidden
        else:
            hidden = activation(hidden)
        return Dense(c, c.width, std / (2 * c.num_layers) ** 0.5, c.mlp_bias, name="down")(hidden)


class Block(nn.Module):
    """One pre-norm layer: x + attention(norm(x)), then x + mlp(norm(x)); with post_norms, x + norm(attention(norm(x))) and so on."""

    config: ModelConfig

    def setup(self):
        self.attention_norm = Norm(self.config)
        self.attention = Attention(self.config)
        self.mlp_norm = Norm(self.config)
        self.mlp = Mlp(self.config)
        if self.config.post_norms:
            self.attention_post_norm, self.mlp_post_norm = Norm(self.config), Norm(self.config)

    def __call__(self, x_BxTxD, rotation, segments_BxT, window=None):
        """Returns the layer's output and its keys and values [B, T, G, E]; see `attention.attend` for segments and window."""
        q, k, v = self.qkv(x_BxTxD, rotation)
        scores = Scores(attention_scale(self.config), self.config.attention_softcap)
        return self.finish(x_BxTxD, attend(scores, q, k, v, segments_BxT, window)), (k, v)

    def qkv(self, x, rotation):
        return self.attention.qkv(self.attention_norm(x), rotation)

    def finish(self, x, attended):
        y = self.attention.output(attended)
        x = x + (self.attention_post_norm(y) if self.config.post_norms else y)
        y = self.mlp(self.mlp_norm(x))
        return x + (self.mlp_post_norm(y) if self.config.post_norms else y)


def attention_scale(config: ModelConfig) -> float:
    """The factor of scores of queries and keys."""
    return (config.query_scalar or config.head_dim) ** -0.5


def by_rows(x: Array) -> Array:
    """Splits an activation's first axis, its rows, over the mesh axes `data` and `fsdp`. The compiler chooses the other axes.

    Parameters are split over `fsdp` too. Left alone, the compiler may split activations along their width instead. Every device
    then sums partial products of all rows, with the memory and network traffic of the whole batch. Returns x unchanged if there
    is no mesh in context (`sharding.compile_step` sets one) or the rows don't divide.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or x.shape[0] % (mesh.shape["data"] * mesh.shape["fsdp"]):
        return x
    free = (PartitionSpec.UNCONSTRAINED,) * (x.ndim - 1)
    return lax.with_sharding_constraint(x, PartitionSpec(("data", "fsdp"), *free))


def kernel_std(config: ModelConfig) -> float:
    """GPT-2's 0.02 at its width of 768, scaled as 1 / sqrt(width) to other widths."""
    return 0.02 * (768 / config.width) ** 0.5


def rotation_of(config: ModelConfig, positions, local: bool = False) -> tuple[Array, Array] | None:
    """Cosine and sine of the rotary angles, float32 [..., 1, rotated dimensions / 2]; None for learned positions.

    local: those of windowed layers, if they have their own base.
    """
    if config.positions != "rotary":
        return None
    angle = positions.astype(jnp.float32)[..., None, None] * _frequencies(config, local)
    return jnp.cos(angle), jnp.sin(angle)


def _frequencies(config: ModelConfig, local: bool) -> np.ndarray:
    """Radians per token of each pair of dimensions, float32."""
    rotated = int(config.head_dim * config.rotary_share)
    local = local and config.local_rope_theta > 0
    theta = np.float32(config.local_rope_theta if local else config.rope_theta)
    frequency = 1 / theta ** (np.arange(0, rotated, 2, dtype=np.float32) / np.float32(rotated))
    scaling = config.rope_scaling
    if scaling is None or local:
        return frequency
    if scaling.kind == "linear":
        return frequency / np.float32(scaling.factor)
    turns = scaling.original_positions * frequency / (2 * math.pi)  # within the original training context
    kept = np.clip((turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor), 0, 1)
    return ((1 - kept) * frequency / scaling.factor + kept * frequency).astype(np.float32)


def _rotate(x, rotation):
    """Rotary positions on [..., heads, E]. Dimension i is paired with i + half of those rotated, as in the hub's Llama checkpoints."""
    if rotation is None:
        return x
    cos, sin = rotation
    rotated, rest = jnp.split(x, [2 * cos.shape[-1]], axis=-1)
    first, second = jnp.split(rotated.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)
    return turned if not rest.shape[-1] else jnp.concatenate([turned, rest], axis=-1)
