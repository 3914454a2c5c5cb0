"""Distillation: a student's scores or embeddings follow those of a teacher, which gets no gradient.

What reads scores alone (`margin_mse_scores`, `distill_kl_scores`) serves every kind of student: dense, sparse, late
interaction, or a reranker.
"""

from typing import Literal

import jax
import jax.numpy as jnp
import optax
from jax.tree_util import Partial

from jaxemb.checks import positive, shapes
from jaxemb.losses.masks import Mask
from jaxemb.losses.program import one_program
from jaxemb.losses.records import Tile, make_records
from jaxemb.losses.reductions import LOG_SUM_EXP, TILE, top
from jaxemb.losses.soft_targets import Targets, soft_target_contrastive
from jaxemb.nn.similarity import Similarity, cosine, dot, paired, similarity_function, unit


@one_program()
def margin_mse(
    queries: jax.Array,
    documents: jax.Array,
    negatives: jax.Array,
    teacher_scores: jax.Array,
    *,
    similarity: str | Similarity = "dot",
) -> jax.Array:
    """`margin_mse_scores` of `s_i = (s(q_i, d_i), s(q_i, n_i1), ..., s(q_i, n_iK))`.

    Args:
      queries, documents: `[N, D]`.
      negatives: `[N, K, D]` (or `[N, D]` for K = 1).
      teacher_scores: `[N, 1 + K]`, document first; or its margins, `[N, K]` (or `[N]` for K = 1).
      similarity: "dot", "cosine", "euclidean" (negative distance), or a function
        `[..., N, D], [..., M, D] -> [..., N, M]`.

    Returns:
      f32 `[N]`, whose mean is the value of sentence-transformers' MarginMSELoss.

    Raises:
      ValueError: for shapes that do not fit or an unknown similarity.
    """
    return margin_mse_scores(_candidate_scores(queries, documents, negatives, similarity), teacher_scores)


@one_program()
def margin_mse_scores(student_scores: jax.Array, teacher_scores: jax.Array) -> jax.Array:
    """The squared error of the student's margins between a positive (column 0) and its negatives:

        loss_i = mean_k ((s_i0 - s_ik) - (t_i0 - t_ik))^2

    Margins, unlike scores, do not ask the student for the teacher's range.

    >>> margin_mse_scores(jnp.array([[3.0, 1.0]]), jnp.array([[5.0, 2.0]]))  # ((3 - 1) - (5 - 2))^2
    Array([1.], dtype=float32)

    Args:
      student_scores: s, `[N, 1 + K]`.
      teacher_scores: t, `[N, 1 + K]`; or its margins `t_i0 - t_ik`, `[N, K]` (or `[N]` for K = 1).

    Returns:
      f32 `[N]`.

    Raises:
      ValueError: for shapes that do not fit.

    References:
      Hofstätter et al. 2020, https://arxiv.org/abs/2010.02666.
    """
    n, k = _check_scores(student_scores, at_least=2)
    teacher = jax.lax.stop_gradient(jnp.asarray(teacher_scores, jnp.float32))
    if teacher.shape == (n, k + 1):
        teacher = teacher[:, :1] - teacher[:, 1:]
    elif teacher.shape == (n,):
        teacher = teacher[:, None]
    if teacher.shape != (n, k):
        raise ValueError(
            f"teacher_scores must be [N, 1 + K] = {(n, k + 1)}, or margins [N, K] = {(n, k)}; "
            f"got {jnp.shape(teacher_scores)}"
        )
    return jnp.square(student_scores[:, :1] - student_scores[:, 1:] - teacher).mean(axis=1)


@one_program(student_temperature=positive, teacher_temperature=positive)
def distill_kl(
    queries: jax.Array,
    documents: jax.Array,
    negatives: jax.Array,
    teacher_scores: jax.Array,
    *,
    student_temperature: float | jax.Array = 1.0,
    teacher_temperature: float = 1.0,
    similarity: str | Similarity = "dot",
) -> jax.Array:
    """`distill_kl_scores` of `s_i = (s(q_i, d_i), s(q_i, n_i1), ..., s(q_i, n_iK))`.

    Args:
      queries, documents: `[N, D]`.
      negatives: `[N, K, D]` (or `[N, D]` for K = 1).
      teacher_scores: `[N, 1 + K]`, document first.
      student_temperature, teacher_temperature: > 0.
      similarity: "dot", "cosine", "euclidean" (negative distance), or a function
        `[..., N, D], [..., M, D] -> [..., N, M]`.

    Returns:
      f32 `[N]`, whose mean is the value of sentence-transformers' DistillKLDivLoss.

    Raises:
      ValueError: for shapes that do not fit, a temperature <= 0 or an unknown similarity.
    """
    return distill_kl_scores(
        _candidate_scores(queries, documents, negatives, similarity),
        teacher_scores,
        student_temperature=student_temperature,
        teacher_temperature=teacher_temperature,
    )


