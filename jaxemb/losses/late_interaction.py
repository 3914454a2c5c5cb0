"""Late interaction: texts as one vector per token, compared token by token (ColBERT, XTR, BGE-M3).

Token vectors are `[N, T, D]` and come with a mask, bool `[N, T]`, of those that count. Similarities are inner products
in f32; give the vectors unit length for cosines. A teacher's scores are distilled by `margin_mse_scores` and
`distill_kl_scores` of `maxsim_candidates`.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from jaxemb.checks import positive, shapes
from jaxemb.losses.masks import Mask, Pairs, dense
from jaxemb.losses.program import one_program
from jaxemb.nn.similarity import dot

_EMPTY = -1e9  # the score of a document without tokens: below every other


@one_program()
def maxsim(
    queries: jax.Array,
    query_mask: jax.Array,
    documents: jax.Array,
    document_mask: jax.Array,
    *,
    mean: bool = False,
    tile: int = 8,
) -> jax.Array:
    """ColBERT's score of every query with every document: each query token's best match, summed:

        s(q, d) = sum_{i in q} max_{j in d} <q_i, d_j>

    Documents are visited a tile at a time, in the gradient as well (which computes similarities once more): memory is
    O(N T_q T_d tile), not N M T_q T_d.

    >>> query, documents = jnp.eye(2)[None], jnp.array([[[1.0, 0.0], [0.6, 0.8]]])
    >>> print(maxsim(query, jnp.ones((1, 2), bool), documents, jnp.ones((1, 2), bool)))  # 1 + 0.8
    [[1.8...]]

    Args:
      queries: `[N, T_q, D]`.
      query_mask: bool `[N, T_q]`.
      documents: `[M, T_d, D]`.
      document_mask: bool `[M, T_d]`.
      mean: MeanMaxSim: divide by the number of the query's tokens. (BGE-M3's score is this with the query's first
        token masked.)
      tile: documents per step.

    Returns:
      f32 `[N, M]`. A document without tokens has -1e9, below every other; a query without tokens has 0.

    Raises:
      ValueError: for shapes that do not fit or a tile < 1.

    References:
      Khattab & Zaharia 2020, https://arxiv.org/abs/2004.12832.
    """
    _check(queries, query_mask, documents, document_mask)
    if tile < 1:
        raise ValueError(f"tile must be at least 1; got {tile}")
    query_mask, document_mask = query_mask.astype(bool), document_mask.astype(bool)

    @jax.checkpoint
    def one_document(inputs) -> jax.Array:
        best = _best_matches(queries, *inputs)
        return jnp.where(inputs[1].any(), jnp.sum(jnp.where(query_mask, best, 0.0), axis=1), _EMPTY)

    scores = jax.lax.map(one_document, (documents, document_mask), batch_size=min(tile, len(documents))).T
    return scores / jnp.maximum(query_mask.sum(axis=1, keepdims=True), 1) if mean else scores


@one_program(shapes(queries="N T D", query_mask="N T", candidates="N K S D", candidate_mask="N K S"))
def maxsim_candidates(
    queries: jax.Array,
    query_mask: jax.Array,
    candidates: jax.Array,
    candidate_mask: jax.Array,
    *,
    mean: bool = False,
    tile: int = 8,
) -> jax.Array:
    """`maxsim` of each query with its own candidates alone.

    Args:
      queries, query_mask: `[N, T_q, D]` and `[N, T_q]`.
      candidates, candidate_mask: `[N, K, T_d, D]` and `[N, K, T_d]`.
      mean, tile: see `maxsim`.

    Returns:
      f32 `[N, K]`.

    Raises:
      ValueError: for shapes that do not fit or a tile < 1.
    """
    one_query = functools.partial(maxsim, mean=mean, tile=tile)
    return jax.vmap(lambda q, q_mask, d, d_mask: one_query(q[None], q_mask[None], d, d_mask)[0])(
        queries, query_mask, candidates, candidate_mask
    )


@one_program()
def xtr(
    queries: jax.Array, query_mask: jax.Array, documents: jax.Array, document_mask: jax.Array, *, k: int = 256
) -> jax.Array:
    """XTR's score of every query with every document: `maxsim` of the tokens that a search would retrieve.

        s(q, d) = sum_{i in A} max_{j in d} <q_i, d_j> / |A|

    with A the query tokens one of whose k nearest tokens, among those of all documents, is in d (0 if there is none).
    Trained so, a model needs no other token vectors than the retrieved ones for its scores. Memory is
    O(N T_q (T_d + k)).

    Args:
      queries, query_mask: `[N, T_q, D]` and `[N, T_q]`.
      documents, document_mask: `[M, T_d, D]` and `[M, T_d]`.
      k: tokens retrieved per query token.

    Returns:
      f32 `[N, M]`; a document without tokens has -1e9.

    Raises:
      ValueError: for shapes that do not fit or a k < 1.

    References:
      Lee et al. 2023, https://arxiv.org/abs/2304.01982.
    """
    _check(queries, query_mask, documents, document_mask)
    if k < 1:
        raise ValueError(f"k must be at least 1; got {k}")
    query_mask, document_mask = query_mask.astype(bool), document_mask.astype(bool)

    def retrieve(nearest, inputs):
        document, present = inputs
        similarities = jnp.where(present, dot(queries, document), -jnp.inf)
        return jax.lax.top_k(jnp.concatenate([nearest, similarities], axis=-1), k)[0], None

    start = jnp.full((*queries.shape[:2], k), -jnp.inf)
    nearest, _ = jax.lax.scan(retrieve, start, (documents, document_mask))
    furthest = jax.lax.stop_gradient(nearest[..., -1])

    @jax.checkpoint
    def one_document(inputs) -> jax.Array:
        best = _best_matches(queries, *inputs)
        aligned = query_mask & ~(best < furthest)  # a NaN is not left out
        score = jnp.sum(jnp.where(aligned, best, 0.0), axis=1) / jnp.maximum(aligned.sum(axis=1), 1)
        return jnp.where(inputs[1].any(), score, _EMPTY)

    return jax.lax.map(one_document, (documents, document_mask)).T


@one_program(shapes(queries="N T D", query_mask="N T", documents="N S D", document_mask="N S"), temperature=positive)
def maxsim_info_nce(
    queries: jax.Array,
    query_mask: jax.Array,
    documents: jax.Array,
    document_mask: jax.Array,
    negatives: jax.Array | None = None,
    negative_mask: jax.Array | None = None,
    *,
    temperature: float | jax.Array = 1.0,
    mean: bool = False,
    mask: Mask | jax.Array | None = None,
    tile: int = 8,
) -> jax.Array:
    """`info_nce` with `maxsim` for the similarity: each query's own document against all others of the batch.

    Args:
      queries, query_mask: `[N, T_q, D]` and `[N, T_q]`.
      documents, document_mask: the positive documents, `[N, T_d, D]` and `[N, T_d]`.
      negatives, negative_mask: hard negatives, `[N, K, T_n, D]` and `[N, K, T_n]`.
      temperature: > 0; the inverse of sentence-transformers' `scale`.
      mean, tile: see `maxsim`.
      mask: false negatives, such as `masks.duplicates(...)`; or bool `[N, N (1 + K)]`, columns as in `info_nce` (all
        documents, then the negatives slot by slot), False where candidate c is no negative of query i. The own document
        is never masked.

    Returns:
      f32 `[N]`, whose mean is the value of sentence-transformers' MultiVectorMultipleNegativesRankingLoss.

    Raises:
      ValueError: for shapes that do not fit or a temperature <= 0.
    """
    score = functools.partial(maxsim, queries, query_mask, mean=mean, tile=tile)
    by_slot = lambda x: x.swapaxes(0, 1).reshape(-1, *x.shape[2:])
    scores, n, slots = score(documents, document_mask), queries.shape[0], 1
    if negatives is not None:
        if negatives.ndim != 4 or negatives.shape[0] != n or negative_mask is None:
            raise ValueError(f"negatives must be [N, K, T, D] with N = {n}, and have a mask; got {negatives.shape}")
        scores = jnp.concatenate([scores, score(by_slot(negatives), by_slot(negative_mask))], axis=1)
        slots += negatives.shape[1]
    if mask is None:
        return _own_against_all(scores / temperature)
    if not isinstance(mask, Mask):
        if mask.shape != scores.shape:
            raise ValueError(f"mask must be [N, N (1 + K)] = {scores.shape}; got {mask.shape}")
        mask = dense(mask)
    mask.check(n, slots)
    scores = mask.added_to(scores)
    constant = jax.lax.stop_gradient(scores)
    pairs = Pairs(mask.record, mask.query, jax.tree.map(by_slot, mask.document), constant, jnp.diagonal(constant))
    return _own_against_all(scores / temperature, mask.rule(pairs))


@one_program()
def m3_unified(
    dense: jax.Array,
    sparse: jax.Array,
    multi_vector: jax.Array,
    *,
    self_distill: bool = True,
    ensemble_weights: Sequence[float] = (1.0, 0.3, 1.0),
    loss_weights: Sequence[float] = (1.0, 0.1, 1.0),
) -> jax.Array:
    """BGE-M3's loss of a model with a dense, a sparse and a multi-vector head, which learn from their ensemble.

    With scores z_h of the heads h, their ensemble `z_e = z_dense + 0.3 z_sparse + z_multi`, CE the cross-entropy of
    the own document, and H that of the ensemble's distribution `p = sg(softmax(z_e))`:

        L = (CE(z_e) + CE(z_dense) + 0.1 CE(z_sparse) + CE(z_multi)) / 4
        D = (H(p, z_dense) + 0.1 H(p, z_sparse) + H(p, z_multi)) / 3
        loss = (L + D) / 2 with self-distillation, else L

    Args:
      dense, sparse, multi_vector: scores over their temperature, `[N, M]`, the own document of query i in column i, as
        in `info_nce`.
      self_distill: FlagEmbedding turns it on after a number of steps, when the ensemble has become good.
      ensemble_weights: of the heads in the ensemble.
      loss_weights: of the heads' losses.

    Returns:
      f32 `[N]`, whose mean is the loss of FlagEmbedding's unified fine-tuning.

    Raises:
      ValueError: for shapes that do not fit, or not three weights.

    References:
      Chen et al. 2024, https://arxiv.org/abs/2402.03216; FlagEmbedding, EncoderOnlyEmbedderM3Model.
    """
    if len({dense.shape, sparse.shape, multi_vector.shape}) != 1 or dense.ndim != 2 or dense.shape[1] < len(dense):
        raise ValueError(
            f"dense, sparse and multi_vector must all be [N, M] with M >= N; "
            f"got {dense.shape}, {sparse.shape} and {multi_vector.shape}"
        )
    for name, weights in {"ensemble_weights": ensemble_weights, "loss_weights": loss_weights}.items():
        if len(weights) != 3:
            raise ValueError(f"{name} must be three numbers, one per head; got {len(weights)}")
    heads = [scores.astype(jnp.promote_types(scores.dtype, jnp.float32)) for scores in (dense, sparse, multi_vector)]
    combine = lambda weights, terms: sum(weight * term for weight, term in zip(weights, terms, strict=True))
    ensemble = combine(ensemble_weights, heads)
    losses = (_own_against_all(ensemble) + combine(loss_weights, map(_own_against_all, heads))) / 4
    if not self_distill:
        return losses
    teacher = jax.lax.stop_gradient(jax.nn.softmax(ensemble, axis=1))
    entropies = [-jnp.sum(teacher * jax.nn.log_softmax(scores, axis=1), axis=1) for scores in heads]
    return (losses + combine(loss_weights, entropies) / 3) / 2


def _best_matches(queries, document, present) -> jax.Array:
    """Each query token's largest similarity with a token of one document, `[N, T_q]`; -inf if that has none."""
    return jnp.where(present, dot(queries, document), -jnp.inf).max(axis=-1)


def _own_against_all(logits, removed=None) -> jax.Array:
    """`log sum_{j not removed} exp(z_ij) - z_ii`, relative to the positive so that it does not round away."""
    relative = logits - jnp.diagonal(logits)[:, None]
    if removed is not None:
        removed &= ~jnp.eye(logits.shape[0], logits.shape[1], dtype=bool)
        relative = jnp.where(removed, -jnp.inf, relative)
    return jax.nn.logsumexp(relative, axis=1)


def _check(queries, query_mask, documents, document_mask) -> None:
    if queries.ndim != 3 or documents.ndim != 3 or queries.shape[-1] != documents.shape[-1]:
        raise ValueError(f"queries and documents must be [N, T, D] with one D; got {queries.shape}, {documents.shape}")
    if query_mask.shape != queries.shape[:2]:
        raise ValueError(f"query_mask must be [N, T] = {queries.shape[:2]}; got {query_mask.shape}")
    if document_mask.shape != documents.shape[:2]:
        raise ValueError(f"document_mask must be [M, T] = {documents.shape[:2]}; got {document_mask.shape}")
