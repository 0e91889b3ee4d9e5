"""Tries meshes, fastest first, then settings that take less memory, until a train step fits."""

import dataclasses
from typing import NamedTuple

from emigm_jax.aot import meshes, program
from emigm_jax.core.masking import group_count
from emigm_jax.errors import UserError
from emigm_jax.models import emigm
from emigm_jax.nn.functional import parameter_count
from emigm_jax.parallel import sharding


class Attempt(NamedTuple):
    """One compilation: settings as flags, and what came out."""

    config: object  # the Config that was compiled
    flags: list
    needed: float  # bytes of HBM
    compiled: object  # program.Compiled; None: it does not fit


def plan(config, topology):
    """[(remat, accumulate, [meshes.Candidate])] to try in turn.

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
        found = meshes.candidates(
            topology,
            parameters,
            len(config.optimizer.ema_decays),
            config.model,
            batch,
            accumulate,
            groups,
        )
        if named:
            found = [meshes.Candidate(config.mesh, 0.0, 0.0)]
        if found:
            levels.append((remat, accumulate, found))
    if not levels:
        groups = group_count(config.loss.masking, config.training.batch_size)
        raise UserError(
            f'training.batch_size = {config.training.batch_size} cannot be cut over '
            f'{topology.chips} devices in {groups} groups: it must be a multiple of '
            f'{topology.chips * groups} (or mesh.tensor must cut heads and tokens)'
        )
    return levels


def search(config, topology, devices, tell=print):
    """Yields an `Attempt` per compilation; the last one fits, if any does."""
    for remat, accumulate, found in plan(config, topology):
        while found:
            best, found = found[0], found[1:]
            tried = with_settings(config, topology, best.mesh, remat, accumulate)
            flags = meshes.flags(tried.mesh, remat, accumulate, config)
            mesh = sharding.make_mesh(tried.mesh, devices)
            tell(f'compiling {described(tried, topology)}')
            try:
                made = program.train(tried, mesh)
            except program.TooLarge as error:
                yield Attempt(tried, flags, error.needed, None)
                found = meshes.smaller(found, best, error.needed, topology.chip.hbm)
                continue
            yield Attempt(tried, flags, made.total, made)
            return


def with_settings(config, topology, mesh, remat, accumulate):
    """The `Config` of an attempt."""
    mesh = dataclasses.replace(mesh, slices=topology.slices)
    return dataclasses.replace(
        config,
        mesh=mesh,
        model=dataclasses.replace(config.model, remat=remat),
        training=dataclasses.replace(config.training, accumulate=accumulate),
    )


def described(config, topology):
    """'data 1 x fsdp 256, remat none'."""
    slices, *sizes = meshes.shape(config.mesh, topology.chips)
    named = dict(zip(('data', 'fsdp', 'tensor'), sizes, strict=True))
    shown = ' x '.join(f'{n} {s}' for n, s in named.items() if s > 1) or 'one device'
    shown = f'{slices} slices x {shown}' if slices > 1 else shown
    more = f', accumulate {config.training.accumulate}' if config.training.accumulate > 1 else ''
    return f'{shown}, remat {config.model.remat}{more}'
