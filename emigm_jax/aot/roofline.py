"""Time of a step from below: each resource's work over its rate, and the model's FLOPs over both.

    compute  matrix products of the program / peak FLOP/s
    vector   element-wise operations / (4 per lane and cycle of 8 x 128 lanes)
    hbm      bytes of instructions / HBM bandwidth
    ici      bytes each device sends / bandwidth of the links that its group can use
    dcn      bytes each device sends to other slices / its share of the network

The step takes at least the longest of them (everything overlaps) and about their sum where nothing
does. MFU = FLOPs of the model's formula (flops.py, forward x 3) / (devices x peak x seconds); work
that is done again for the backward pass is no credit.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

from emigm_jax.aot import chips
from emigm_jax.aot.chips import Topology
from emigm_jax.aot.collectives import Collective
from emigm_jax.aot.costs import Costs


class Estimate(NamedTuple):
    """Seconds per step."""

    compute: float
    vector: float
    hbm: float
    ici: float
    dcn: float

    @property
    def overlapped(self) -> float:
        """If everything overlaps: no step is shorter."""
        return max(self)

    @property
    def serial(self) -> float:
        """If nothing overlaps."""
        return sum(self)

    @property
    def bound(self) -> str:
        """Name of the longest part."""
        return max(self._fields, key=lambda name: getattr(self, name))


def estimate(topology: Topology, costs: Costs, collectives: Sequence[Collective]) -> Estimate:
    """Of a program with these costs and collectives on a topology."""
    chip = topology.chip
    ici = sum(c.sent / bandwidth(topology, c.devices) for c in collectives if not c.between_slices)
    dcn = sum(c.sent for c in collectives if c.between_slices) / chips.DCN_BANDWIDTH
    return Estimate(
        costs.products / chip.flops,
        costs.vector / chip.vector,
        costs.traffic / chip.bandwidth,
        ici,
        dcn,
    )


def bandwidth(topology: Topology, devices: int) -> float:
    """Bytes/s that a device can send within a group of so many: a ring per axis they lie along.

    Groups take the longest axes first; a closed axis carries both directions, an open one one.
    """
    total, covered = 0.0, 1
    for length in sorted(topology.shape, reverse=True):
        if length == 1 or (covered >= devices and total):
            break
        closed = length % topology.chip.ring == 0
        total += topology.chip.link * (2 if closed else 1)
        covered *= length
    return total or topology.chip.link


def utilisation(topology: Topology, model_flops: float, seconds: float) -> float:
    """MFU of a step that spends `model_flops` on all devices together."""
    return model_flops / (topology.chips * topology.chip.flops * seconds)


def alike(topology: Topology, kind: str) -> Topology:
    """A topology of another chip with as many of them, as near to a cube as whole hosts allow."""
    if kind == topology.kind:
        return topology
    chips_of_slice = math.prod(topology.shape)
    shapes = _boxes(chips_of_slice, chips.CHIPS[kind].axes)
    # Hosts are 2 x 2 chips along the first two axes.
    of_hosts = [s for s in shapes if chips_of_slice == 1 or s[0] % 2 == s[1] % 2 == 0]
    best = min(of_hosts or shapes, key=lambda shape: (max(shape), shape))
    return Topology(kind, best, topology.slices)


def _boxes(count, axes) -> list[tuple[int, ...]]:
    if axes == 1:
        return [(count,)]
    divisors = [d for d in range(1, count + 1) if count % d == 0]
    return [(d, *rest) for d in divisors for rest in _boxes(count // d, axes - 1)]
