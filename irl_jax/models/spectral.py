"""A cap on the singular values of what a reward trains. It limits how fast its logit can change (Lipschitz)."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from irl_jax.types import Array, PyTree

# Squarings of the small Gram matrix: 2 ** 12 iterations of the power method from scratch, so nothing is carried between steps.
# Its sigma is never too large, and too small by at most about log(n) / 2 ** 14 of itself, however close the next one is.
SQUARINGS = 12


def cap(leaves: PyTree, limit: float, adapter_scale: float) -> PyTree:
    """Caps the spectral norm of every matrix of the head and every adapter's product at `limit`.

    W -> W / max(1, sigma(W) / limit): spectral normalisation (Miyato et al., arXiv 1802.05957) as a projection (Gouk et al.,
    arXiv 1804.04368). It leaves a small matrix, and a fresh head of zeros, unchanged. The power method finds sigma to a thousandth.
    The gradient holds its singular vectors fixed. A whole trunk is left alone: its pretrained kernels are far above any such limit,
    so only the head is capped.

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
    """An adapter's A [L, in, R] and B [L, R, out], B scaled down if scale * A B is too large."""
    sigma_L = scale * jax.vmap(_of_product)(pair["a"], pair["b"])
    return {"a": pair["a"], "b": pair["b"] / jnp.maximum(1.0, sigma_L / limit)[:, None, None]}


def largest_singular_value(kernel) -> Array:
    """The spectral norm of a matrix [in, out], with the gradient u v^T of fixed singular vectors; 0 for a matrix of zeros."""
    fixed = jax.lax.stop_gradient(kernel)
    if kernel.shape[0] < kernel.shape[1]:
        return largest_singular_value(kernel.T)
    v = _direction(_dominant(_product(fixed.T, fixed)))
    u = _direction(_product(fixed, v))
    return _product(u, _product(kernel, v))


def _of_product(a, b) -> Array:
    """The spectral norm of A B, which is never formed.

    A y is its left singular vector if y is the dominant eigenvector of B B^T A^T A, which is only [R, R].
    """
    fixed_a, fixed_b = jax.lax.stop_gradient((a, b))
    y = _dominant(_product(_scaled(_product(fixed_b, fixed_b.T)), _scaled(_product(fixed_a.T, fixed_a))))
    u = _direction(_product(fixed_a, y))
    v = _direction(_product(fixed_b.T, _product(fixed_a.T, u)))
    return _product(_product(u, a), _product(b, v))


_product = functools.partial(jnp.matmul, precision="highest")  # otherwise a GPU uses ten bits of each factor


def _divided(x, size):
    """x / size, or x itself (zeros) if the size is 0. A tiny floor would underflow if XLA joins two divisions."""
    return x / jnp.where(size > 0, size, 1.0)


def _scaled(x):
    return _divided(x, jnp.max(jnp.abs(x)))


def _direction(x):
    x = _scaled(x)
    return _divided(x, jnp.linalg.norm(x))


def _dominant(square) -> Array:
    """A multiple of the dominant eigenvector of a matrix without negative eigenvalues: a column of a high power of it."""
    def twice(_, x):
        x = _scaled(x)
        return _product(x, x)

    square = jax.lax.fori_loop(0, SQUARINGS, twice, square)
    return square[:, jnp.argmax(jnp.sum(jnp.abs(_scaled(square)), axis=0))]
