"""An objective for each source: several tasks at once."""

from collections.abc import Mapping

import jax

from jaxemb.checks import checked
from jaxemb.objectives.columns import Batch, ColumnsObjective, Embeddings, Objective


@checked()
def by_source(objectives: Mapping[str, Objective]) -> Objective:
    """The objective of the source that a batch comes from, of a mixture of sources with names:

        data = mixture({"nli": nli, "stsb": stsb}, temperature=math.inf)
        batches(data, ..., columns={"nli": ("anchor", "positive"), "stsb": ("first", "second", "score")})
        by_source({
            "nli": on_columns(info_nce, "anchor", "positive"),
            "stsb": on_columns(cosent, "first", "second", others={"scores": "score"}),
        })

    The source's name is static in the batch: what is jitted is compiled once for each source (for its columns and its
    loss alone), and nothing is computed for the others.

    Args:
      objectives: by name; several names may have the same one.

    Returns:
      The objective. If all are objectives of `on_columns`, so is it, and what is made of such an objective
      (`matryoshka`, ...) can be made of it; these may not take layers of their own then.

    Raises:
      ValueError: for no objectives; when called (before it is compiled), for a batch whose source has no name, or one
        that is not among them.
    """
    objectives = dict(objectives)
    if not objectives:
        raise ValueError("by_source needs at least one objective")

    def name_of(batch: Batch) -> str:
        if "source_name" not in batch:
            raise ValueError(
                'the batch does not say its source: give the sources names, mixture({"name": source, ...})'
            )
        if (name := batch["source_name"].text) not in objectives:
            raise ValueError(f"the batch is of the source {name!r}; there are objectives for {sorted(objectives)}")
        return name

    halves = {name: objective for name, objective in objectives.items() if isinstance(objective, ColumnsObjective)}
    if len(halves) < len(objectives) or len({half.output for half in halves.values()}) > 1:
        return lambda model, batch, key: objectives[name_of(batch)](model, batch, key)

    def embed(model, batch: Batch, key: jax.Array | None) -> Embeddings:
        return halves[name_of(batch)].embed(model, batch, key)

    def losses(embeddings: Embeddings, batch: Batch, key: jax.Array | None) -> jax.Array:
        return halves[name_of(batch)].losses(embeddings, batch, key)

    return ColumnsObjective(embed, losses, next(iter(halves.values())).output)
