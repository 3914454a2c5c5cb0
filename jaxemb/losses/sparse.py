"""Losses that make embeddings sparse, over a vocabulary (SPLADE) or over the latents of an autoencoder (CSR).

SPLADE's loss of vocabulary weights (`jaxemb.pooling.splade`), by an optimiser step's number:

    document_weight = flops_ramp(3e-5, total_steps)
    query_weight = flops_ramp(5e-5, total_steps)
    info_nce(q, d, negatives, similarity="dot", temperature=1.0)
        + document_weight(step) * flops(documents) + query_weight(step) * flops(q)

CSR's is `csr_reconstruction(...)` plus a contrastive loss of the sparse codes.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxemb.checks import checked, non_negative, shapes
from jaxemb.losses.program import one_program


@one_program(shapes(activations="N V | N K V"))
def flops(activations: jax.Array, *, threshold: int | None = None) -> jax.Array:
    """The FLOPS regulariser: the expected number of multiplications of a search, smoothed:

        L = sum_v (mean_i a_iv)^2

    Unlike an L1 penalty it evens out how often each dimension is used, which keeps posting lists short.

    >>> flops(jnp.array([[1.0, 0.0], [3.0, 0.0]]))  # the mean activations are 2 and 0
    Array([4., 4.], dtype=float32)

    Args:
      activations: weights >= 0, `[N, V]`; or of K texts per example, `[N, K, V]` (the mean is over all of them).
      threshold: texts with this many non-zero weights or fewer are not made sparser: they add nothing to the sum, but
        count in the mean. None regularises all.

    Returns:
      f32 `[N]`. L belongs to the whole batch, so every example gets it: the mean is L, and its gradient L's. The value
      of sentence-transformers' FlopsLoss.

    Raises:
      ValueError: for another rank or a negative threshold.

    References:
      Paria et al. 2020, https://arxiv.org/abs/2004.05665; Formal et al. 2021 (SPLADE),
      https://arxiv.org/abs/2107.05720.
    """
    if threshold is not None and threshold < 0:
        raise ValueError(f"threshold must be >= 0 or None; got {threshold}")
    texts = _f32(activations).reshape(-1, activations.shape[-1])
    if threshold is not None:
        texts = jnp.where(jnp.count_nonzero(texts, axis=1, keepdims=True) > threshold, texts, 0.0)
    loss = jnp.sum(jnp.square(jnp.mean(texts, axis=0)))
    return jnp.full(activations.shape[:1], loss)


@checked()
def flops_ramp(peak: float, total_steps: int, *, fraction: float = 1 / 3) -> Callable[[jax.Array | int], jax.Array]:
    """The weight of `flops` over training: `peak min(step / (fraction total_steps), 1)^2`.

    Ranking comes first: with the whole weight from the start, all activations die.

    Args:
      peak: the weight after the ramp, >= 0.
      total_steps: of training.
      fraction: of the steps that the ramp takes, in (0, 1].

    Returns:
      A schedule as in optax: step number to weight.

    Raises:
      ValueError: for arguments outside of their ranges.
    """
    if not peak >= 0:
        raise ValueError(f"peak must be >= 0; got {peak}")
    if total_steps < 1:
        raise ValueError(f"total_steps must be at least 1; got {total_steps}")
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction must be in (0, 1]; got {fraction}")
    steps = max(int(fraction * total_steps), 1)
    return lambda step: peak * jnp.square(jnp.minimum(step / steps, 1.0))


@one_program(shapes(latents="... H"))
def k_sparse(latents: jax.Array, k: int) -> jax.Array:
    """`relu` of the k largest entries of each row, 0 elsewhere: the activation of a k-sparse autoencoder.

    >>> k_sparse(jnp.array([[3.0, -1.0, 2.0, 0.5]]), 2)
    Array([[3., 0., 2., 0.]], dtype=float32)

    Args:
      latents: before the activation, `[..., H]`.
      k: 1..H.

    Returns:
      The code, `[..., H]`; gradients flow through the chosen entries.

    Raises:
      ValueError: for a k outside of 1..H.

    References:
      Makhzani & Frey 2014, https://arxiv.org/abs/1312.5663.
    """
    if not 1 <= k <= latents.shape[-1]:
        raise ValueError(f"k must be in 1..{latents.shape[-1]}; got {k} for latents {latents.shape}")
    values, indices = jax.lax.top_k(latents, k)
    return jnp.put_along_axis(jnp.zeros_like(latents), indices, jax.nn.relu(values), axis=-1, inplace=False)


@one_program(shapes(embeddings="N D", from_k="N D", from_4k="N D", residual_from_dead="N D"), aux_weight=non_negative)
def csr_reconstruction(
    embeddings: jax.Array,
    from_k: jax.Array,
    from_4k: jax.Array,
    residual_from_dead: jax.Array | None = None,
    *,
    aux_weight: float = 0.1,
) -> jax.Array:
    """What a k-sparse autoencoder loses of embeddings x, for contrastive sparse representations:

        loss_i = |x - x_k|^2 / D + |x - x_4k|^2 / (8 D) + aux_weight nmse(e, x - sg(x_k))_i

    with nmse `normalized_mse`. Decoding four times as many latents keeps more of them alive, and the last term revives
    the dead ones, by letting them explain what the others leave.

    Args:
      embeddings: x, of the dense model, `[N, D]`.
      from_k: x_k, decoded from the k largest latents (`k_sparse`), `[N, D]`.
      from_4k: x_4k, decoded from the 4 k largest, `[N, D]`.
      residual_from_dead: e, decoded (without bias) from the largest of the latents that have not been active for long,
        `[N, D]`; None leaves the term out.
      aux_weight: >= 0.

    Returns:
      f32 `[N]`, whose mean is the sum of the terms of sentence-transformers' CSRReconstructionLoss.

    Raises:
      ValueError: for shapes that do not fit or a negative weight.

    References:
      Wen et al. 2025, Beyond Matryoshka, https://arxiv.org/abs/2503.01776; Gao et al. 2024 (the auxiliary term),
      https://arxiv.org/abs/2406.04093.
    """
    error = lambda y: jnp.mean(jnp.square(_f32(embeddings) - _f32(y)), axis=1)
    losses = error(from_k) + error(from_4k) / 8
    if residual_from_dead is None:
        return losses
    residual = _f32(embeddings) - jax.lax.stop_gradient(_f32(from_k))
    return losses + aux_weight * normalized_mse(residual_from_dead, residual)


@one_program(shapes(reconstructions="N D", targets="N D"))
def normalized_mse(reconstructions: jax.Array, targets: jax.Array) -> jax.Array:
    """Squared errors relative to the targets' variance in the batch:

        loss_i = mean_d (y_id - t_id)^2 / mean_jd (t_jd - mean_j t_jd)^2

    1 is what predicting the mean target gives. Where all targets are the same, the divisor is 1.

    Args:
      reconstructions: y, `[N, D]`.
      targets: t, `[N, D]`.

    Returns:
      f32 `[N]`.

    Raises:
      ValueError: for shapes that do not fit.
    """
    reconstructions, targets = _f32(reconstructions), _f32(targets)
    variance = jnp.mean(jnp.square(targets - targets.mean(axis=0)))
    variance = jnp.where((variance == 0) | jnp.all(targets == targets[:1]), 1.0, variance)
    return jnp.mean(jnp.square(reconstructions - targets), axis=1) / variance


def _f32(x: jax.Array) -> jax.Array:
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))
