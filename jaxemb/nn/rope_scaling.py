"""How rotary positions are stretched beyond the length that a model was trained on. Equations, no files.

Each gives a `RopeConfig` for `dim` turned dimensions of a head whose plain frequencies are
`w_j = base ** (-2j / dim)`, j = 0..dim / 2 - 1.
"""

import functools
import math
from collections.abc import Sequence

import numpy as np

from jaxemb.checks import Check, at_least, checked, positive, whole
from jaxemb.nn.rope import RopeConfig


def _dims(least: int) -> Check:
    return functools.partial(whole, least=least, most=2**16)


@checked(base=positive, dim=_dims(2))
def plain(base: float, dim: int) -> RopeConfig:
    """`w_j`."""
    return _config(base, _frequencies(base, dim))


@checked(base=positive, dim=_dims(2), factor=positive)
def linear(base: float, dim: int, *, factor: float) -> RopeConfig:
    """`w_j / factor`: positions are interpolated (Chen et al. 2023, arXiv:2306.15595)."""
    return _config(base, _frequencies(base, dim) / factor)


@checked(base=positive, dim=_dims(4), factor=positive, trained_length=at_least(1))
def dynamic(base: float, dim: int, *, factor: float, trained_length: int) -> RopeConfig:
    """Dynamic NTK scaling: on texts of more than `trained_length` tokens the base grows with them; see `RopeConfig`.

    Raises:
      ValueError: for `dim` < 4, of which there is no such base.
    """
    own = tuple(_frequencies(base, dim).tolist())
    return RopeConfig(base, own, trained_length=trained_length, dynamic_factor=factor)


@checked(base=positive, dim=_dims(2), factor=positive, low_factor=positive, trained_length=at_least(1))
def llama3(
    base: float, dim: int, *, factor: float, low_factor: float, high_factor: float, trained_length: int
) -> RopeConfig:
    """Llama 3.1: waves that go `high_factor` times or more into the trained length stay as they are.

    Those that go `low_factor` times or less become `w_j / factor`. Between, with
    `t = (trained_length w_j / 2 pi - low_factor) / (high_factor - low_factor)`, it is `(1 - t) w_j / factor + t w_j`.

    Raises:
      ValueError: unless low_factor < high_factor.
    """
    if not low_factor < high_factor:
        raise ValueError(f"low_factor must be below high_factor; got {low_factor} and {high_factor}")
    frequencies = _frequencies(base, dim)
    turns = trained_length * frequencies / (2 * math.pi)
    kept = np.clip((turns - low_factor) / (high_factor - low_factor), 0, 1)
    return _config(base, (1 - kept) * frequencies / factor + kept * frequencies)


@checked(
    base=positive, dim=_dims(2), factor=positive, beta_fast=positive, beta_slow=positive, trained_length=at_least(2)
)
def yarn(
    base: float,
    dim: int,
    *,
    factor: float,
    trained_length: int,
    beta_fast: float = 32.0,
    beta_slow: float = 1.0,
    attention_factor: float | None = None,
    mscale: float | None = None,
    mscale_all_dim: float | None = None,
    truncate: bool = True,
) -> RopeConfig:
    """YaRN (Peng et al. 2023, arXiv:2309.00071): fast dimensions stay, slow ones are interpolated, a ramp between them.

    `w_j (1 - r_j) + w_j / factor r_j`, with `r_j = clip((j - low) / (high - low), 0, 1)`; low and high are the j at
    which a wave turns `beta_fast` and `beta_slow` times in the trained length, rounded outwards if `truncate`.

    Args:
      attention_factor: of cos and sin; None is `0.1 ln(factor) + 1`, or, with both `mscale` and `mscale_all_dim`, the
        ratio of `0.1 m ln(factor) + 1` of the one and the other.
    """
    turns_at = lambda turns: dim * math.log(trained_length / (turns * 2 * math.pi)) / (2 * math.log(base))
    low, high = turns_at(beta_fast), turns_at(beta_slow)
    low, high = (math.floor(low), math.ceil(high)) if truncate else (low, high)
    low, high = max(low, 0), min(high, dim - 1)
    ramp = np.clip((np.arange(dim // 2) - low) / (high - low or 0.001), 0, 1)
    scale = lambda m: 0.1 * m * math.log(factor) + 1.0 if factor > 1 else 1.0
    if attention_factor is None:
        attention_factor = scale(mscale) / scale(mscale_all_dim) if mscale and mscale_all_dim else scale(1.0)
    frequencies = _frequencies(base, dim)
    return _config(base, frequencies * (1 - ramp) + frequencies / factor * ramp, attention_factor)


@checked(base=positive, dim=_dims(2), factor=positive, trained_length=at_least(2))
def longrope(
    base: float,
    dim: int,
    *,
    short_factors: Sequence[float],
    long_factors: Sequence[float],
    factor: float,
    trained_length: int,
    attention_factor: float | None = None,
) -> RopeConfig:
    """LongRoPE (Ding et al. 2024, arXiv:2402.13753): `w_j / short_j`, on texts longer than trained `w_j / long_j`.

    Args:
      attention_factor: of cos and sin, for texts of any length; None is `sqrt(1 + ln(factor) / ln(trained_length))`.

    Raises:
      ValueError: unless there are dim / 2 factors of each kind.
    """
    if not len(short_factors) == len(long_factors) == dim // 2:
        got = f"{len(short_factors)} and {len(long_factors)}"
        raise ValueError(f"short_factors and long_factors must be {dim // 2} numbers each, half of dim; got {got}")
    if attention_factor is None:
        attention_factor = math.sqrt(1 + math.log(factor) / math.log(trained_length)) if factor > 1 else 1.0
    frequencies = _frequencies(base, dim)
    short, long = (tuple((frequencies / np.asarray(f, float)).tolist()) for f in (short_factors, long_factors))
    return RopeConfig(base, short, attention_factor, trained_length, long_frequencies=long)


def _frequencies(base: float, dim: int) -> np.ndarray:
    return base ** (-2 * np.arange(dim // 2) / dim)


def _config(base: float, frequencies: np.ndarray, attention_factor: float = 1.0) -> RopeConfig:
    return RopeConfig(base, tuple(frequencies.tolist()), attention_factor)
