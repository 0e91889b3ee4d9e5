"""Tries meshes, fastest first, then settings that take less memory, until a train step fits."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jax

from emigm_jax.aot import meshes, program
from emigm_jax.aot.chips import Topology
from emigm_jax.config.settings import Config
from emigm_jax.core.masking import group_count
from emigm_jax.errors import UserError
from emigm_jax.models import emigm
from emigm_jax.nn.functional import parameter_count
from emigm_jax.parallel import sharding


class Attempt(NamedTuple):
    """One compilation: settings as flags, and what came out."""

    config: Config  # that was compiled
    flags: list[str]
    needed: float  # bytes of HBM
    compiled: program.Compiled | None  # None: it does not fit


def plan(config: Config, topology: Topology) -> list[tuple[str, int, list[meshes.Candidate]]]:
    """[(remat, accumulate, meshes)] to try in turn.

    A mesh that the config names is the only one, and its other settings are left alone.

    Raises:
      UserError: no mesh can be had for this batch and these devices.
    """
    named = config.mesh.tensor > 1 or config.mesh.fsdp != 1 or config.mesh.data != -1
    parameters = parameter_count(emigm.network(config.model).shapes())
    levels = []
    own = config.model.remat, config.training.accumulate
    for remat, accumulate in [own] if named else meshes.savings(*own):
        batch = config.training.batch_size
        groups = (
            group_count(config.loss.masking, batch // accumulate) if batch % accumulate == 0 else 1
        )
        candidates = meshes.candidates(
            topology,
            parameters,
            len(config.optimizer.ema_decays),
            config.model,
            batch,
            accumulate,
            groups,
        )
        if named:
            candidates = [meshes.Candidate(config.mesh, 0.0, 0.0)]
        if candidates:
            levels.append((remat, accumulate, candidates))
    if not levels:
        groups = group_count(config.loss.masking, config.training.batch_size)
        raise UserError(
            f'training.batch_size = {config.training.batch_size} cannot be cut over '
            f'{topology.chips} devices in {groups} groups: it must be a multiple of '
            f'{topology.chips * groups} (or mesh.tensor must cut heads and tokens)'
        )
    return levels


def search(
    config: Config,
    topology: Topology,
    devices: Sequence[jax.Device],  # pyright: ignore[reportInvalidTypeForm] -- no stubs in jaxlib
    tell: Callable[[str], object] = print,
) -> Iterator[Attempt]:
    """Yields an `Attempt` per compilation; the last one fits, if any does."""
    for remat, accumulate, candidates in plan(config, topology):
        while candidates:
            best, candidates = candidates[0], candidates[1:]
            tried = with_settings(config, topology, best.mesh, remat, accumulate)
            flags = meshes.flags(tried.mesh, remat, accumulate, config)
            mesh = sharding.make_mesh(tried.mesh, devices)
            tell(f'compiling {described(tried, topology)}')
            try:
                compiled = program.train(tried, mesh)
            except program.TooLarge as error:
                yield Attempt(tried, flags, error.needed, None)
                candidates = meshes.smaller(candidates, best, error.needed, topology.chip.hbm)
                continue
            yield Attempt(tried, flags, compiled.total, compiled)
            return


def with_settings(
    config: Config, topology: Topology, mesh: sharding.MeshConfig, remat: str, accumulate: int
) -> Config:
    """The settings of an attempt."""
    mesh = dataclasses.replace(mesh, slices=topology.slices)
    return dataclasses.replace(
        config,
        mesh=mesh,
        model=dataclasses.replace(config.model, remat=remat),
        training=dataclasses.replace(config.training, accumulate=accumulate),
    )


def described(config: Config, topology: Topology) -> str:
    """'data 1 x fsdp 256, remat none'."""
    slices, *sizes = meshes.shape(config.mesh, topology.chips)
    named = dict(zip(('data', 'fsdp', 'tensor'), sizes, strict=True))
    shown = ' x '.join(f'{n} {s}' for n, s in named.items() if s > 1) or 'one device'
    shown = f'{slices} slices x {shown}' if slices > 1 else shown
    more = f', accumulate {config.training.accumulate}' if config.training.accumulate > 1 else ''
    return f'{shown}, remat {config.model.remat}{more}'
