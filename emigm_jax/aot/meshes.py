"""Which meshes to try, fastest first, before anything is compiled.

For a batch and a number of devices activations take the same memory on every mesh (`tensor` cuts
them, but of as many times more images); what differs is the state a device keeps, the update it
computes and what travels:

    data   2 x 4 P bytes of gradients are summed, every device updates the whole state
    fsdp   2 x 2 P bytes of bfloat16 kernels are gathered, 4 P of gradients scattered, 1/f updated;
           kernels twice over 64 devices and more, where the TPU's compiler gathers those of this
           size by summing arrays that are zero outside the shard
    tensor activations travel twice per layer and pass; for batches that do not go round otherwise
"""

import math
from typing import NamedTuple

from emigm_jax.aot import roofline
from emigm_jax.aot.chips import Topology
from emigm_jax.config.settings import Config
from emigm_jax.models.emigm import ModelConfig
from emigm_jax.parallel.sharding import MeshConfig

STATE_PASSES = 9  # reads and writes of float32 per parameter in an update: p, m, v, EMA, gradient
TENSOR = (1, 2, 4, 8)
# Devices from which on libtpu 0.0.42 gathers 6 to 13 MB by sums (over 32 it does not, nor 33 MB).
SUMMED = 64
ROOM = 0.6  # of HBM that the state may take: something must be left for activations


class Candidate(NamedTuple):
    """A mesh, what its state takes on a device, and what it costs per step beyond products."""

    mesh: MeshConfig
    state: float  # bytes
    seconds: float


def candidates(
    topology: Topology,
    parameters: int,
    averages: int,
    model: ModelConfig,
    batch: int,
    accumulate: int,
    groups: int,
) -> list[Candidate]:
    """Meshes that the batch and the devices allow, fastest first.

    Args:
      parameters: how many the network has; `averages` copies of them are kept beside AdamW's two.
      batch, accumulate, groups: as `sharding.check_batch` wants them.
    """
    per_slice = topology.chips // topology.slices
    divisible = []
    for tensor in TENSOR:
        if per_slice % tensor or model.heads % tensor or model.tokens % tensor:
            continue
        shards = per_slice // tensor
        if batch % (shards * topology.slices * accumulate * groups):
            continue
        for fsdp in (d for d in range(1, shards + 1) if shards % d == 0):
            mesh = MeshConfig(topology.slices, shards // fsdp, fsdp, tensor)
            state = 4.0 * parameters * (3 + averages) / (fsdp * tensor)
            seconds = _seconds(topology, mesh, parameters, model, batch, accumulate)
            divisible.append(Candidate(mesh, state, seconds))
    # If no mesh leaves room, that with the least state is worth one compilation.
    least = min((c.state for c in divisible), default=0.0)
    roomy = [c for c in divisible if c.state <= max(least, ROOM * topology.chip.hbm)]
    return sorted(roomy, key=lambda c: (c.seconds, c.state))


def _seconds(topology, mesh, parameters, model, batch, accumulate):
    chip, kept = topology.chip, parameters / (mesh.fsdp * mesh.tensor)
    update = 4 * STATE_PASSES * kept / chip.bandwidth
    used = parameters / mesh.tensor
    ring = lambda n: (n - 1) / n / roofline.bandwidth(topology, n) if n > 1 else 0.0
    # Gathered in every microbatch, forward and backward; gradients are scattered likewise, and then
    # summed over the copies.
    twice = 2 if mesh.fsdp >= SUMMED else 1
    weights = accumulate * (twice * 2 * 2 + 4) * used * ring(mesh.fsdp)
    sums = accumulate if mesh.fsdp * mesh.tensor > 1 else 1  # see `training.step`
    weights += sums * 2 * 4 * kept * ring(mesh.data)
    images = batch / (mesh.slices * mesh.data * mesh.fsdp)
    layers = model.encoder_depth + model.decoder_depth
    # Two sums per layer, forward and backward, of float32 activations.
    rows = images * (model.tokens + model.buffer) * model.width
    activations = 2 * 2 * layers * 2 * 4 * rows * ring(mesh.tensor)
    return update + weights + activations


def smaller(
    candidates: list[Candidate], failed: Candidate, needed: float, hbm: float
) -> list[Candidate]:
    """Those `candidates` that may fit into `hbm` bytes where `failed` needs `needed`.

    Beside the state nothing depends on the mesh: `tensor` cuts activations, but of as many times
    more images.
    """
    rest = max(0.0, needed - failed.state)
    return [c for c in candidates if c.state + rest <= hbm]


# What to try in turn, in the order in which it costs time. Another microbatch gathers the weights
# once more; `full` adds a third to all products. `none` is not there: reading back what it keeps
# takes longer than computing it again (H on v5e:16x16: 97 GB to and from HBM in place of 50).
_SAVINGS = (
    ('dots', 1),
    ('dots', 2),
    ('full', 1),
    ('full', 2),
    ('full', 4),
    ('full', 8),
    ('full', 16),
)


def savings(remat: str, accumulate: int) -> list[tuple[str, int]]:
    """[(remat, accumulate)] to try in turn, none of which keeps more than the config asks for."""
    return [
        (name, accumulate * factor)
        for name, factor in _SAVINGS
        if not (remat == 'full' and name == 'dots')
    ]


def flags(mesh: MeshConfig, remat: str, accumulate: int, config: Config) -> list[str]:
    """The settings that differ from a config's, as flags."""
    said = [
        (f'mesh.{axis}', getattr(mesh, axis), getattr(config.mesh, axis))
        for axis in ('slices', 'data', 'fsdp', 'tensor')
    ]
    said.append(('model.remat', remat, config.model.remat))
    said.append(('training.accumulate', accumulate, config.training.accumulate))
    return [f'--config.{name}={new}' for name, new, old in said if new != old]


def shape(mesh: MeshConfig, devices: int) -> tuple[int, ...]:
    """(slices, data, fsdp, tensor) with -1 filled in."""
    sizes = [mesh.slices, mesh.data, mesh.fsdp, mesh.tensor]
    fixed = math.prod(s for s in sizes if s != -1)
    return tuple(devices // fixed if s == -1 else s for s in sizes)
