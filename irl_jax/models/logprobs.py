"""Log-probabilities of tokens, in chunks of vocabulary logits: [B, T, V] never exists, not even in the backward pass.

The gradient of log softmax(logits)[y] with respect to the logits is onehot(y) - softmax(logits), known as soon as the logits are. So
the forward pass of a derivative multiplies it with the unembedding while the chunk exists, and keeps the product [B, T, D]. Logits
are recomputed only for the gradient of the unembedding itself, if the weights aren't known in advance.

Axes: B rows, T tokens, D width, V vocabulary; C chunks.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax import lax

from irl_jax.models.layers import ModelConfig
from irl_jax.models.transformer import hidden_states, vocab_logits
from irl_jax.types import Array, PyTree

CHUNK_TOKENS, CHUNK_LOGITS = 1024, 1 << 22  # automatic chunk per device: this many tokens, or more up to this many logits


def token_logprobs(config: ModelConfig, variables: PyTree, tokens, positions, segments, with_entropy: bool = False):
    """Log-probability of each token given the earlier ones of its segment: log softmax(logits[t - 1])[tokens[t]].

    Args:
      config, variables: the model; vocabulary logits exist for about config.loss_chunk tokens at a time.
      tokens, positions, segments: int32 [B, T].
      with_entropy: also returns the entropy of the distribution each token was drawn from.
    Returns: float32 [B, T], nats; 0 at the first token of a segment and at padding. With entropies, a pair of such arrays.
    """
    hidden = hidden_states(config, variables, tokens, positions, segments)
    picked = _picked(config, with_entropy, _head(config, variables), hidden, _next(tokens))
    continues = _continues(segments)
    picked = jax.tree.map(lambda x: jnp.where(continues, jnp.roll(x, 1, axis=1), 0.0), picked)
    return picked if with_entropy else picked[0]


def weighted_logprob(config: ModelConfig, variables: PyTree, tokens, positions, segments, weights_BxT) -> Array:
    """sum of weights * token_logprobs. Computes every parameter's gradient while the logits exist, so no chunk twice.

    Args:
      config, variables, tokens, positions, segments: as for `token_logprobs`. weights_BxT: float32; not differentiated.
    Returns: float32 scalar.
    """
    hidden = hidden_states(config, variables, tokens, positions, segments)
    weights_BxT = jnp.roll(jnp.where(_continues(segments), weights_BxT, 0.0), -1, axis=1)
    return _weighted(config, _head(config, variables), hidden, _next(tokens), lax.stop_gradient(weights_BxT))


def _head(config: ModelConfig, variables: PyTree) -> PyTree:
    """The part of the trunk that `vocab_logits` reads."""
    trunk = variables["params"]
    return {"embed": {"tokens": trunk["embed"]["tokens"]}} if config.tie_embeddings else {"unembed": trunk["unembed"]}


def _next(tokens_BxT) -> Array:
    """Each state's target. The last one is meaningless; it keeps the row length divisible into chunks."""
    return jnp.roll(tokens_BxT, -1, axis=1)


def _continues(segments_BxT) -> Array:
    """Whether a token continues the segment of the one before it."""
    return (segments_BxT == jnp.roll(segments_BxT, 1, axis=1)).at[:, 0].set(False) & (segments_BxT > 0)


# ------------------------------------------------------------------------------------------- any function of log-probs
@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _picked(config, with_entropy: bool, head, hidden, targets) -> tuple[Array, ...]:
    def one(chunk):
        hidden, targets = chunk
        return _values(_logits(config, head, hidden), targets, with_entropy)

    return _over_chunks(config, lambda _, chunk: (None, one(chunk)), None, hidden, targets)[1]


def _picked_forward(config, with_entropy, head, hidden, targets):
    def one(_, chunk):
        hidden, targets = chunk
        logits, pull = jax.vjp(lambda hidden: _logits(config, head, hidden), hidden)
        values = _values(logits, targets, with_entropy)
        return None, (values, tuple(pull(slope)[0] for slope in _slopes(logits, targets, values)))

    values, slopes = _over_chunks(config, one, None, hidden, targets)[1]
    return values, (head, hidden, targets, slopes)


