"""Masks of false negatives, for losses that count the other examples of a batch as negatives."""

import jax
import jax.numpy as jnp


def duplicates(query_ids: jax.Array, document_ids: jax.Array, negative_ids: jax.Array | None = None) -> jax.Array:
    """Which candidates may count as a query's negatives, given what the batch itself knows to be relevant.

    A candidate is a false negative of query i if the batch holds a record with the same query and that document:

        known[i, c] = any_l (query_ids[l] == query_ids[i] and document_ids[l] == id(c))

    so that two records with one query, or with one document, are not set against each other.

    Args:
      query_ids: a number that stands for each query's text, such as a hash, `[N]`.
      document_ids: the same for the positive documents, `[N]`.
      negative_ids: the same for the hard negatives, `[N, K]` (or `[N]`).

    Returns:
      `~known`, bool `[N, N (1 + K)]`, columns as in `info_nce`: all documents, then the hard negatives slot by slot.
    """
    query_ids, document_ids = jnp.asarray(query_ids), jnp.asarray(document_ids)
    candidate_ids = document_ids
    if negative_ids is not None:
        candidate_ids = jnp.concatenate([document_ids, jnp.ravel(jnp.asarray(negative_ids).T)])
    same_query = query_ids[:, None] == query_ids[None, :]
    same_document = document_ids[:, None] == candidate_ids[None, :]
    known = jnp.matmul(same_query.astype(jnp.float32), same_document.astype(jnp.float32)) > 0
    return ~known
