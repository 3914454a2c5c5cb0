"""Products of boxes: `mul`, `dot_general` and `conv_general_dilated`, one operand boxed or both."""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxemb.interval.box import Box, Call, high, is_nonneg, low, rule

TILE = 2**22  # elements of the largest array that an exact product of two boxes of both signs may hold


@rule("dot_general")
def _dot_general(call: Call, x, w):
    exact = functools.partial(_exact_dot, call.params) if call.products == "exact" else None
    return product(call.bind, x, w, exact)


@rule("conv_general_dilated")
def _conv(call: Call, x, w):
    if call.products == "exact" and call.params["batch_group_count"] != 1:
        exact = None
        if isinstance(x, Box) and isinstance(w, Box) and not (x.nonneg or w.nonneg):
            raise call.unsupported('batch_group_count > 1 with two boxes of both signs needs products="midpoint"')
    else:
        exact = functools.partial(_exact_conv, call.params) if call.products == "exact" else None
    return product(call.bind, x, w, exact)


def product(bilinear: Callable[[Any, Any], Any], x, w, exact: Callable[[Box, Box], Box] | None) -> Box:
    """The box of `bilinear(x, w)`, at least one of them a box.

    With `m`, `r` the centre and radius of a box, and `.` the product:

    - x a point: `x . m_w ± |x| . r_w`; two products, exact.
    - both non-negative: `[x_lo . w_lo, x_hi . w_hi]`; two, exact.
    - x non-negative: `[m_x . w_lo - r_x . |w_lo|, m_x . w_hi + r_x . |w_hi|]`; four, exact.
    - both of any sign: `exact(x, w)`, or without it the centre and radius `m_x . m_w` and
      `|m_x| . r_w + r_x . (|m_w| + r_w)` (Rump, 1999), four products (three run together), wider by up to 1.5 times.
    """
    if not isinstance(x, Box):
        return _around(bilinear(x, w.mid), bilinear(jnp.abs(x), w.radius), is_nonneg(x) and w.nonneg)
    if not isinstance(w, Box):
        return _around(bilinear(x.mid, w), bilinear(x.radius, jnp.abs(w)), x.nonneg and is_nonneg(w))
    if x.nonneg and w.nonneg:
        box = _known(bilinear(x.lo, w.lo), bilinear(x.hi, w.hi))
        return Box(jnp.maximum(box.lo, 0), box.hi, nonneg=True)
    if x.nonneg:
        m, r = x.mid, x.radius
        return _known(
            bilinear(m, w.lo) - bilinear(r, jnp.abs(w.lo)),
            bilinear(m, w.hi) + bilinear(r, jnp.abs(w.hi)),
        )
    if w.nonneg:
        return product(lambda a, b: bilinear(b, a), w, x, None)
    if exact is not None:
        return exact(x, w)
    spread = bilinear(jnp.abs(x.mid), w.radius) + bilinear(x.radius, jnp.abs(w.mid) + w.radius)
    return _around(bilinear(x.mid, w.mid), spread)


def _around(centre, spread, nonneg: bool = False) -> Box:
    box = _known(centre - spread, centre + spread)
    return Box(jnp.maximum(box.lo, 0), box.hi, nonneg) if nonneg else box


def _known(lo, hi) -> Box:
    """Where an infinite end made `inf - inf` or `0 inf`, nothing is known of the result."""
    return Box(jnp.where(jnp.isnan(lo), -jnp.inf, lo), jnp.where(jnp.isnan(hi), jnp.inf, hi))


def elementwise_product(x, w, times: Callable[[Any, Any], Any] = jnp.multiply) -> Box:
    """Elementwise: the least and the greatest of the products of the ends."""
    if is_nonneg(x) and is_nonneg(w):
        return Box(times(low(x), low(w)), times(high(x), high(w)), nonneg=True)
    corners = [times(a, b) for a in ends(x) for b in ends(w)]
    return Box(functools.reduce(jnp.minimum, corners), functools.reduce(jnp.maximum, corners))


def ends(value) -> tuple[Any, ...]:
    """The two ends of a box, or the one value of a point."""
    return (value.lo, value.hi) if isinstance(value, Box) else (value,)


