"""What a model is worth at every size: quality, speed and index size over (layers, dimensions)."""

import dataclasses
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxemb.checks import checked, having, size
from jaxemb.similarity import unit_rows
from jaxemb.text_encoder import Configured, Evaluator

if TYPE_CHECKING:
    from jax.sharding import Mesh

    from jaxemb.sentence_embedder import SentenceEmbedder

_SAMPLE = 512  # texts that speed is measured on
_BYTES_PER_VALUE = 4  # index directories hold float32


@dataclasses.dataclass(frozen=True)
class Cell:
    """One size of a model.

    Attributes:
      layers, dim: the size.
      quality: what the evaluator says of it, larger is better.
      texts_per_second: encoding speed of the evaluator's texts, without compilation; the same for all dims.
      bytes_per_vector: of an index in float32.
    """

    layers: int
    dim: int
    quality: float
    texts_per_second: float
    bytes_per_vector: int


@dataclasses.dataclass(frozen=True)
class Grid:
    """The cells of a model by descending size, the full one first, and the metric that is their quality."""

    metric: str
    cells: tuple[Cell, ...]

    @property
    def full(self) -> Cell:
        """The largest size."""
        return self.cells[0]

    def smallest(self, max_loss: float) -> Cell:
        """The cell of least layers x dim whose quality is at most `max_loss` below that of the full size.

        Of equal ones, that with fewer layers. Raises ValueError for a negative `max_loss`.
        """
        if not max_loss >= 0:
            raise ValueError(f"max_loss must be >= 0; got {max_loss}")
        good = [cell for cell in self.cells if cell.quality >= self.full.quality - max_loss]
        return min(good, key=lambda cell: (cell.layers * cell.dim, cell.layers))

    def summary(self, max_loss: float) -> dict[str, Any]:
        """Ready for JSON: the cells, and the smallest one within `max_loss`."""
        return {
            "metric": self.metric,
            "cells": [dataclasses.asdict(cell) for cell in self.cells],
            "max_loss": max_loss,
            "smallest": dataclasses.asdict(self.smallest(max_loss)),
        }

    def table(self, max_loss: float) -> str:
        """Quality by layers and dims, speed by layers, bytes by dims, and the smallest size within `max_loss`."""
        cells = {(cell.layers, cell.dim): cell for cell in self.cells}
        depths, dims = (sorted({size[i] for size in cells}) for i in (0, 1))
        best, full = self.smallest(max_loss), self.full
        row = lambda name, values, last: f"{name:<8}" + "".join(f"{value:>9}" for value in values) + f"{last:>11}"
        lines = [f"{self.metric} by layers and dimensions", row("layers", dims, "texts/s")]
        for n in depths:
            qualities = [f"{cells[n, dim].quality:.4f}" for dim in dims]
            lines.append(row(n, qualities, f"{cells[n, dims[0]].texts_per_second:.0f}"))
        lines.append(row("bytes", [cells[depths[0], dim].bytes_per_vector for dim in dims], ""))
        lines.append(
            f"smallest within {max_loss:g} of {full.quality:.4f}: {best.layers} layers, {best.dim} dimensions "
            f"({best.quality:.4f}), {best.texts_per_second / full.texts_per_second:.1f} x as fast, "
            f"{best.bytes_per_vector / full.bytes_per_vector:.0%} of the index"
        )
        return "\n".join([*lines, *self.advice(max_loss)])

    def advice(self, max_loss: float) -> list[str]:
        """What trains a model for fewer layers, or dimensions, where all of these lose more than `max_loss`."""
        full, least = self.full, self.full.quality - max_loss
        shallow = [cell.quality for cell in self.cells if cell.layers < full.layers and cell.dim == full.dim]
        short = [cell.quality for cell in self.cells if cell.layers == full.layers and cell.dim < full.dim]
        trained = "if it was trained so already, more steps or a larger max_loss"
        lines = []
        if shallow and max(shallow) < least:
            lines.append(
                "every smaller number of layers loses more: jaxemb.objectives.starbucks trains a few known sizes, "
                f"matryoshka_2d all of them; {trained}"
            )
        if short and max(short) < least:
            lines.append(
                f"every smaller number of dimensions loses more: jaxemb.objectives.matryoshka trains them; {trained}"
            )
        return lines


@checked(embedder=having("encode", "model"), batch_tokens=size)
def grid(
    embedder: "SentenceEmbedder",
    evaluator: Evaluator,
    metric: str,
    *,
    layers: Sequence[int] | None = None,
    dims: Sequence[int] | None = None,
    batch_tokens: int | None = None,
    mesh: "Mesh | None" = None,
) -> Grid:
    """Evaluates a model cut to every combination of `layers` and `dims`, and the full size.

    Texts are encoded once for each number of layers; dims are prefixes of these vectors, as `truncate` gives them.

        grid(embedder, sts_evaluator(read_sts("pairs.csv")), "cosine_spearman").table(max_loss=0.01)

    Args:
      embedder: the model.
      evaluator: such as `sts_evaluator(data)`.
      metric: which of its numbers is the quality; larger is better.
      layers: numbers of layers; None for at most six, evenly spaced.
      dims: numbers of dimensions; None for the powers of two from 32 on.
      batch_tokens, mesh: as of `SentenceEmbedder.encode`.

    Raises:
      ValueError: for sizes that the model does not have, or an unknown metric.
    """
    depth, width = embedder.model.depth, embedder.model.dim
    steps = min(depth, 6)
    layers = [round(depth * i / steps) for i in range(1, steps + 1)] if layers is None else layers
    dims = [2**i for i in range(5, width.bit_length()) if 2**i < width] if dims is None else dims
    for name, values, most in (("layers", layers, depth), ("dims", dims, width)):
        if not all(1 <= value <= most for value in values):
            raise ValueError(f"{name} must be in 1..{most}; got {list(values)}")

    cells = []
    for n in sorted({*layers, depth}, reverse=True):
        encoder = _Prefixes(embedder.truncate(layers=n), {"batch_tokens": batch_tokens, "mesh": mesh})
        qualities = {}
        for dim in sorted({*dims, width}, reverse=True):
            scores = evaluator(dataclasses.replace(encoder, dim=dim))
            if metric not in scores:
                raise ValueError(f"metric must be one of {sorted(scores)}; got {metric!r}")
            qualities[dim] = float(scores[metric])
        speed = encoder.texts_per_second()
        cells += [Cell(n, dim, quality, speed, dim * _BYTES_PER_VALUE) for dim, quality in qualities.items()]
    return Grid(metric, tuple(cells))


@dataclasses.dataclass(frozen=True)
class _Prefixes(Configured):
    """An encoder that keeps what it has encoded, and gives prefixes of it."""

    dim: int | None = None
    known: dict[tuple[str | None, tuple[str, ...]], np.ndarray] = dataclasses.field(default_factory=dict)

    def encode(self, texts: Sequence[str], *, prompt_name: str | None = None) -> np.ndarray:
        key = (prompt_name, tuple(texts))
        if key not in self.known:
            self.known[key] = super().encode(texts, prompt_name=prompt_name)
        vectors = self.known[key][:, : self.dim]
        return unit_rows(vectors) if self.embedder.model.normalizes else vectors

    def texts_per_second(self) -> float:
        """On a sample of what it has encoded; the first pass compiles."""
        texts = [text for _, known in self.known for text in known]
        sample = texts[:: -(-len(texts) // _SAMPLE)]
        seconds = []
        for _ in range(3):
            start = time.perf_counter()
            super().encode(sample)
            seconds.append(time.perf_counter() - start)
        return len(sample) / min(seconds[1:])
