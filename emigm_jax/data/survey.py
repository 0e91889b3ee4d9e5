"""What pictures are like, told by some of them, and the settings that follow from that."""

import dataclasses
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from emigm_jax.config.settings import DataConfig
from emigm_jax.data import listing
from emigm_jax.data.pictures import center_crop
from emigm_jax.data.rows import read_all
from emigm_jax.data.sources import Source, Unreadable
from emigm_jax.errors import UserError, printable
from emigm_jax.tokenizers.interface import Spec

LOOKED_AT = 256  # pictures, evenly spread over all
_NAMED = 10  # classes that are named
_FEW_SMALLER = 0.1  # share of pictures that may be smaller than the size that is suggested
_PIXELS = 32  # the largest size suggested for pixels as tokens: what small models learn
_TOKENS = 8  # per side, with patches of pixels
_PATCHES = (2, 8)  # pixels per side
_OFF = 1.25  # tokens whose deviation is off 1 by less than this factor are no matter


class Survey(NamedTuple):
    """Sizes of the pictures that were looked at."""

    sizes: np.ndarray  # (Q, 2) width and height
    unreadable: list[Unreadable]

    @property
    def shorter(self) -> np.ndarray:
        """The shorter side of each (Q,)."""
        return self.sizes.min(1)


def look(source: Source) -> Survey:
    """Looks at `LOOKED_AT` pictures.

    Raises:
      UserError: not one of them can be read.
    """
    sizes, unreadable = [], []
    for found in _each(source, lambda image: image.size):
        (unreadable if isinstance(found, Unreadable) else sizes).append(found)
    if not sizes:
        first = unreadable[0]
        raise UserError(
            f'not one of {len(unreadable)} pictures can be read ({printable(first.name)}: '
            f'{first.reason})'
        )
    return Survey(np.array(sizes), unreadable)


def _each(source, what) -> Iterator:
    chosen = np.unique(np.linspace(0, len(source) - 1, LOOKED_AT).round().astype(int))

    def read(at):
        try:
            return what(source.example(int(chosen[at])).image)
        except Unreadable as error:
            return error

    return read_all(read, 0, len(chosen))


def deviation(source: Source, size: int) -> float:
    """Standard deviation of the pixels, in [-1, 1], of centre crops of `size`."""
    crops = _each(source, lambda image: center_crop(image, size))
    pixels = np.stack([crop for crop in crops if not isinstance(crop, Unreadable)])
    return float(np.std(pixels, dtype=np.float64) / 127.5)


def filled(config: DataConfig, survey: Survey, spec: Spec | None, largest: int) -> DataConfig:
    """The settings with the sizes that they leave to the pictures.

    Args:
      config: image_size and patch are suggested where they are 0; the patches of codes are
        single pixels, as larger ones have few steps of each colour.
      survey: of its pictures.
      spec: of its tokenizer; None: patches of pixels.
      largest: pixels per side that the tokenizer is published for; not heeded without one.
    """
    small = int(np.quantile(survey.shorter, _FEW_SMALLER, method='lower'))
    if spec is not None:
        size = config.image_size or _multiple(min(small, largest), spec.stride)
        return dataclasses.replace(config, image_size=size)
    small = min(small, _PIXELS)
    patch = config.patch or (1 if config.levels else 0)
    size = config.image_size or _multiple(small, patch or (4 if small >= 16 else 2))
    return dataclasses.replace(config, image_size=size, patch=patch or _patch(size))


def _multiple(size, of):
    """The largest multiple of `of` up to `size`, at least two of them: masking needs two tokens."""
    return max(2, size // of) * of


def fitting(size: int, stride: int) -> int:
    """The image size nearest to `size` that is cut into whole tokens of `stride` pixels."""
    return max(2, round(size / stride)) * stride


def _patch(size):
    """The divisor of an image size that is nearest to what makes `_TOKENS` tokens per side."""
    wanted = float(np.clip(size / _TOKENS, *_PATCHES))
    divisors = [n for n in range(1, size // 2 + 1) if size % n == 0]
    return min(divisors, key=lambda n: (abs(n - wanted), n))


def suggested_scale(deviation: float) -> float:
    """Scale of tokens by which they have a deviation of about 1."""
    return round(1.0 / deviation, 2) if deviation > 0.01 else 1.0  # pictures all alike


def found(source: Source, survey: Survey) -> list[str]:
    """Lines on what a source holds: classes, counts, sizes, what is unreadable or left out."""
    lines = [f'{len(source):,} pictures in {_classes(source)}', _sizes(survey)]
    if survey.unreadable:
        some = survey.unreadable[0]
        lines.append(
            f'{len(survey.unreadable)} of them cannot be read ({printable(some.name)}: '
            f'{some.reason})'
        )
    if source.passed_over:
        lines.append(f'left out, as no pictures: {listing.described(source.passed_over)}')
    return lines


def _classes(source):
    names = list(map(printable, source.class_names))
    counts = source.class_counts
    if counts is not None:
        names = [f'{name} ({count:,})' for name, count in zip(names, counts, strict=True)]
    more = f', and {len(names) - _NAMED} more' if len(names) > _NAMED else ''
    kind = 'class' if len(names) == 1 else 'classes'
    return f'{len(names):,} {kind}: {", ".join(names[:_NAMED])}{more}'


def _sizes(survey):
    low, high = survey.sizes.min(0), survey.sizes.max(0)
    looked = len(survey.sizes) + len(survey.unreadable)
    spread = (
        f'all of {low[0]}x{low[1]} pixels'
        if (low == high).all()
        else f'{low[0]} to {high[0]} pixels wide, {low[1]} to {high[1]} high, the shorter side '
        f'{int(np.median(survey.shorter))} in the middle'
    )
    return f'{looked:,} looked at: {spread}'


def enlarged(survey: Survey, size: int, flag: str) -> list[str]:
    """A line if pictures are enlarged to `size`, with a size that avoids it, as `flag`."""
    count = int((survey.shorter < size).sum())
    if not count:
        return []
    small = int(np.median(survey.shorter))
    advice = f'; {flag}{small} would keep their size' if 2 * count > len(survey.sizes) else ''
    return [f'{count} of {len(survey.sizes)} are smaller than {size} pixels and enlarged{advice}']


def scaled(deviation: float, scale: float) -> list[str]:
    """A line if pixels of this deviation, times `scale`, are far from a deviation of 1."""
    times = deviation * scale
    if deviation <= 0.01 or 1.0 / _OFF <= times <= _OFF:
        return []
    return [
        f'tokens have a standard deviation of {times:.2f}, the noise is made for 1: '
        f'--config.data.scale={suggested_scale(deviation)}'
    ]
