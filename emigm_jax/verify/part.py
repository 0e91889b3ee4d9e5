"""What a part of the verification is, and how parts are run one by one."""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from emigm_jax.core import randomness
from emigm_jax.parallel import agreement

# {dtype, or (platform, dtype) where that has one of its own: the largest error that is usual}.
# None: reported, not judged. A part is not run in a dtype that is not named.
Limits = Mapping[str | tuple[str, str], float | None]


class Finding(NamedTuple):
    """What a check has measured."""

    error: float
    measured: str  # what the error is of, for the table


@dataclasses.dataclass(frozen=True)
class Part:
    """One thing that must hold on every machine."""

    name: str
    check: Callable[[str], Finding]  # of the dtype of matrix products
    usual: Limits
    remedy: str  # what to look at where it is off


class Result(NamedTuple):
    """How one part came out."""

    part: Part
    dtype: str
    error: float | None  # None: it raised, or is infinite
    usual: float | None  # None: not judged
    measured: str  # or what it raised, in one line
    seconds: float

    @property
    def off(self) -> bool:
        """Whether it is not as it should be; NaN never is."""
        return self.error is None or (self.usual is not None and not self.error <= self.usual)

    @property
    def verdict(self) -> str:
        """One word or two."""
        return 'OFF' if self.off else 'reported' if self.usual is None else 'ok'


def run(
    parts: Sequence[Part],
    dtypes: Sequence[str],
    bar: Callable[[Sequence[Any]], Iterable[Any]] = lambda steps: steps,
) -> Iterator[Result]:
    """Yields the `Result` of every part in every dtype that it has, float32 products exact.

    Args:
      parts: what to run.
      dtypes: of matrix products, in this order.
      bar: wraps the steps to show how far they are.
    """
    steps = [
        (part, dtype, part.usual[key])
        for dtype in dtypes
        for part in parts
        if (key := _key(part, dtype)) is not None
    ]
    for step in bar(steps):
        yield _result(*step)


def _key(part, dtype):
    """Of the limit that holds here, or None."""
    here = jax.default_backend(), dtype
    return here if here in part.usual else dtype if dtype in part.usual else None


def _result(part, dtype, usual):
    start = time.perf_counter()
    try:
        with precision(dtype), randomness.pinned():
            error, measured = part.check(dtype)
    except Exception as raised:  # whatever it is, the other parts still run
        error, measured = np.inf, f'{type(raised).__name__}: {" ".join(str(raised).split())}'[:160]
    # Of several processes each has devices of its own, and the worst one counts. NaN is the worst.
    worst = float(agreement.gather(np.array([error], np.float32)).max())
    if np.isinf(worst) and np.isfinite(error):
        measured = f'another process failed; here {error:.1e}, {measured}'
    error = None if np.isinf(worst) else worst
    return Result(part, dtype, error, usual, measured, time.perf_counter() - start)


@contextlib.contextmanager
def precision(dtype: str) -> Iterator[None]:
    """In which products of float32 are products of float32.

    By default GPUs round their factors to 10 bits (TF32) and TPUs to 7 (bfloat16).
    """
    with jax.default_matmul_precision('highest' if dtype == 'float32' else 'default'):
        yield


def relative(actual: Any, expected: Any) -> float:
    """Largest difference, in standard deviations of what is expected."""
    actual, expected = (np.asarray(a, np.float64) for a in (actual, expected))
    if actual.shape != expected.shape:
        raise ValueError(f'shape {actual.shape} in place of {expected.shape}')
    return float(np.abs(actual - expected).max() / expected.std())


def differing(actual: Any, expected: Any) -> float:
    """Share of numbers that are not the same."""
    actual, expected = np.asarray(actual), np.asarray(expected)
    if actual.shape != expected.shape:
        raise ValueError(f'shape {actual.shape} in place of {expected.shape}')
    return float(np.mean(actual != expected))
