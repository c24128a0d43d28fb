"""A cap on the singular values of what a reward trains, so that its logit changes no faster than so much (Lipschitz)."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from irl_jax.types import Array, PyTree

ITERATIONS = 16  # of the power method: from a fixed start, so that nothing has to be carried from step to step


def cap(leaves: PyTree, limit: float, adapter_scale: float) -> PyTree:
    """The leaves with every matrix of the head, and the product of every adapter, at most `limit` in spectral norm.

    W -> W / max(1, sigma(W) / limit): spectral normalisation (Miyato et al., arXiv 1802.05957) as a projection (Gouk et al.,
    arXiv 1804.04368), which leaves a small matrix, and a fresh head of zeros, as it is. sigma is found by the power method, and
    its singular vectors are held fixed in the gradient. A whole trunk is left alone: its pretrained kernels are far above any
    such limit, so there it is the head that is capped.

    Args:
      leaves: of one reward (no members axis). limit: above 0. adapter_scale: alpha / rank; an adapter adds scale * A B to a kernel.
    Returns: leaves of the same structure.
    """
    out = {**leaves, "head": _cap_head(leaves["head"], limit)}
    if "adapter" in leaves:
        blocks = leaves["adapter"]["blocks"]
        capped = {group: {name: _cap_pair(pair, limit, adapter_scale) for name, pair in pairs.items()} for group, pairs in blocks.items()}
        out["adapter"] = {"blocks": capped}
    return out


def _cap_head(head: PyTree, limit: float) -> PyTree:
    out = {**head, "kernel": _capped(head["kernel"], limit)}
    if "hidden" in head:
        out["hidden"] = {**head["hidden"], "kernel": _capped(head["hidden"]["kernel"], limit)}
    return out


def _capped(kernel, limit: float):
    return kernel / jnp.maximum(1.0, largest_singular_value(kernel) / limit)


def _cap_pair(pair: PyTree, limit: float, scale: float) -> PyTree:
    """An adapter's A [L, in, R] and B [L, R, out], B made smaller where scale * A B is too large."""
    sigma_L = scale * jax.vmap(_of_product)(pair["a"], pair["b"])
    return {"a": pair["a"], "b": pair["b"] / jnp.maximum(1.0, sigma_L / limit)[:, None, None]}


def largest_singular_value(kernel) -> Array:
    """The spectral norm of a matrix [in, out], with the gradient u v^T of fixed singular vectors; 0 for a matrix of zeros."""
    return _power(lambda v: kernel @ v, lambda u: kernel.T @ u, kernel.shape[1])


def _of_product(a, b) -> Array:
    """The spectral norm of A B, which is never formed."""
    return _power(lambda v: a @ (b @ v), lambda u: b.T @ (a.T @ u), b.shape[1])


def _power(forward, backward, size: int) -> Array:
    def direction(x):
        return x / jnp.maximum(jnp.linalg.norm(x), 1e-12)

    v = direction(jnp.cos(jnp.arange(1, size + 1, dtype=jnp.float32)))  # any start that is orthogonal to nothing in particular
    for _ in range(ITERATIONS):
        v = direction(backward(direction(forward(v))))
    v = jax.lax.stop_gradient(v)
    u = jax.lax.stop_gradient(direction(forward(v)))
    return u @ forward(v)
