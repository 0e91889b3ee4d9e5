"""Compiles the train step and the sampler for TPUs that are not there, and reads what comes out."""

import contextlib
import dataclasses
import importlib.util
import math
import mmap
import os
import pathlib
import re
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from emigm_jax.aot import collectives, costs, hlo
from emigm_jax.aot.chips import Topology
from emigm_jax.config.settings import Config
from emigm_jax.errors import UserError
from emigm_jax.models import emigm
from emigm_jax.sampling.sampler import Sampler
from emigm_jax.training import program as training


@dataclasses.dataclass(frozen=True)
class Compiled:
    """What one compilation says; bytes are those of one device."""

    state: dict[str, tuple[float, float]]  # name: (bytes on a device, bytes in all)
    arguments: float  # bytes
    temporary: float  # activations, gradients, gathered parameters
    code: float
    costs: costs.Costs
    collectives: list[collectives.Collective]
    model_flops: float  # of all devices, by flops.py
    reported_flops: float  # the compiler's own count, which takes a loop's body once
    # (bytes, array, times, what it comes from) of the largest temporaries
    largest: list[tuple[float, str, int, str]]
    seconds: float  # of compilation

    @property
    def total(self) -> float:
        """Bytes of HBM on a device."""
        return self.arguments + self.temporary + self.code


class TooLarge(Exception):
    """The program does not fit; `needed` is what the compiler says it takes, in bytes."""

    def __init__(self, needed: float):
        super().__init__(needed)
        self.needed = needed


# jaxlib has no stubs, so that its classes are variables to type checkers.
def devices(topology: Topology) -> Sequence[jax.Device]:  # pyright: ignore[reportInvalidTypeForm]
    """Stand-ins for the devices of a topology, slice after slice.

    Raises:
      UserError: libtpu is not installed, or knows no such topology.
    """
    library = importlib.util.find_spec('libtpu')
    if library is None:
        raise UserError("compiling for TPUs needs libtpu: pip install 'emigm_jax[aot]'")
    assert library.origin is not None  # a package, which has an __init__.py
    flags = os.environ.get('LIBTPU_INIT_ARGS', '')
    file = pathlib.Path(library.origin).with_name('libtpu.so')
    os.environ['LIBTPU_INIT_ARGS'] = ' '.join([flags, *deep_stacks(flags, file)]).strip()
    # Nothing here touches a TPU, so several processes may load the library, and it need not ask
    # a metadata server which TPU it is on.
    os.environ.setdefault('ALLOW_MULTIPLE_LIBTPU_LOAD', '1')
    os.environ.setdefault('TPU_SKIP_MDS_QUERY', '1')
    from jax.experimental import topologies

    chip, chips = topology.chip, math.prod(topology.shape)
    options = {'chip_config_name': chip.config, 'num_slices': topology.slices}
    if chips < chip.host:
        options['chips_per_host_bounds'] = (1, 1, 1)
    try:
        with _quiet():
            description = topologies.get_topology_desc(
                platform='tpu', topology_name=topology.name, **options
            )
    except Exception as error:
        reason = ' '.join(str(error).split())
        raise UserError(f'--topology {topology.name}: {reason}') from error
    return description.devices


# The compiler recurses through products that are fused with one another, in threads of 128 KiB,
# which a train step of L at 512 pixels for v6e has overflowed.
_STACKS = ('default_thread_stack_size', 'fibers_default_thread_stack_size')


def deep_stacks(given: str, file: os.PathLike | str) -> list[str]:
    """Flags for libtpu that give its threads 4 MiB, but for those that are given already.

    A flag that a library does not know ends the process, so they are looked for in `file`.
    """
    with open(file, 'rb') as f, mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ) as library:
        return [
            f'--{name}={2**22}'
            for name in _STACKS
            if f'--{name}=' not in given and library.find(f'FLAGS_{name}\0'.encode()) >= 0
        ]


@contextlib.contextmanager
def _quiet():
    """Keeps the library's remarks about the missing TPU off the terminal."""
    saved, sink = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(sink, 2)
    try:
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(sink)


