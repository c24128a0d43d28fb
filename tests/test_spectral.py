"""The spectral cap against numpy's singular values."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from irl_jax.models import spectral

SCALE, LAYERS, RANK = 2.0, 3, 4
RNG = np.random.default_rng(0)


def draw(*shape):
    return jnp.asarray(RNG.normal(size=shape), jnp.float32)


def leaves(size):
    """A reward's leaves of about this size, layers of unlike size among them."""
    layer_sizes = jnp.array([0.1, 1, 4])[:, None, None]
    pair = lambda fan_in, fan_out: {"a": draw(LAYERS, fan_in, RANK), "b": draw(LAYERS, RANK, fan_out) * layer_sizes}
    tree = {"adapter": {"blocks": {"attention": {"q": pair(24, 16)}, "mlp": {"up": pair(24, 48), "down": pair(48, 24)}}},
            "head": {"hidden": {"kernel": draw(24, 40), "bias": draw(40)}, "kernel": draw(40, 1), "bias": draw(1)}}  # fmt: skip
    return jax.tree.map(lambda x: x * size, tree)


def matrices(leaves):
    """Every matrix that is capped."""
    pairs = [pair for group in leaves["adapter"]["blocks"].values() for pair in group.values()] if "adapter" in leaves else []
    products = [SCALE * np.asarray(pair["a"], np.float64)[layer] @ pair["b"][layer] for pair in pairs for layer in range(LAYERS)]
    head = leaves["head"]
    return [*products, np.asarray(head["kernel"]), *([np.asarray(head["hidden"]["kernel"])] if "hidden" in head else [])]


def norms(leaves):
    return np.array([np.linalg.svd(matrix, compute_uv=False)[0] for matrix in matrices(leaves)])


@pytest.mark.parametrize("shape", [(64, 64), (512, 64), (16, 40), (30, 1), (1, 30)])
def test_the_largest_singular_value_is_numpys(shape):
    for size in (1e-6, 1.0, 1e6):
        kernel = draw(*shape) * size
        want = np.linalg.svd(np.asarray(kernel), compute_uv=False)[0]
        np.testing.assert_allclose(spectral.largest_singular_value(kernel), want, rtol=1e-4)


def test_singular_values_that_lie_close_together_do_not_hide_the_largest():
    """A plain power method of a few steps stops far below the first of 64 nearly equal ones."""
    left, right = (np.linalg.qr(RNG.normal(size=(64, 64)))[0] for _ in range(2))
    kernel = jnp.asarray(left @ np.diag(np.linspace(0.95, 1.0, 64)) @ right, jnp.float32)
    np.testing.assert_allclose(spectral.largest_singular_value(kernel), 1.0, rtol=1e-3)


@pytest.mark.parametrize("limit", [0.05, 1.0, 20.0])
def test_the_cap_holds_and_leaves_small_ones_alone(limit):
    before = leaves(1.0)
    after = jax.jit(lambda x: spectral.cap(x, limit, SCALE))(before)
    small, big = norms(before) < 0.999 * limit, norms(before) > limit
    assert np.all(norms(after) <= limit * (1 + 1e-3))
    np.testing.assert_allclose(norms(after)[big], limit, rtol=1e-3)  # and no smaller than that
    assert big.any() or limit == 20.0 and small.any()
    for old, new, is_small in zip(matrices(before), matrices(after), small, strict=True):
        if is_small:
            np.testing.assert_array_equal(old, new)
        else:
            np.testing.assert_allclose(new, old * (limit / np.linalg.svd(old, compute_uv=False)[0]), rtol=2e-3, atol=1e-5)  # only scaled
    np.testing.assert_array_equal(after["head"]["bias"], before["head"]["bias"])


def test_below_the_limit_nothing_changes_at_all():
    before = leaves(0.01)
    jax.tree.map(np.testing.assert_array_equal, spectral.cap(before, 5.0, SCALE), before)


