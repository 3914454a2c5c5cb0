"""The table of parts. To add one: a module with `rows(bench)`, and a line here."""

from typing import NamedTuple


class Part(NamedTuple):
    """What the summary is divided into.

    Attributes:
      name: as in `--parts`.
      module: has `rows(bench: Bench) -> Iterator[Row]`, and `peer(spec, device)` where it has a peer; see `measure`.
      seconds: its share of the time. What earlier parts leave is added.
      title: what the summary calls it.
    """

    name: str
    module: str
    seconds: float
    title: str


#: In the order of importance, which is that of running. Their seconds add up to at most 480.
PARTS = (
    Part("numerics", "benchmarks.accelerator.numerics", 55, "Numerical checks"),
    Part("matmul", "benchmarks.accelerator.matmul", 30, "Peaks: matrix products and copies"),
    Part("encode", "benchmarks.accelerator.encode", 120, "Encoding"),
    Part("train", "benchmarks.accelerator.train", 75, "Contrastive training steps"),
    Part("attention", "benchmarks.accelerator.attention", 60, "Attention implementations"),
    Part("loss", "benchmarks.accelerator.loss", 40, "InfoNCE by itself, value and gradient"),
    Part("search", "benchmarks.accelerator.search", 55, "Exact search"),
    Part("hyperinterval", "benchmarks.accelerator.hyperinterval", 45, "HyperInterval, published Permuted MNIST"),
)