def train(config: Config, mesh: jax.sharding.Mesh) -> Compiled:
    """Compiles the train step for a mesh.

    Raises:
      UserError: the batch cannot be cut over the mesh.
      TooLarge: it does not fit into a device.
    """
    built = training.build(config, mesh, 1, 2)
    state = {
        'parameters': built.state['params'],
        'optimizer': built.state['opt'],
        'EMA': built.state['ema'],
    }
    return _compiled(built.lower(), state, config.training.batch_size * built.flops, mesh)


def sample(config: Config, mesh: jax.sharding.Mesh, batch: int) -> Compiled:
    """Compiles the sampler for `batch` images, cut over all axes of a mesh.

    Raises: as `train`.
    """
    if batch % mesh.size:
        raise UserError(f'--batch-size {batch} must be a multiple of the {mesh.size} devices')
    flat = jax.sharding.Mesh(mesh.devices.reshape(-1), ('data',))
    sampler = Sampler(config.model, config.sampling, flat)
    replicated = jax.sharding.NamedSharding(flat, jax.sharding.PartitionSpec())
    placed = jax.tree.map(
        lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=replicated),
        emigm.network(config.model).shapes(),
    )
    return _compiled(sampler.lower(batch), {'parameters': placed}, batch * sampler.flops, mesh)


def _compiled(lowered, state, model_flops, mesh):
    start = time.perf_counter()
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        raise TooLarge(needed(str(error))) from error
    seconds = time.perf_counter() - start
    memory = compiled.memory_analysis()
    # Donated arguments are overwritten by what comes out.
    arguments = (
        memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    )
    module = hlo.parse(compiled.as_text())
    slices = mesh.shape.get('slice', 1)
    return Compiled(
        state={
            name: (tree_bytes(tree), tree_bytes(tree, sharded=False))
            for name, tree in state.items()
        },
        arguments=float(arguments),
        # Not temp_size_in_bytes: programs whose temporaries are 1.25 times the HBM by that count
        # are accepted. The peak has the arguments in it, as has what a refusal names.
        temporary=max(0.0, float(memory.peak_memory_in_bytes - arguments)),
        code=float(memory.generated_code_size_in_bytes),
        costs=costs.costs(module),
        collectives=collectives.collectives(module, slices),
        model_flops=float(model_flops),
        reported_flops=float(compiled.cost_analysis()['flops']),
        largest=largest(module),
        seconds=seconds,
    )


def needed(message: str) -> float:
    """Bytes that the compiler's refusal names; raises RuntimeError if it names none."""
    units = {'K': 2**10, 'M': 2**20, 'G': 2**30, 'T': 2**40}
    size = re.search(r'(?:Used |\()([\d.]+)([KMGT])(?: of |\) exceeds)', message)
    if 'RESOURCE_EXHAUSTED' not in message or not size:
        raise RuntimeError(f'the compiler failed: {message}')
    return float(size[1]) * units[size[2]]


def tree_bytes(tree: Any, sharded: bool = True) -> float:
    """Bytes of a tree of placed shapes on one device, or in all."""
    sizes = [
        math.prod(a.sharding.shard_shape(a.shape) if sharded else a.shape)
        * np.dtype(a.dtype).itemsize
        for a in jax.tree.leaves(tree)
    ]
    return float(sum(sizes))


def largest(module: hlo.Module, count: int = 5) -> list[tuple[float, str, int, str]]:
    """The largest arrays in HBM that the program makes: [(bytes, array, how many, origin)]."""
    arrays = {}
    for step in hlo.executed(module):
        name = step.instruction.opcode
        if step.fusion or name in ('parameter', 'get-tuple-element', 'tuple', 'while', 'bitcast'):
            continue
        origin = re.search(r'op_name="([^"]*)"', step.instruction.attributes)
        for shape in step.instruction.shapes:
            if not shape.on_chip and not name.endswith('-done'):
                text = f'{shape.dtype}[{",".join(map(str, shape.dims))}]'
                _, times, where = arrays.get(text, (0, 0, ''))
                where = where or (origin[1] if origin else '')
                arrays[text] = shape.bytes, times + 1, where
    rows = [(size, text, times, where) for text, (size, times, where) in arrays.items()]
    return sorted(rows, reverse=True)[:count]
