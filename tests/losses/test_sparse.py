import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from compiled import grad, value_and_grad

from jaxemb.losses import csr_reconstruction, flops, flops_ramp, k_sparse, normalized_mse


def test_flops_worked_example():
    losses = flops(np.array([[1.0, 0.0, 2.0], [3.0, 0.0, 0.0]]))
    np.testing.assert_allclose(losses, [5.0, 5.0])


def test_flops_of_several_texts_per_example_is_that_of_all_texts():
    activations = np.random.default_rng(0).random((4, 3, 6), np.float32)
    losses = flops(activations)
    assert losses.shape == (4,)
    np.testing.assert_allclose(losses, flops(activations.reshape(12, 6))[:4], rtol=1e-6)


def test_texts_at_the_threshold_count_in_the_mean_alone():
    activations = np.array([[1.0, 0.0, 2.0], [3.0, 0.0, 0.0]])
    value, gradient = value_and_grad(lambda a: flops(a, threshold=1).mean())(activations)
    np.testing.assert_allclose(value, 0.5**2 + 1.0**2)
    np.testing.assert_array_equal(gradient[1], 0.0)
    assert np.all(np.asarray(gradient)[0, [0, 2]] > 0)


def test_flops_prefers_even_use_of_the_vocabulary():
    even, uneven = np.eye(4), np.eye(4)[[0] * 4]
    assert flops(even)[0] < flops(uneven)[0]


def test_the_ramp_is_quadratic_over_the_first_third():
    ramp = flops_ramp(0.6, 90)
    np.testing.assert_allclose([ramp(step) for step in (0, 15, 30, 31, 90)], [0.0, 0.15, 0.6, 0.6, 0.6], rtol=1e-6)
    np.testing.assert_allclose(jax.jit(ramp)(jnp.int32(3)), 0.006, rtol=1e-6)
    assert flops_ramp(1.0, 1)(1) == 1.0


def test_k_sparse_keeps_the_largest_positive_entries():
    latents = np.array([[3.0, -1.0, 2.0, 1.0], [-4.0, -1.0, -3.0, 5.0]])
    np.testing.assert_array_equal(k_sparse(latents, 2), [[3.0, 0.0, 2.0, 0.0], [0.0, 0.0, 0.0, 5.0]])
    gradient = grad(lambda x: k_sparse(x, 2).sum())(latents)
    np.testing.assert_array_equal(gradient, [[1, 0, 1, 0], [0, 0, 0, 1]])


def test_normalized_mse_of_the_mean_is_one():
    targets = np.random.default_rng(0).standard_normal((8, 5), np.float32)
    mean = np.broadcast_to(targets.mean(axis=0), targets.shape)
    np.testing.assert_allclose(normalized_mse(mean, targets).mean(), 1.0, rtol=1e-5)


def test_equal_targets_have_finite_gradients():
    gradients = grad(lambda y, t: normalized_mse(y, t).mean(), argnums=(0, 1))(np.ones((3, 4)), np.full((3, 4), 0.1))
    assert all(np.isfinite(gradient).all() for gradient in gradients)


def test_csr_by_hand():
    x, from_k, from_4k = np.array([[2.0, 0.0]]), np.array([[1.0, 0.0]]), np.array([[2.0, 2.0]])
    np.testing.assert_allclose(csr_reconstruction(x, from_k, from_4k), [0.5 + 2.0 / 8])
    # One text: the divisor of the auxiliary term is 1. The residual is (1, 0).
    with_dead = csr_reconstruction(x, from_k, from_4k, np.array([[0.0, 0.0]]), aux_weight=0.1)
    np.testing.assert_allclose(with_dead, [0.75 + 0.1 * 0.5], rtol=1e-6)
    gradient = grad(lambda y: csr_reconstruction(x, y, from_4k, np.ones((1, 2))).sum())(from_k)
    np.testing.assert_allclose(gradient, from_k - x)  # not through the residual


def test_a_sparse_autoencoder_learns_to_reconstruct():
    """Texts that are sums of two of twelve directions can be had from two latents each."""
    rng = np.random.default_rng(0)
    directions = np.linalg.qr(rng.standard_normal((16, 12)))[0].T.astype(np.float32)
    x = np.stack([directions[rng.choice(12, 2, replace=False)].sum(axis=0) for _ in range(200)])
    optimizer = optax.adam(1e-2)

    def loss(encoder):
        latents = x @ encoder
        dead = jnp.where(k_sparse(latents, 2).max(axis=0) == 0, latents, 0.0)
        from_k, from_4k, from_dead = (k_sparse(z, k) @ encoder.T for z, k in ((latents, 2), (latents, 8), (dead, 4)))
        return csr_reconstruction(x, from_k, from_4k, from_dead).mean(), jnp.mean(jnp.square(x - from_k))

    def step(state, _):
        encoder, opt_state = state
        (_, error), gradient = jax.value_and_grad(loss, has_aux=True)(encoder)
        updates, opt_state = optimizer.update(gradient, opt_state)
        return (encoder + updates, opt_state), error

    encoder = 0.3 * jax.random.normal(jax.random.key(0), (16, 24))
    _, errors = jax.jit(lambda e: jax.lax.scan(step, (e, optimizer.init(e)), length=250))(encoder)
    assert errors[0] > 0.05 and errors[-1] < 1e-3


ONES = np.ones((2, 3))


@pytest.mark.parametrize(
    ("message", "call"),
    [
        (r"activations must be \[N, V\] or \[N, K, V\]; got \(3,\)", lambda: flops(ONES[0])),
        (r"threshold must be >= 0 or None; got -1", lambda: flops(ONES, threshold=-1)),
        (r"peak must be >= 0; got -1", lambda: flops_ramp(-1, 10)),
        (r"total_steps must be at least 1; got 0", lambda: flops_ramp(1.0, 0)),
        (r"fraction must be in \(0, 1\]; got 0", lambda: flops_ramp(1.0, 10, fraction=0)),
        (r"k must be in 1..3; got 4", lambda: k_sparse(ONES, 4)),
        (
            r"from_4k must be \[N, D\] with N = 2, D = 3 as in embeddings; got \(2, 2\)",
            lambda: csr_reconstruction(ONES, ONES, ONES[:, 1:]),
        ),
        (r"reconstructions must be \[N, D\]; got \(3,\)", lambda: normalized_mse(ONES[0], ONES[0])),
        (r"aux_weight must be >= 0; got -1", lambda: csr_reconstruction(ONES, ONES, ONES, aux_weight=-1)),
    ],
)
def test_bad_arguments_are_named(message, call):
    with pytest.raises(ValueError, match=message):
        call()