def _exact_dot(params: dict[str, Any], x: Box, w: Box) -> Box:
    (x_sum, w_sum), (x_batch, w_batch) = params["dimension_numbers"]
    x_free = [d for d in range(len(x.shape)) if d not in (*x_sum, *x_batch)]
    w_free = [d for d in range(len(w.shape)) if d not in (*w_sum, *w_batch)]
    size = lambda shape, dims: math.prod(shape[d] for d in dims)
    batch = size(x.shape, x_batch)
    as_x = lambda a: a.transpose(*x_batch, *x_free, *x_sum).reshape(batch, size(a.shape, x_free), -1)
    as_w = lambda a: a.transpose(*w_batch, *w_sum, *w_free).reshape(batch, -1, size(a.shape, w_free))
    shape = [x.shape[d] for d in (*x_batch, *x_free)] + [w.shape[d] for d in w_free]
    dtype = params["preferred_element_type"] or x.dtype
    out = _exact_matmul(Box(as_x(x.lo), as_x(x.hi)), Box(as_w(w.lo), as_w(w.hi)))
    return Box(out.lo.reshape(shape).astype(dtype), out.hi.reshape(shape).astype(dtype))


def _exact_matmul(x: Box, w: Box) -> Box:
    """`[B, M, K]` by `[B, K, N]`: `sum_k min` and `sum_k max` of the four products of the ends.

    No product of matrices is that, so it takes `12 B M K N` elementwise operations where a matrix product takes
    `2 B M K N`, in tiles of the contracted axis of `TILE` elements (recomputed in a backward pass).
    """
    batch, rows, terms = x.shape
    columns = w.shape[2]
    tile = max(1, min(terms, TILE // max(1, batch * rows * columns)))
    tiles = -(-terms // tile)
    missing = tiles * tile - terms  # zeros add nothing
    by_tile = lambda a, axis: jnp.moveaxis(
        jnp.pad(a, [(0, missing if d == axis else 0) for d in range(3)]).reshape(
            *a.shape[:axis], tiles, tile, *a.shape[axis + 1 :]
        ),
        axis,
        0,
    )

    @jax.checkpoint
    def add(total, part):
        x_lo, x_hi, w_lo, w_hi = part
        left, right = Box(x_lo[..., None], x_hi[..., None]), Box(w_lo[:, None], w_hi[:, None])
        terms = elementwise_product(left, right)
        return (total[0] + terms.lo.sum(2), total[1] + terms.hi.sum(2)), None

    zeros = jnp.zeros((batch, rows, columns), jnp.result_type(x.dtype, w.dtype))
    parts = (by_tile(x.lo, 2), by_tile(x.hi, 2), by_tile(w.lo, 1), by_tile(w.hi, 1))
    return _known(*lax.scan(add, (zeros, zeros), parts)[0])


def _exact_conv(params: dict[str, Any], x: Box, w: Box) -> Box:
    """As a product of matrices, of the patches under the kernel by the kernel."""
    numbers, groups = params["dimension_numbers"], params["feature_group_count"]
    kernel = [w.shape[d] for d in numbers.rhs_spec]  # out, in, *window
    geometry = {name: params[name] for name in ("padding", "lhs_dilation", "rhs_dilation")}

    def as_x(a):
        patches = lax.conv_general_dilated_patches(
            a.transpose(numbers.lhs_spec),
            kernel[2:],
            params["window_strides"],
            precision=lax.Precision.HIGHEST,
            **geometry,
        )
        shape.extend([patches.shape[0], *patches.shape[2:]])
        return patches.reshape(patches.shape[0], groups, math.prod(kernel[1:]), -1).transpose(1, 0, 3, 2)

    shape: list[int] = []  # of the output: batch, *window positions
    as_w = lambda a: a.transpose(numbers.rhs_spec).reshape(groups, kernel[0] // groups, -1).transpose(0, 2, 1)
    flat = lambda a: a.reshape(groups, -1, a.shape[-1])
    out = _exact_matmul(Box(flat(as_x(x.lo)), flat(as_x(x.hi))), Box(as_w(w.lo), as_w(w.hi)))

    def back(a):
        images, *window = shape[: len(shape) // 2]
        a = a.reshape(groups, images, math.prod(window), -1).transpose(1, 0, 3, 2)
        a = a.reshape(images, kernel[0], *window)
        order = [numbers.out_spec.index(d) for d in range(a.ndim)]
        return a.transpose(order).astype(params["preferred_element_type"] or a.dtype)

    return Box(back(out.lo), back(out.hi))
