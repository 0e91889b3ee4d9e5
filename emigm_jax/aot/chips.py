"""TPU chips and topologies as tables: what a device holds, computes and moves.

Origins: the tables of docs.cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e}; v4's link speed is that of
the scaling book (jax-ml.github.io/scaling-book/tpus), whose figures for the others are the same.
Element-wise operations: 8 x 128 lanes x 4 units per core and cycle (scaling book), at the clock
that the peak of the matrix units implies (1.05, 1.5, 1.75 GHz); that of v6e is taken to be v5p's.
"""

import dataclasses
import math
import re
from typing import NamedTuple

from emigm_jax.errors import UserError, near
from emigm_jax.parallel import peaks

DCN_BANDWIDTH = 6.25e9  # bytes/s per chip between slices: 50 Gbit/s (v5p's table; v5e: 25 Gbit/s)


class Chip(NamedTuple):
    """One TPU chip, which JAX sees as one device (v4 and v5p fuse two cores: "megacore")."""

    hbm: float  # bytes a program may use, as the compiler of libtpu 0.0.42 counts them
    flops: float  # bfloat16 matrix products per second, 2 per multiply-add
    vector: float  # element-wise operations per second
    bandwidth: float  # HBM, bytes/s
    link: float  # ICI, bytes/s of one link in one direction
    axes: int  # of the torus; two links each
    ring: int  # an axis of a multiple of this many chips is closed to a ring
    cores: int  # tensor cores
    config: str  # libtpu's name of the way the cores are used
    host: int  # chips of a host, in slices of several hosts


GIB = 2.0**30


def _flops(kind):
    flops = peaks.peak(kind, 'bfloat16')
    assert flops is not None
    return flops


CHIPS = {
    # 32 GiB, of which the compiler keeps some. Cubes of 4 x 4 x 4 are closed by optical switches.
    'v4': Chip(30.75 * GIB, _flops('TPU v4'), 8.6e12, 1.2e12, 45e9, 3, 4, 2, 'megacore', 4),
    # 16 GiB. ICI 400 GB/s over 4 links in both directions.
    'v5e': Chip(15.75 * GIB, _flops('TPU v5e'), 6.1e12, 0.819e12, 50e9, 2, 16, 1, 'default', 4),
    # 95 GiB for programs. ICI 1200 GB/s over 6 links in both directions.
    'v5p': Chip(95.74 * GIB, _flops('TPU v5p'), 14.3e12, 2.765e12, 100e9, 3, 4, 2, 'megacore', 4),
    # 32 GiB. ICI 800 GB/s over 4 links in both directions.
    'v6e': Chip(31.25 * GIB, _flops('TPU v6e'), 7.2e12, 1.638e12, 100e9, 2, 16, 1, 'default', 4),
}


@dataclasses.dataclass(frozen=True)
class Topology:
    """`slices` equal boxes of chips; their `shape` as in 'v5e:16x16'."""

    kind: str
    shape: tuple[int, ...]
    slices: int = 1

    @property
    def chip(self) -> Chip:
        """Its kind of chip."""
        return CHIPS[self.kind]

    @property
    def chips(self) -> int:
        """How many there are in all slices; JAX has as many devices."""
        return self.slices * math.prod(self.shape)

    @property
    def hosts(self) -> int:
        """Machines with up to four chips each."""
        return self.slices * -(-math.prod(self.shape) // self.chip.host)

    @property
    def rings(self) -> tuple[bool, ...]:
        """Per axis of more than one chip, whether it is closed."""
        return tuple(n % self.chip.ring == 0 for n in self.shape if n > 1)

    @property
    def name(self) -> str:
        """'v5e:16x16'."""
        return f'{self.kind}:{"x".join(map(str, self.shape))}'


def topology(name: str, slices: int = 1) -> Topology:
    """'v5e:16x16' -> `Topology`.

    Raises:
      UserError: an unknown chip, or a shape that it does not come in.
    """
    kind, colon, text = name.partition(':')
    if kind not in CHIPS:
        raise UserError(
            f'--topology {name}: no TPU {kind!r}{near(kind, CHIPS)}; there are {", ".join(CHIPS)}'
        )
    example = f'{kind}:{"x".join(["4"] * CHIPS[kind].axes)}'
    if not colon or not re.fullmatch(r'[1-9][0-9]*(x[1-9][0-9]*)*', text):
        raise UserError(f'--topology {name}: write the chip and the shape, as in {example}')
    shape = tuple(map(int, text.split('x')))
    if len(shape) != CHIPS[kind].axes:
        raise UserError(f'--topology {name}: a {kind} has {CHIPS[kind].axes} axes, as in {example}')
    # A single chip, or whole hosts of 2 x 2 chips.
    if math.prod(shape) > 1 and (shape[0] % 2 or shape[1] % 2):
        raise UserError(
            f'--topology {name}: the first two axes must be even (a host has 2 x 2 chips), '
            'or all of them 1'
        )
    return Topology(kind, shape, slices)