def test_a_whole_trunk_is_left_alone_and_its_head_capped():
    before = {"trunk": {"embed": {"tokens": draw(9, 8) * 100}}, "head": {"kernel": draw(8, 1) * 100, "bias": draw(1)}}
    after = spectral.cap(before, 0.5, SCALE)
    np.testing.assert_array_equal(after["trunk"]["embed"]["tokens"], before["trunk"]["embed"]["tokens"])
    np.testing.assert_allclose(np.linalg.norm(after["head"]["kernel"]), 0.5, rtol=1e-5)


def test_zeros_stay_finite_in_value_and_gradient():
    zeros = jax.tree.map(jnp.zeros_like, leaves(1.0))
    fresh = {**zeros, "adapter": jax.tree_util.tree_map_with_path(  # A drawn and B zero, as an adapter begins
        lambda path, x: draw(*x.shape) if path[-1].key == "a" else x, zeros["adapter"])}
    for tree in (zeros, fresh):
        total = lambda x: sum(leaf.sum() for leaf in jax.tree.leaves(spectral.cap(x, 0.1, SCALE)))
        jax.tree.map(np.testing.assert_array_equal, jax.jit(lambda x: spectral.cap(x, 0.1, SCALE))(tree), tree)  # XLA joins divisions
        assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(jax.jit(jax.grad(total))(tree)))


def test_the_gradient_is_that_of_the_true_norm():
    """With the singular vectors fixed it is still the derivative of the scaled kernel: they move to first order only."""
    kernel, direction, weights = draw(12, 7), draw(12, 7), draw(12, 7)
    capped = lambda kernel: spectral.cap({"head": {"kernel": kernel, "bias": jnp.zeros(1)}}, 0.5, SCALE)["head"]["kernel"]
    got = jnp.sum(jax.grad(lambda kernel: jnp.sum(weights * capped(kernel)))(kernel) * direction)

    def exact(step):
        moved = np.asarray(kernel, np.float64) + step * np.asarray(direction, np.float64)
        return np.sum(np.asarray(weights) * moved / (np.linalg.svd(moved, compute_uv=False)[0] / 0.5))

    np.testing.assert_allclose(got, (exact(1e-5) - exact(-1e-5)) / 2e-5, rtol=1e-3)


@pytest.mark.parametrize("shape", [(12, 7), (7, 12), (9, 1)])
def test_the_largest_singular_value_has_the_gradient_u_v(shape):
    kernel = draw(*shape)
    u, _, v = np.linalg.svd(np.asarray(kernel, np.float64), full_matrices=False)
    np.testing.assert_allclose(jax.grad(spectral.largest_singular_value)(kernel), np.outer(u[:, 0], v[0]), atol=1e-4)


@pytest.mark.parametrize("rank", [1, 4])
def test_an_adapters_cap_is_differentiated_through_both_of_its_matrices(rank):
    """Layers above the limit and below it at once; only B is scaled, but by a norm that A has a part in."""
    pair = {"a": draw(2, 12, rank), "b": draw(2, rank, 9) * jnp.array([1.0, 1e-3])[:, None, None]}
    direction, weights = jax.tree.map(lambda x: draw(*x.shape), pair), jax.tree.map(lambda x: draw(*x.shape), pair)
    head = {"kernel": draw(3, 1), "bias": draw(1)}

    def total(pair):
        capped = spectral.cap({"adapter": {"blocks": {"mlp": {"up": pair}}}, "head": head}, 0.5, SCALE)["adapter"]["blocks"]["mlp"]["up"]
        return sum(jnp.vdot(weights[name], capped[name]) for name in "ab")

    gradient = jax.grad(total)(pair)
    got = sum(float(jnp.vdot(gradient[name], direction[name])) for name in "ab")

    def exact(step):
        a, b = (np.asarray(pair[name], np.float64) + step * np.asarray(direction[name], np.float64) for name in "ab")
        sigma = np.array([SCALE * np.linalg.svd(a[layer] @ b[layer], compute_uv=False)[0] for layer in range(2)])
        scaled = b / np.maximum(1.0, sigma / 0.5)[:, None, None]
        return np.sum(np.asarray(weights["a"]) * a) + np.sum(np.asarray(weights["b"]) * scaled)

    np.testing.assert_allclose(got, (exact(1e-6) - exact(-1e-6)) / 2e-6, rtol=1e-3)
