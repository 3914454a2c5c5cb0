"""What a HyperInterval is, what it trains and what it carries."""

import dataclasses
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from jaxemb.encoders.mlp import Mlp
from jaxemb.interval import CentredBox
from jaxemb.transforms.continual.hypernetwork import HypernetworkConfig
from jaxemb.trees import PyTree


@dataclasses.dataclass(frozen=True, kw_only=True)
class HyperIntervalConfig(HypernetworkConfig):
    """What a HyperInterval is; the fields of `HypernetworkConfig`, and these.

    Attributes:
      gamma: size of a task's box; 0 is the plain hypernetwork (without nesting).
      kappa: weight of the loss of the middle, in [0, 1]; 1 minus it is that of the worst case.
      nesting: "none": a box around each task's embedding, with trained radii that sum to gamma. "cos": boxes within
        `gamma / d` around centres within `gamma / 2d`, all of which share `[-gamma / 2d, gamma / 2d]^d`.
      learnable_radii: whether the radii are trained; None: without nesting.
      target: "interval" bounds the logits over the box of weights, soundly; "relaxed" takes those of its two corners
        and its middle, which bounds nothing.
      ordering: of relaxed logits: the "exact" minimum and maximum, or the "official" code's two swaps.
      regulariser: hold the "mid" weights of old tasks, or the lower, middle and upper ones, "all"; None: "all" with
        nesting and "mid" without.
      select: which parameters of a task are kept at its end: the "last", the best with "full_gamma", or the "official"
        code's choice; see `selection`.
      records: N, training records of the whole stream, whose promises are stored; 0 for none. See `promises`.
      warm_start: whether the embedding of a task starts as that of the task before it.
      input, label, classes: columns of the batch, as in `objectives.classification`.

    Raises:
      ValueError: for a number out of its range, an unknown option, or nesting with trained radii or gamma = 0.
    """

    hidden: tuple[int, ...] = (100,)
    normalisation: Literal["once", "official"] = "official"
    gamma: float = 1.0
    kappa: float = 0.5
    nesting: Literal["none", "cos"] = "none"
    learnable_radii: bool | None = None
    target: Literal["interval", "relaxed"] = "interval"
    ordering: Literal["exact", "official"] = "exact"
    regulariser: Literal["mid", "all"] | None = None
    select: Literal["last", "full_gamma", "official"] = "last"
    records: int = 0
    warm_start: bool = False
    input: str = "input"
    label: str = "label"
    classes: str = "classes"

    def __post_init__(self):
        super().__post_init__()
        if not self.gamma >= 0:
            raise ValueError(f"gamma must be >= 0; got {self.gamma}")
        if not 0 <= self.kappa <= 1:
            raise ValueError(f"kappa must be in [0, 1]; got {self.kappa}")
        if self.records < 0:
            raise ValueError(f"records must be >= 0; got {self.records}")
        self._one_of("nesting", "none", "cos")
        self._one_of("target", "interval", "relaxed")
        self._one_of("ordering", "exact", "official")
        self._one_of("regulariser", "mid", "all", None)
        self._one_of("select", "last", "full_gamma", "official")
        if self.nesting == "cos" and (self.learnable_radii or not self.gamma):
            given = "learnable_radii" if self.learnable_radii else "gamma = 0"
            raise ValueError(f"nested boxes have fixed radii, gamma / embed_dim > 0; got {given}")

    @property
    def radii_learn(self) -> bool:
        """Whether radii are trained."""
        return self.nesting == "none" if self.learnable_radii is None else self.learnable_radii

    @property
    def regularises_all(self) -> bool:
        """Whether the regulariser holds the lower and upper weights too."""
        return self.nesting == "cos" if self.regulariser is None else self.regulariser == "all"


class HyperIntervalParams(NamedTuple):
    """The hypernetwork, embeddings `[T, d]` of the tasks and of chunks (or None), and logits of the radii, `[T, d]`."""

    network: Mlp
    embeddings: jax.Array
    chunks: jax.Array | None
    radius_logits: jax.Array


class Kept(NamedTuple):
    """The parameters to keep at the end of the task, as far as is known, and their score; less is better."""

    params: HyperIntervalParams
    score: jax.Array


class HyperIntervalState(NamedTuple):
    """What HyperInterval carries.

    Attributes:
      task: the task whose weights the model has, int32 scalar.
      begun: number of tasks whose training has begun, int32 scalar.
      step, steps: those done of this task, and those that it takes, int32 scalars.
      old: lower, middle and upper weights of all tasks before this one began, `[T, 3, P]`, or the parameters to
        recompute them from.
      residual: of each task, how far a bound of its weights may have moved since the task ended (maximum norm, summed
        over the tasks since), `[T]`. With 0 the guarantee of `at_universal` is exact.
      promises: of each record of the stream, its worst-case loss when its task had just been learnt, f32 `[N]`; NaN
        where there is none.
      kept: what is to be kept of the task's parameters; None if those are the last.
      candidate: the state of the optimiser that looks ahead.
      given: a box of embeddings to use for that of the task, and whether to, bool scalar.
    """

    task: jax.Array
    begun: jax.Array
    step: jax.Array
    steps: jax.Array
    old: Any
    residual: jax.Array
    promises: jax.Array
    kept: Kept | None
    candidate: PyTree
    given: tuple[CentredBox, jax.Array]

    def for_task(self, number: jax.Array) -> "HyperIntervalState":
        """The state with the weights of this task, and with the full gamma."""
        return self._replace(task=number, step=self.steps, given=(self.given[0], jnp.zeros((), bool)))