def _picked_backward(config, with_entropy, residuals, gradients):
    head, hidden, targets, slopes = residuals

    def one(total, chunk):
        hidden, targets, *gradients = chunk
        logits, pull = jax.vjp(lambda head: _logits(config, head, hidden), head)
        slopes = _slopes(logits, targets, _values(logits, targets, with_entropy))
        (more,) = pull(sum(slope * gradient[..., None] for slope, gradient in zip(slopes, gradients, strict=True)))
        return jax.tree.map(jnp.add, total, more), None

    # if the unembedding is frozen, nobody reads this sum and the compiler drops the loop
    head_gradient, _ = _over_chunks(config, one, jax.tree.map(jnp.zeros_like, head), hidden, targets, *gradients)
    hidden_gradient = sum(slope * gradient[..., None].astype(slope.dtype) for slope, gradient in zip(slopes, gradients, strict=True))
    return head_gradient, hidden_gradient, None


_picked.defvjp(_picked_forward, _picked_backward)


# ------------------------------------------------------------------------------------------------------ a weighted sum
@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _weighted(config, head, hidden, targets, weights) -> Array:
    return jnp.sum(_picked(config, False, head, hidden, targets)[0] * weights)


def _weighted_forward(config, head, hidden, targets, weights):
    def one(sums, chunk):
        hidden, targets, weights = chunk
        logits, pull = jax.vjp(lambda head, hidden: _logits(config, head, hidden), head, hidden)
        values = _values(logits, targets, False)
        more, slope = pull(_slopes(logits, targets, values)[0] * weights[..., None])
        return jax.tree.map(jnp.add, sums, (jnp.sum(values[0] * weights), more)), slope

    zeros = jnp.zeros((), jnp.float32), jax.tree.map(jnp.zeros_like, head)
    (total, head_gradient), hidden_gradient = _over_chunks(config, one, zeros, hidden, targets, weights)
    return total, (head_gradient, hidden_gradient)


def _weighted_backward(config, residuals, gradient):
    scaled = jax.tree.map(lambda x: x * gradient.astype(x.dtype), residuals)
    return *scaled, None, None


_weighted.defvjp(_weighted_forward, _weighted_backward)


# --------------------------------------------------------------------------------------------------------------- chunks
def _logits(config, head, hidden) -> Array:
    return vocab_logits(config, {"params": head}, hidden)


def _values(logits, targets, with_entropy: bool) -> tuple[Array, ...]:
    """(log-probs of the targets,), or with entropies a pair."""
    log_sum = jax.nn.logsumexp(logits, axis=-1)
    picked = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0] - log_sum
    if not with_entropy:
        return (picked,)
    logprobs = logits - log_sum[..., None]
    return picked, -jnp.sum(jnp.exp(logprobs) * logprobs, axis=-1)


def _slopes(logits, targets, values) -> tuple[Array, ...]:
    """Gradients of `_values` with respect to the logits: onehot - softmax, and -softmax (log softmax + entropy)."""
    logprobs = logits - jax.nn.logsumexp(logits, axis=-1, keepdims=True)
    probabilities = jnp.exp(logprobs)
    picked = (jnp.arange(logits.shape[-1]) == targets[..., None]) - probabilities
    return (picked, *(-probabilities * (logprobs + entropy[..., None]) for entropy in values[1:]))


def _columns(config: ModelConfig, rows: int) -> int:
    """Tokens per row in a chunk."""
    tokens = config.loss_chunk
    if not tokens:
        mesh = jax.sharding.get_abstract_mesh()
        devices = 1 if mesh.empty else mesh.shape["data"] * mesh.shape["fsdp"]
        tokens = devices * max(CHUNK_TOKENS, CHUNK_LOGITS // config.vocab_size)
    return max(1, tokens // rows)


def _over_chunks(config: ModelConfig, one, carry, *arrays):
    """lax.scan of `one` over chunks of arrays [B, T, ...]; joins its outputs to [B, T, ...] again.

    Chunks are cut along the token axis, so the batch axis keeps its sharding.
    """
    rows, length = arrays[0].shape[:2]
    count = -(-length // _columns(config, rows))
    if count == 1:
        return one(carry, arrays)
    columns = -(-length // count)

    def cut(x):
        x = jnp.pad(x, [(0, 0), (0, count * columns - length)] + [(0, 0)] * (x.ndim - 2))
        return x.reshape(rows, count, columns, *x.shape[2:]).swapaxes(0, 1)

    def join(x):
        return x.swapaxes(0, 1).reshape(rows, count * columns, *x.shape[3:])[:, :length]

    carry, out = lax.scan(one, carry, tuple(map(cut, arrays)))
    return carry, jax.tree.map(join, out)