@one_program(student_temperature=positive, teacher_temperature=positive)
def distill_kl_scores(
    student_scores: jax.Array,
    teacher_scores: jax.Array,
    *,
    student_temperature: float | jax.Array = 1.0,
    teacher_temperature: float = 1.0,
) -> jax.Array:
    """The divergence of the student's distribution over C candidates from the teacher's:

        loss_i = T_s^2 KL(softmax(t_i / T_t) || softmax(s_i / T_s))

    The factor keeps gradients of one size for all T_s. Less the teacher's entropy, which has no gradient, this is the
    cross-entropy that FlagEmbedding calls `kl_div` (T = 1).

    Args:
      student_scores: s, `[N, C]`, C >= 2.
      teacher_scores: t, `[N, C]`.
      student_temperature, teacher_temperature: T_s and T_t, > 0.

    Returns:
      f32 `[N]`.

    Raises:
      ValueError: for shapes that do not fit, fewer than two candidates or a temperature <= 0.

    References:
      Hinton et al. 2015, https://arxiv.org/abs/1503.02531, section 2.
    """
    n, k = _check_scores(student_scores, at_least=2)
    _check_teacher(teacher_scores, (n, k + 1))
    targets = _teacher_distribution(teacher_scores, teacher_temperature)
    log_predictions = jax.nn.log_softmax(jnp.asarray(student_scores, jnp.float32) / student_temperature, axis=1)
    return jnp.square(student_temperature) * optax.losses.kl_divergence(log_predictions, targets)


@one_program(temperature=positive)
def m3_kd(
    queries: jax.Array,
    documents: jax.Array,
    negatives: jax.Array,
    teacher_scores: jax.Array,
    *,
    temperature: float | jax.Array = 0.02,
    similarity: str | Similarity = "cosine",
    mask: Mask | jax.Array | None = None,
    tile: int = TILE,
) -> jax.Array:
    """BGE-M3's distillation with in-batch negatives: each own candidate is a positive, as much as the teacher says.

    With `z_ic = s(q_i, c) / temperature` over the candidates of `info_nce`, and own candidates g = 0 (the document)
    to K (the hard negatives),

        loss_i = sum_g softmax(teacher_i)_g CE_ig,
        CE_ig = log(sum_{c of other records} exp(z_ic) + sum_{h >= g} exp(z_ih)) - z_ig

    so that an own candidate is no negative of those after it.

    Args:
      queries, documents: `[N, D]`.
      negatives: `[N, K, D]` (or `[N, D]` for K = 1), best first.
      teacher_scores: `[N, 1 + K]`, document first.
      temperature: > 0.
      similarity, mask, tile: as in `info_nce`; own candidates are never masked.

    Returns:
      f32 `[N]`, whose mean is the value of FlagEmbedding's `m3_kd_loss`.

    Raises:
      ValueError: for shapes that do not fit, a temperature <= 0 or an unknown similarity.

    References:
      FlagEmbedding, `AbsEmbedderModel.distill_loss`; Chen et al. 2024, https://arxiv.org/abs/2402.03216.
    """
    negatives = _check_triplets(queries, documents, negatives)
    n, k, _ = negatives.shape
    _check_teacher(teacher_scores, (n, k + 1))
    records = make_records(queries, documents, negatives, similarity=similarity, mask=mask)
    own = records.similarity(records.queries[:, None], records.candidates)[:, 0]
    own = (own - records.positive[:, None]) / temperature
    (other,) = records.reduce(Partial(_logits_of_others, 1 / jnp.float32(temperature)), (LOG_SUM_EXP,), tile=tile)
    entropies = jnp.logaddexp(other[:, None], jax.lax.cumlogsumexp(own, axis=1, reverse=True)) - own
    return jnp.sum(_teacher_distribution(teacher_scores, 1.0) * entropies, axis=1)


def _logits_of_others(inverse_temperature, tile: Tile):
    logits = (tile.similarity - tile.positive[:, None]) * inverse_temperature
    return (jnp.where(tile.removed | tile.own, -jnp.inf, logits),)


@one_program()
def embed_distill(
    student: jax.Array, teacher: jax.Array, *, metric: Literal["cosine", "mse", "l2"] = "cosine"
) -> jax.Array:
    """The distance of the student's embedding x from the teacher's y:

        cosine  1 - cos(x, y)
        mse     |x - y|^2 / D
        l2      |x - y|

    Where the dimensions differ, pass the student through a trained projection before.

    Args:
      student: `[N, D]`, or C columns `[N, C, D]`.
      teacher: of the same shape; or one embedding for all columns, `[N, D]`.
      metric: which distance.

    Returns:
      f32 `[N]`, the mean over columns, whose mean is the value of sentence-transformers' EmbedDistillLoss ("mse": of
      MSELoss).

    Raises:
      ValueError: for shapes that do not fit or an unknown metric.

    References:
      Reimers & Gurevych 2020 (mse), https://arxiv.org/abs/2004.09813; Kim et al. 2023 (l2),
      https://arxiv.org/abs/2301.12005.
    """
    if metric not in ("cosine", "mse", "l2"):
        raise ValueError(f"metric must be 'cosine', 'mse' or 'l2'; got {metric!r}")
    shape = student.shape
    if student.ndim not in (2, 3) or teacher.shape not in (shape, (shape[0], shape[-1])):
        raise ValueError(
            f"student must be [N, D] or [N, C, D], and teacher the same or [N, D]; got {shape} and {teacher.shape}"
        )
    student = jnp.asarray(student, jnp.float32).reshape(shape[0], -1, shape[-1])
    teacher = jax.lax.stop_gradient(jnp.asarray(teacher, jnp.float32)).reshape(shape[0], -1, shape[-1])
    teacher = jnp.broadcast_to(teacher, student.shape)
    if metric == "cosine":
        distances = 1.0 - jax.vmap(lambda x, y: paired(cosine, x, y))(student, teacher)
    elif metric == "mse":
        distances = jnp.square(student - teacher).mean(axis=-1)
    else:
        distances = optax.safe_norm(student - teacher, 0.0, axis=-1)
    return distances.mean(axis=1)


