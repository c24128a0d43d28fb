"""One decoder for the GPT-2, Llama, Mistral, Qwen, Gemma and Phi-3 architectures: training, scoring and cached decoding.

Parameters are plain nested dictionaries, float32, kernels [in, out]. The blocks are stored stacked: every leaf under
trunk["blocks"] (and adapter["blocks"]) has the layer as its first axis. `Block` is a Flax module, applied layer by layer.
Everything around it is a plain function of `variables = {"params": trunk, "adapter": adapter}`; "adapter" is optional.

    trunk = {"embed": {"tokens": [V, D], "positions": [P, D] (learned positions only)},
             "blocks": {"attention_norm", "mlp_norm", "attention_post_norm", "mlp_post_norm": {"scale", "bias"},
                        "attention": {"q", "k", "v", "o": {"kernel", "bias"}, "q_norm", "k_norm": {"scale"}},
                        "mlp": {"up", "gate", "down": {"kernel", "bias"}}},
             "final_norm": {"scale", "bias"},
             "unembed": {"kernel": [D, V]} (untied embeddings only)}

Axes: B rows, K samples per prompt, S prompt tokens, T tokens of a row or of a response, D width, H heads, G key/value heads,
R = H / G heads per key/value head, E head width, V vocabulary (with its padding, `config.padded_vocab`), L layers.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from irl_jax.models.attention import MASKED, softcap
from irl_jax.models.layers import Block, ModelConfig, Norm, attention_scale, by_rows, kernel_std, rotation_of
from irl_jax.types import Array, PyTree


class _View(NamedTuple):
    """What a layer sees: rotary angles (None for learned positions), the segments [B, T] and the number of last tokens (None: all)."""

    rotation: tuple[Array, Array] | None
    segments: Array
    window: int | Array | None


class LayerCache(NamedTuple):
    """Keys and values of one layer: [B, G, S, E] for the prompts, [B, K, G, T, E] for the responses."""

    k: Array
    v: Array


def init_trunk(rng, config: ModelConfig) -> PyTree:
    """Initialises a trunk: N(0, 0.02^2 * 768 / width), residual projections smaller by sqrt(2 L), zero biases, unit scales.

    Args:
      rng: a PRNG key.
      config: the architecture.
    Returns: the trunk, float32, laid out as the module's docstring says. Vocabulary padding is 0 and doesn't change the rest.
    """
    token_rng, position_rng, block_rng, unembed_rng = jax.random.split(rng, 4)
    normal = nn.initializers.normal(kernel_std(config))
    x = jnp.zeros((1, 1, config.width), config.dtype)
    rotation, segments = rotation_of(config, jnp.zeros((1, 1), jnp.int32)), jnp.ones((1, 1), jnp.int32)

    def init_block(key):
        return Block(config).init(key, x, rotation, segments)["params"]

    unused = config.padded_vocab - config.vocab_size
    trunk = {
        "embed": {"tokens": jnp.pad(normal(token_rng, (config.vocab_size, config.width), jnp.float32), ((0, unused), (0, 0)))},
        "blocks": jax.vmap(init_block)(jax.random.split(block_rng, config.num_layers)),
        "final_norm": Norm(config).init(block_rng, x)["params"],
    }
    if config.positions == "learned":
        trunk["embed"]["positions"] = normal(position_rng, (config.max_positions, config.width), jnp.float32)
    if not config.tie_embeddings:
        kernel = normal(unembed_rng, (config.width, config.vocab_size), jnp.float32)
        trunk["unembed"] = {"kernel": jnp.pad(kernel, ((0, 0), (0, unused)))}
    return trunk


def _layer(variables, index) -> PyTree:
    """One layer's variables, from stacked or unstacked blocks; `index` is an integer."""

    def pick(blocks):
        return blocks[index] if isinstance(blocks, tuple) else jax.tree.map(lambda leaf: leaf[index], blocks)

    return {name: pick(collection["blocks"]) for name, collection in variables.items() if collection is not None}


def _layers(config: ModelConfig, variables: PyTree) -> list[PyTree]:
    """Every layer's variables, for differentiated functions. Picked alone, each layer would have a gradient as large as all."""

    def split(leaf):
        return [part[0] for part in lax.split(leaf, (1,) * config.num_layers)]

    def layers(blocks):
        if isinstance(blocks, tuple):
            return blocks
        leaves, structure = jax.tree.flatten(blocks)
        return [jax.tree.unflatten(structure, parts) for parts in zip(*map(split, leaves), strict=True)]

    each = {name: layers(collection["blocks"]) for name, collection in variables.items() if collection is not None}
    return [dict(zip(each, layer, strict=True)) for layer in zip(*each.values(), strict=True)]


