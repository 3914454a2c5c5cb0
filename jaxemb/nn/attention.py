"""One attention over rows of texts, and its implementations, which give the same values and derivatives.

dense      all logits `[B, H, T, T]` at once; the fastest for short rows
blockwise  128 queries at a time, computed again in the backward pass: memory grows with T, not with T^2
library    `jax.nn.dot_product_attention`, which XLA's GPU and TPU backends know; no soft cap, no dropout
cudnn      its flash kernel, on NVIDIA GPUs in bf16 or f16; no soft cap, no dropout
splash     the flash kernel of TPUs: memory grows with T, and keys far outside of a window cost no time; no bias, no
           dropout, no prefix, and windows must be known when it is compiled. Where there is no TPU it is interpreted,
           for tests
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np

from jaxemb.checks import checked, described, in_32_bits, positive
from jaxemb.nn.dense_attention import blockwise, dense, guarded, library
from jaxemb.nn.splash_attention import splash

Implementation = Literal["dense", "blockwise", "library", "cudnn", "splash"]
IMPLEMENTATIONS: tuple[str, ...] = get_args(Implementation)

_LACKS: Mapping[str, tuple[str, ...]] = {
    "library": ("dropout", "soft cap"),
    "cudnn": ("dropout", "soft cap"),
    "splash": ("dropout", "bias", "prefix", "traced window"),
}
_LONG = 2048  # tokens of a row above which none is taken that holds all logits: they are then 16 MB per head


class Windows(NamedTuple):
    """A window that is one of a few; which of them, only the running program knows, as of a layer in a scan.

    Attributes:
      choices: each as the window of `attention`; None is no window.
      which: the index of the one in force, int scalar.
    """

    choices: tuple[int | None, ...]
    which: jax.Array


@checked(window=in_32_bits, scale=positive, soft_cap=in_32_bits)
def attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    segments: jax.Array,
    *,
    causal: bool = False,
    prefix: jax.Array | None = None,
    window: jax.Array | int | Windows | None = None,
    bias: jax.Array | None = None,
    scale: float | None = None,
    soft_cap: float | None = None,
    dropout: float = 0.0,
    key: jax.Array | None = None,
    implementation: Implementation | None = None,
) -> jax.Array:
    """`softmax(c tanh((q k^T scale + bias) / c)) v`, c the soft cap, over the keys that a query sees.

    A query sees the keys of its own segment; of these, if `causal`, those that are not after it or in the `prefix`, and
    with a `window` w those at a distance of at most w in the row.

    Args:
      q: `[B, T, H, h]`.
      k, v: `[B, T, G, h]`; G divides H, and query head i reads key head `i // (H / G)`.
      segments: text of each token, int `[B, T]`; padding is 0 and sees padding.
      causal: whether a query sees no key after it.
      prefix: of causal attention, the keys that are seen from before them as well, bool `[B, T]`; None is none.
      window: scalar, may be traced; or one of several that are known, see `Windows`.
      bias: added to the scaled logits, `[1 or B, 1 or H, T, T]`.
      scale: None is `h ** -0.5`.
      soft_cap: > 0; None is none (Gemma 2 has 50).
      dropout: share of the weights that are set to 0, the others divided by `1 - dropout`; needs `key`.
      key: None turns dropout off.
      implementation: None takes one that has what is asked for: for rows of more than 2,048 tokens "splash" on TPUs or
        else "blockwise"; for shorter ones "library", but on CPUs, or where that lacks something, "dense".

    Returns:
      `[B, T, H, h]` of v's type.

    Raises:
      ValueError: for shapes that do not fit, an unknown implementation, or one that lacks what is asked for.
    """
    window, prefix = _known(window), prefix if causal else None
    _check(q, k, v, segments, window, bias, prefix, dropout, soft_cap)
    drops = key is not None and dropout > 0
    asked = {
        "dropout": drops,
        "soft cap": soft_cap is not None,
        "bias": bias is not None,
        "prefix": prefix is not None,
        "traced window": isinstance(window, jax.Array),
    }
    by_platform = _choose(implementation, q.shape[1], asked)
    options = {"causal": causal, "scale": q.shape[-1] ** -0.5 if scale is None else scale}
    more = options | {"soft_cap": soft_cap, "dropout": dropout if drops else 0.0, "key": key}
    flash = functools.partial(_splash, windows=window, soft_cap=soft_cap, **options)
    run: dict[str, Callable[..., jax.Array]] = {
        "dense": functools.partial(dense, **more),
        "blockwise": functools.partial(blockwise, **more),
        "library": functools.partial(library, **options),
        "cudnn": functools.partial(library, **options, implementation="cudnn"),
        "splash": functools.partial(flash, interpret=False),
        "interpreted": functools.partial(flash, interpret=True),
    }
    if isinstance(window, Windows):
        window = jnp.asarray([q.shape[1] if w is None else w for w in window.choices])[window.which]
    operands = (*map(guarded, (q, k, v)), segments, window, bias, prefix)
    if len(by_platform) == 1:
        return run[by_platform["default"]](*operands)
    return jax.lax.platform_dependent(*operands, **{on: run[name] for on, name in by_platform.items()})


def _choose(name: Implementation | None, length: int, asked: Mapping[str, bool]) -> dict[str, str]:
    """The implementation on each platform, by what each lacks of what is asked for."""
    missing = {name: [what for what in lacks if asked[what]] for name, lacks in _LACKS.items()}
    if name is not None and name not in IMPLEMENTATIONS:
        raise ValueError(f"implementation must be one of {IMPLEMENTATIONS} or None; got {name!r}")
    if name is not None and missing.get(name):
        raise ValueError(f"implementation {name!r} has no {' and no '.join(missing[name])}")
    if name == "splash":
        return {"tpu": "splash", "default": "interpreted"}
    if name is not None:
        return {"default": name}
    if length > _LONG:
        return {"default": "blockwise"} if missing["splash"] else {"tpu": "splash", "default": "blockwise"}
    # Of the two, XLA's CPU backend runs ours up to five times faster.
    return {"default": "dense"} if missing["library"] else {"cpu": "dense", "default": "library"}


def _splash(q, k, v, segments, window, bias, prefix, *, windows: Any, **options) -> jax.Array:
    """Of windows that are known, which the operand `window` is not; there is no bias and no prefix."""
    if not isinstance(windows, Windows):
        return splash(q, k, v, segments, window=windows, **options)
    each = [functools.partial(splash, window=w, **options) for w in windows.choices]
    return jax.lax.switch(windows.which, each, q, k, v, segments)


def _known(window: Any) -> Any:
    """The window, as an int where it is a whole number of NumPy or Python."""
    if isinstance(window, Windows):
        return Windows(tuple(map(_known, window.choices)), window.which)
    if window is None or isinstance(window, jax.Array):
        return window
    if np.ndim(window) or not isinstance(np.asarray(window).item(), int):
        raise TypeError(f"window must be a whole number, a Windows, or None; got {described(window)}")
    return int(window)


def _check(q, k, v, segments, window, bias, prefix, dropout, soft_cap) -> None:
    if q.ndim != 4 or k.shape != v.shape or k.ndim != 4 or (k.shape[:2], k.shape[3]) != (q.shape[:2], q.shape[3]):
        raise ValueError(f"q must be [B, T, H, h], k and v [B, T, G, h]; got {q.shape}, {k.shape} and {v.shape}")
    for name, array in {"q": q, "k": k, "v": v}.items():
        if not jnp.issubdtype(array.dtype, jnp.floating):
            raise ValueError(f"{name} must be of a float type; got {array.dtype}")
    if 0 in (*q.shape, k.shape[2]):
        raise ValueError(f"q, k and v must have at least one row, token and head; got {q.shape} and {k.shape}")
    if q.shape[2] % k.shape[2]:
        raise ValueError(f"the heads of k must divide those of q; got {k.shape[2]} and {q.shape[2]}")
    if segments.shape != q.shape[:2]:
        raise ValueError(f"segments must be [B, T] = {q.shape[:2]}; got {segments.shape}")
    if prefix is not None and prefix.shape != q.shape[:2]:
        raise ValueError(f"prefix must be [B, T] = {q.shape[:2]}; got {prefix.shape}")
    for w in window.choices if isinstance(window, Windows) else (window,):
        if w is not None and not isinstance(w, jax.Array) and w < 0:
            raise ValueError(f"window must be a whole number of at least 0; got {w}")
    (rows, length, heads, _), shape = q.shape, None if bias is None else jnp.shape(bias)
    if shape is not None and (
        len(shape) != 4 or shape[0] not in (1, rows) or shape[1] not in (1, heads) or shape[2:] != (length, length)
    ):
        raise ValueError(f"bias must be [1 or {rows}, 1 or {heads}, {length}, {length}]; got {shape}")
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout must be in [0, 1); got {dropout}")
    if soft_cap is not None and not soft_cap > 0:
        raise ValueError(f"soft_cap must be > 0; got {soft_cap}")