@one_program(
    shapes(queries="N D", documents="N D", teacher_queries="N D_t", teacher_documents="N D_t"),
    temperature=positive,
    teacher_temperature=positive,
)
def clip_distill(
    queries: jax.Array,
    documents: jax.Array,
    teacher_queries: jax.Array,
    teacher_documents: jax.Array,
    *,
    temperature: float | jax.Array,
    teacher_temperature: float | jax.Array,
    tile: int = TILE,
) -> jax.Array:
    """The cross-entropy of the student's in-batch distributions against the teacher's, in both directions:

        loss_i = (CE(softmax_j(t_ij), softmax_j(z_ij)) + CE(softmax_j(t_ji), softmax_j(z_ji))) / 2

    with `z_ij = cos(q_i, d_j) / temperature`, and t of the teacher's embeddings and temperature. To be added to
    `symmetric_info_nce`.

    Args:
      queries, documents: such as images and their captions, `[N, D]`.
      teacher_queries, teacher_documents: the teacher's embeddings of the same, `[N, D_t]`.
      temperature: > 0; may be a trained scalar.
      teacher_temperature: > 0; the one that the teacher was trained with.
      tile: as in `info_nce`.

    Returns:
      f32 `[N]`, whose mean is the `distill_loss` of open_clip's DistillClipLoss.

    Raises:
      ValueError: for shapes that do not fit or a temperature <= 0.
    """
    one_way = lambda a, b, teacher_a, teacher_b: soft_target_contrastive(
        a, b, _in_batch_targets(teacher_a, teacher_b, teacher_temperature, tile), temperature=temperature, tile=tile
    )
    forwards = one_way(queries, documents, teacher_queries, teacher_documents)
    return 0.5 * (forwards + one_way(documents, queries, teacher_documents, teacher_queries))


def _in_batch_targets(queries, documents, temperature, tile) -> Targets:
    """`softmax_j(cos(q_i, d_j) / temperature)`, but for the divisor; the largest weight of each row is 1."""
    (largest,) = make_records(queries, documents).reduce(_similarities, (top(1),), tile=tile)
    inverse = jnp.full(len(queries), 1 / jnp.float32(temperature))  # a fact of each row, as a weight sees no others
    return Targets(_exponential, (unit(queries), largest[:, 0], inverse), unit(documents))


def _similarities(tile: Tile):
    return (tile.similarity,)


def _exponential(row_facts, column_facts) -> jax.Array:
    queries, largest, inverse_temperature = row_facts
    return jnp.exp((dot(queries, column_facts) - largest[:, None]) * inverse_temperature[:, None])


def _candidate_scores(queries, documents, negatives, similarity) -> jax.Array:
    """Scores of each query with its own document and hard negatives, `[N, 1 + K]`."""
    negatives = _check_triplets(queries, documents, negatives)
    candidates = jnp.concatenate([documents[:, None, :], negatives], axis=1)
    return similarity_function(similarity)(queries[:, None, :], candidates)[:, 0, :]


def _teacher_distribution(scores, temperature) -> jax.Array:
    return jax.lax.stop_gradient(jax.nn.softmax(jnp.asarray(scores, jnp.float32) / temperature, axis=1))


def _check_triplets(queries, documents, negatives) -> jax.Array:
    """The negatives as `[N, K, D]`."""
    shapes = (queries.shape, documents.shape, negatives.shape)
    negatives = negatives[:, None, :] if negatives.ndim == 2 else negatives
    fits = queries.ndim == 2 and documents.shape == queries.shape and negatives.ndim == 3
    if not fits or negatives.shape[::2] != queries.shape:
        raise ValueError(f"queries and documents must be [N, D], negatives [N, K, D]; got {shapes}")
    return negatives


def _check_scores(scores, *, at_least: int) -> tuple[int, int]:
    """N and K of `[N, 1 + K]`."""
    if scores.ndim != 2 or scores.shape[1] < at_least:
        raise ValueError(f"student_scores must be [N, C] of at least {at_least} candidates; got {scores.shape}")
    return scores.shape[0], scores.shape[1] - 1


def _check_teacher(scores, shape: tuple[int, int]) -> None:
    if jnp.shape(scores) != shape:
        raise ValueError(f"teacher_scores must be [N, 1 + K] = {shape}; got {jnp.shape(scores)}")