def unstack(config: ModelConfig, variables: PyTree) -> PyTree:
    """The same variables with "blocks" a tuple of per-layer trees. All functions here take it too, unless they scan over layers.

    For callers of `decode`: done once outside the sampling loop, it saves slicing the stacked parameters at each step.
    """
    layers = [_layer(variables, index) for index in range(config.num_layers)]
    return {
        name: {**collection, "blocks": tuple(layer[name] for layer in layers)}
        for name, collection in variables.items()
        if collection is not None
    }


def _embed(config: ModelConfig, trunk, tokens, positions):
    x = trunk["embed"]["tokens"][tokens]
    if config.positions == "learned":
        x = x + trunk["embed"]["positions"][positions]
    x = by_rows(x.astype(config.dtype))
    return x * jnp.asarray(config.width**0.5, x.dtype) if config.embed_scale else x  # rounded to the dtype, as checkpoints were trained


def _rematerialised(config: ModelConfig, function):
    if config.remat == "none":
        return function
    policy = {
        "full": jax.checkpoint_policies.nothing_saveable,
        "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    }[config.remat]
    return jax.checkpoint(function, policy=policy, prevent_cse=not config.scan_layers)


def hidden_states(config: ModelConfig, variables: PyTree, tokens_BxT, positions_BxT, segments_BxT, shift_BxTxD=None) -> Array:
    """The decoder's states after the final norm. A token sees itself and earlier tokens of its own segment.

    Args:
      config, variables: the model; blocks stacked or, without scan_layers, unstacked.
      tokens_BxT, positions_BxT, segments_BxT: int32. Segment 0 is padding; its states are finite but meaningless.
      shift_BxTxD: added to the input embeddings, for gradients with respect to them; None adds nothing.
    Returns: [B, T, D] in config.dtype.
    """
    x_BxTxD = _embed(config, variables["params"], tokens_BxT, positions_BxT)
    if shift_BxTxD is not None:
        x_BxTxD = x_BxTxD + shift_BxTxD.astype(x_BxTxD.dtype)
    views = _views(config, positions_BxT, segments_BxT)

    if config.scan_layers:
        # The view is chosen in the recomputed function. Outside, every layer's mask would be kept for the backward pass.
        one = _rematerialised(config, lambda x, variables, windowed: _block(config, variables, x, *_view_of(views, windowed))[0])
        stacked = {name: collection["blocks"] for name, collection in variables.items() if collection is not None}
        x_BxTxD, _ = lax.scan(lambda x, xs: (one(x, *xs), None), x_BxTxD, (stacked, _windowed(config)))
    else:
        kinds = [_rematerialised(config, lambda x, variables, view=view: _block_once(config, variables, x, view)[0]) for view in views]
        for layer_variables, windowed in zip(_layers(config, variables), _windowed(config), strict=True):
            x_BxTxD = kinds[windowed](x_BxTxD, layer_variables)
    return Norm(config).apply({"params": variables["params"]["final_norm"]}, x_BxTxD)


def _block(config: ModelConfig, variables, x_BxTxD, rotation, segments_BxT, window):
    """One layer on whole rows: (its output, its keys and values)."""
    x_BxTxD, cache = Block(config).apply(variables, by_rows(x_BxTxD), rotation, segments_BxT, window)
    return by_rows(x_BxTxD), cache


@functools.partial(jax.jit, static_argnums=(0, 5))
def _traced_block(*arguments):
    return _block(*arguments)


def _block_once(config: ModelConfig, variables, x_BxTxD, view: _View):
    """`_block`, traced and lowered once for all layers with the same view. In deep models, layers are most of a program."""
    return _traced_block(config, variables, x_BxTxD, *view)


def _windowed(config: ModelConfig) -> np.ndarray:
    """Which layers see only a window: [L] of 0 and 1."""
    return np.asarray(config.windowed or (False,) * config.num_layers, np.int32)


def _views(config: ModelConfig, positions_BxT, segments_BxT) -> tuple[_View, _View]:
    """The views of layers that see everything and of windowed layers; the same object if there are none of the latter."""
    whole = _View(rotation_of(config, positions_BxT), segments_BxT, None)
    if not any(config.windowed):
        return whole, whole
    return whole, _View(rotation_of(config, positions_BxT, local=True), segments_BxT, config.window)


def _view_of(views: tuple[_View, _View], windowed) -> _View:
    """A layer's view of the two; `windowed` is traced."""
    if views[0] is views[1]:
        return views[0]
    whole, near = (view._replace(window=jnp.int32(view.window or view.segments.shape[1])) for view in views)
    return jax.tree.map(lambda whole, near: jnp.where(windowed > 0, near, whole), whole, near)


def vocab_logits(config: ModelConfig, variables: PyTree, hidden) -> Array:
    """Vocabulary logits of states after the final norm: [..., D] -> float32 [..., V]. Padding is MASKED, whose exponential is 0."""
    trunk = variables["params"]
    kernel = trunk["embed"]["tokens"].T if config.tie_embeddings else trunk["unembed"]["kernel"]
    rows_NxD = by_rows(hidden).reshape(-1, config.width).astype(config.dtype)
    logits_NxV = jnp.matmul(rows_NxD, kernel.astype(config.dtype), preferred_element_type=jnp.float32)
    logits_NxV = softcap(logits_NxV, config.logit_softcap)
    if config.padded_vocab > config.vocab_size:  # after the softcap, which would raise it; finite, as 0 times -inf in entropies is NaN
        logits_NxV = jnp.where(jnp.arange(config.padded_vocab) < config.vocab_size, logits_NxV, MASKED)
    return by_rows(logits_NxV.reshape(*hidden.shape[:-1], config.padded_vocab))


def prefill(config: ModelConfig, variables: PyTree, tokens_BxS, lengths_B) -> tuple[Array, tuple[LayerCache, ...]]:
    """Runs the prompts once.

    Args:
      config, variables: the model; blocks stacked or unstacked.
      tokens_BxS: int32, padded on the right. lengths_B: int32, tokens of each prompt, at least 1.
    Returns: float32 logits [B, V] of the first response token, and the prompt cache, one LayerCache per layer.
    """
    index_S = jnp.arange(tokens_BxS.shape[1])
    segments_BxS = (index_S < lengths_B[:, None]).astype(jnp.int32)
    positions_BxS = jnp.broadcast_to(index_S, tokens_BxS.shape)
    x_BxSxD = _embed(config, variables["params"], tokens_BxS, positions_BxS)
    views = _views(config, positions_BxS, segments_BxS)
    cache = []
    for index in range(config.num_layers):
        x_BxSxD, (k, v) = _block_once(config, _layer(variables, index), x_BxSxD, views[_windowed(config)[index]])
        cache.append(LayerCache(k.swapaxes(1, 2), v.swapaxes(1, 2)))
    last_BxD = jnp.take_along_axis(x_BxSxD, (lengths_B - 1)[:, None, None], axis=1)[:, 0]
    hidden = Norm(config).apply({"params": variables["params"]["final_norm"]}, last_BxD)
    return vocab_logits(config, variables, hidden), tuple(cache)


def init_response_cache(config: ModelConfig, batch: int, samples: int, length: int) -> tuple[LayerCache, ...]:
    """An empty response cache: K = samples rows for each of B = batch prompts. Rows see their last `length` tokens."""
    shape = (batch, samples, config.num_kv_heads, length, config.head_dim)
    return tuple(LayerCache(jnp.zeros(shape, config.dtype), jnp.zeros(shape, config.dtype)) for _ in range(config.num_layers))


def decode(
    config: ModelConfig, variables: PyTree, token_BxR, t_BxR, slot, lengths_B, prompt_cache, response_cache
) -> tuple[Array, tuple[LayerCache, ...]]:
    """Feeds response token t (from 0) in every row and returns the logits of token t + 1.

    The token has position lengths + t. Its keys and values go to index `slot` of the response cache. All rows share this index, so
    the cache is updated in place. It wraps around: calls give 0, 1, ... modulo the cache's length. A row sees this index and the t
    written before it: those of its own response, whenever that began.

    Args:
      config, variables: the model; inside a loop, pass what `unstack` returned outside it.
      token_BxR: int32, R rows per prompt. t_BxR: int32, below the cache's length. slot: int32 scalar. lengths_B: int32, tokens of
        each prompt.
      prompt_cache: from `prefill`; shared by a prompt's rows and never copied.
      response_cache: from `init_response_cache` or the last call; updated in place if donated or a loop's carry.
    Returns: float32 logits [B, R, V] and the response cache.
    """
    position_BxR = lengths_B[:, None] + t_BxR
    x_BxRxD = _embed(config, variables["params"], token_BxR, position_BxR)
    rotations = rotation_of(config, position_BxR), rotation_of(config, position_BxR, local=True)
    S, T = prompt_cache[0].k.shape[2], response_cache[0].k.shape[3]
    seen = [_seen(position_BxR, t_BxR, slot, lengths_B, S, T, window) for window in (None, config.window)]
    windowed, caches = _windowed(config), []
    for index, (prompt, response) in enumerate(zip(prompt_cache, response_cache, strict=True)):
        kind = windowed[index]
        x_BxRxD, response = _decode_layer(
            config, _layer(variables, index), x_BxRxD, rotations[kind], slot, prompt, response, seen[kind])
        caches.append(response)
    hidden = Norm(config).apply({"params": variables["params"]["final_norm"]}, x_BxRxD)
    return vocab_logits(config, variables, hidden), tuple(caches)


@functools.partial(jax.jit, static_argnums=0)
def _decode_layer(config: ModelConfig, variables, x_BxRxD, rotation, slot, prompt: LayerCache, response: LayerCache, seen):
    """One layer of `decode`: its output and its response cache. Traced once for all layers, like `_block_once`."""
    q_k_v: Any = Block(config).apply(variables, x_BxRxD, rotation, method="qkv")  # Flax's type also allows changed collections
    q, k, v = q_k_v
    response = LayerCache(
        lax.dynamic_update_slice_in_dim(response.k, k[:, :, :, None], slot, axis=3),
        lax.dynamic_update_slice_in_dim(response.v, v[:, :, :, None], slot, axis=3),
    )
    attended = _attend_prompt_and_response(config, q, prompt, response, *seen)
    return by_rows(Block(config).apply(variables, x_BxRxD, attended, method="finish")), response


def _seen(position_BxR, t_BxR, slot, lengths_B, prompt_tokens: int, response_tokens: int, window: int | None = None):
    """What a row's query sees: prompt tokens [B, R or 1, S], and indices of the response cache [B, R, T], by when they were written.

    window: number of last tokens, including the query's own.
    """
    index_S, ago_T = jnp.arange(prompt_tokens), slot - jnp.arange(response_tokens)
    ago_T = jnp.where(ago_T < 0, ago_T + response_tokens, ago_T)
    prompt, response_BxRxT = (index_S < lengths_B[:, None])[:, None], ago_T <= t_BxR[..., None]
    if window is not None:
        prompt &= position_BxR[..., None] - index_S < window
        response_BxRxT &= ago_T < window
    return prompt, response_BxRxT


def _attend_prompt_and_response(config, q_BxRxHxE, prompt: LayerCache, response: LayerCache, prompt_seen, response_seen) -> Array:
    """Attention of one query per row over [its prompt | its own response so far], with one softmax: [B, R, H, E]; masks by `_seen`."""
    B, R, H, E = q_BxRxHxE.shape
    G = prompt.k.shape[1]
    q = q_BxRxHxE.reshape(B, R, G, H // G, E) * attention_scale(config)
    prompt_scores = jnp.einsum("bkgre,bgse->bkgrs", q, prompt.k, preferred_element_type=jnp.float32)
    response_scores = jnp.einsum("bkgre,bkgte->bkgrt", q, response.k, preferred_element_type=jnp.float32)
    prompt_scores, response_scores = (softcap(x, config.attention_softcap) for x in (prompt_scores, response_scores))
    prompt_scores = jnp.where(prompt_seen[:, :, None, None], prompt_scores, MASKED)
    response_scores = jnp.where(response_seen[:, :, None, None], response_scores, MASKED)
    # One softmax over both parts, divided by its sum at the end, so the parts are never concatenated.
    largest = jnp.maximum(prompt_scores.max(-1, keepdims=True), response_scores.max(-1, keepdims=True))
    prompt_weights, response_weights = jnp.exp(prompt_scores - largest), jnp.exp(response_scores - largest)
    total = prompt_weights.sum(-1, keepdims=True) + response_weights.sum(-1, keepdims=True)
    attended = jnp.einsum("bkgrs,bgse->bkgre", prompt_weights.astype(q.dtype), prompt.v, preferred_element_type=jnp.float32)
    attended += jnp.einsum("bkgrt,bkgte->bkgre", response_weights.astype(q.dtype), response.v, preferred_element_type=jnp.float32)
    attended = (attended / total).astype(q.dtype)
    return attended.reshape(B, R, H, E)
