"""Global orthogonal regularisation: the embeddings of different texts spread over the sphere."""

import jax
import jax.numpy as jnp

from jaxemb.checks import non_negative
from jaxemb.losses.program import one_program
from jaxemb.nn.similarity import unit


@one_program(mean_weight=non_negative, second_moment_weight=non_negative)
def orthogonal_regularization(
    *columns: jax.Array, mean_weight: float = 1.0, second_moment_weight: float = 1.0
) -> jax.Array:
    """Pulls the cosines of different texts towards those of random directions, of mean 0 and mean square 1/D:

        L = mean over columns of   mean_weight M1^2 + second_moment_weight max(0, M2 - 1/D)
        M1 = mean_{i != j} cos(x_i, x_j),   M2 = mean_{i != j} cos(x_i, x_j)^2

    With unit vectors u, the sums over pairs are `|sum_i u_i|^2` and `|sum_i u_i u_i^T|^2` less the terms i = j: no
    `[N, N]` matrix is made, and memory is O(D^2).

    Args:
      columns: embeddings of the texts of each column, such as queries and documents, `[N, D]` each.
      mean_weight, second_moment_weight: >= 0; how much each term counts.

    Returns:
      f32 `[N]`. L belongs to the whole batch, so every example gets it: the mean is the sum of the two values of
      sentence-transformers' GlobalOrthogonalRegularizationLoss. To be added to another loss.

    Raises:
      ValueError: for shapes that do not fit or a negative weight.

    References:
      Zhang et al. 2017, https://arxiv.org/abs/1708.06320.
    """
    if not columns or any(x.ndim != 2 or x.shape[0] != columns[0].shape[0] for x in columns):
        raise ValueError(f"columns must be one or more [N, D] of the same N; got {[x.shape for x in columns]}")
    terms = [_moments(x) for x in columns]
    loss = jnp.mean(jnp.stack([mean_weight * first + second_moment_weight * second for first, second in terms]))
    return jnp.full(columns[0].shape[:1], loss)


def _moments(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """`M1^2` and `max(0, M2 - 1/D)` of one column."""
    n, dim = x.shape
    u = unit(x)
    squares = jnp.sum(jnp.square(u), axis=1)  # 1, or 0 for a zero vector
    second = jnp.matmul(u.T, u, precision=jax.lax.Precision.HIGHEST)
    pairs = max(n * (n - 1), 1)
    mean = (jnp.sum(jnp.square(u.sum(axis=0))) - squares.sum()) / pairs
    mean_square = (jnp.sum(jnp.square(second)) - jnp.sum(jnp.square(squares))) / pairs
    return jnp.square(mean), jax.nn.relu(mean_square - 1.0 / dim)
