"""Several sources as one: shares of batches, small sources together."""

import dataclasses
import math
from collections.abc import Mapping, Sequence

from jaxemb.checks import at_least, checked
from jaxemb.data.records import Source, concatenate
from jaxemb.data.streams import Stream


@dataclasses.dataclass(frozen=True)
class Mixture:
    """Sources to draw batches from, each batch from one source. Made by `mixture`.

    Attributes:
      sources: at least one.
      weights: the share of batches of each source; they sum to 1.
      names: what each is called, if they have names.
    """

    sources: tuple[Source | Stream, ...]
    weights: tuple[float, ...]
    names: tuple[str, ...] | None = None


@checked()
def mixture(
    sources: Sequence[Source | Stream] | Mapping[str, Source | Stream],
    weights: Sequence[float] | Mapping[str, float] | None = None,
    *,
    temperature: float = 1.0,
) -> Mixture:
    """A mixture of `sources` in which every batch comes from one of them: its in-batch negatives are of one task.

    The share of a source of n records is proportional to `n ** (1 / temperature)`: 1 is proportional mixing, more lifts
    the small sources, and `math.inf` gives equal shares, which is round robin.

    Args:
      sources: of records with the same columns, or by name, `{"nli": ..., "stsb": ...}`: then each may have columns, a
        sampler and, with `jaxemb.objectives.by_source`, an objective of its own. See `merge_small` for those with few
        records.
      weights: other shares of batches, positive, in any unit; by name if the sources are.
      temperature: > 0; the length of a stream is unknown, so that with one it is `math.inf`, or there are weights.

    Raises:
      ValueError: no sources, an empty one, weights that do not fit them, a temperature that is not positive, or one
        beside weights.

    References:
      Arivazhagan et al. 2019, "Massively Multilingual Neural Machine Translation in the Wild" (temperature).
    """
    names = tuple(sources) if isinstance(sources, Mapping) else None
    parts = tuple(sources.values()) if isinstance(sources, Mapping) else tuple(sources)
    if not parts:
        raise ValueError("sources: a mixture needs at least one source")
    for source in parts:
        if isinstance(source, Source) and not len(source):
            raise ValueError(f"{source.name} has no records")
    if not temperature > 0 or (weights is not None and temperature != 1):
        raise ValueError(f"temperature must be positive, and 1 beside weights; got {temperature}")
    shares = _shares(parts, temperature) if weights is None else _given(weights, names)
    if len(shares) != len(parts):
        raise ValueError(f"weights: expected one for each of {len(parts)} sources; got {len(shares)}")
    if not all(math.isfinite(weight) and weight > 0 for weight in shares):
        raise ValueError(f"weights must be positive and finite; got {shares}")
    return Mixture(parts, tuple(weight / math.fsum(shares) for weight in shares), names)


def _shares(sources: Sequence[Source | Stream], temperature: float) -> list[float]:
    if math.isinf(temperature):
        return [1.0] * len(sources)
    if streams := [source.name for source in sources if isinstance(source, Stream)]:
        raise ValueError(
            f"weights: nobody knows how many records {', '.join(streams)} has; give weights, or temperature=math.inf "
            "for equal shares"
        )
    return [len(source) ** (1 / temperature) for source in sources if isinstance(source, Source)]


def _given(weights: Sequence[float] | Mapping[str, float], names: tuple[str, ...] | None) -> list[float]:
    if not isinstance(weights, Mapping):
        return list(weights)
    if names is None or set(weights) != set(names):
        raise ValueError(f"weights: expected one for each source, {list(names or ())}; got {list(weights)}")
    return [weights[name] for name in names]


@checked(small_threshold=at_least(0), drop_threshold=at_least(0))
def merge_small(sources: Sequence[Source], *, small_threshold: int, drop_threshold: int = 0) -> list[Source]:
    """The sources of at least `small_threshold` records, then all smaller ones as one source.

    A small source alone gives the same few batches again and again, or none. The merged source is left out if it has
    less than `drop_threshold` records, or none.

    References:
      FlagEmbedding's same-dataset batches (`small_threshold`, `drop_threshold`).
    """
    large = [source for source in sources if len(source) >= small_threshold]
    small = [source for source in sources if len(source) < small_threshold]
    records = sum(map(len, small))
    return [*large, concatenate(small)] if records >= max(drop_threshold, 1) else large
