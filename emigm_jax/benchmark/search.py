"""The largest batch that a device can hold."""

import itertools
import os
from collections.abc import Callable, Iterator

import jax

from emigm_jax.benchmark.timing import TooLarge
from emigm_jax.parallel import backend


def memory() -> float:
    """Bytes that a program may take on each device of this process.

    Devices that are processors share half of the machine's memory: beyond it, not an error but
    the end of this process, or of another one, would tell.
    """
    stats = jax.local_devices()[0].memory_stats() or {}
    if 'bytes_limit' in stats:
        return float(stats['bytes_limit'])
    total = os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE')
    return total / 2 / jax.local_device_count()


def fitting(
    measure: Callable[[int], dict[str, float]], first: int, most: int
) -> Iterator[tuple[int, dict[str, float]]]:
    """(batch, its figures) for first, 2 first, 4 first, ... <= most, as long as they fit.

    Args:
      measure: the figures of a batch; what it raises for want of memory ends the search.
      first: images.
      most: images.
    """
    for batch in itertools.takewhile(lambda n: n <= most, (first << k for k in itertools.count())):
        try:
            figures = measure(batch)
        except TooLarge:
            return
        except jax.errors.JaxRuntimeError as error:
            if not backend.out_of_memory(error):
                raise
            return
        yield batch, figures
