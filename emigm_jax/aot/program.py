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

import jax
import numpy as np

from emigm_jax.aot import collectives, costs, hlo
from emigm_jax.errors import UserError
from emigm_jax.models import emigm
from emigm_jax.sampling.sampler import Sampler
from emigm_jax.training import program as training


@dataclasses.dataclass(frozen=True)
class Compiled:
    """What one compilation says; bytes are those of one device."""

    state: dict  # name: (bytes on a device, bytes in all)
    arguments: float  # bytes
    temporary: float  # activations, gradients, gathered parameters
    code: float
    costs: costs.Costs
    collectives: list  # of collectives.Collective
    model_flops: float  # of all devices, by flops.py
    reported_flops: float  # the compiler's own count, which takes a loop's body once
    largest: list  # [(bytes, array, times, what it comes from)] of the largest temporaries
    seconds: float  # of compilation

    @property
    def total(self):
        """Bytes of HBM on a device."""
        return self.arguments + self.temporary + self.code


class TooLarge(Exception):
    """The program does not fit; `needed` is what the compiler says it takes, in bytes."""

    def __init__(self, needed):
        super().__init__(needed)
        self.needed = needed


def devices(topology):
    """Stand-ins for the devices of a `chips.Topology`, slice after slice.

    Raises:
      UserError: libtpu is not installed, or knows no such topology.
    """
    library = importlib.util.find_spec('libtpu')
    if library is None:
        raise UserError("compiling for TPUs needs libtpu: pip install 'emigm_jax[aot]'")
    given = os.environ.get('LIBTPU_INIT_ARGS', '')
    file = pathlib.Path(library.origin).with_name('libtpu.so')
    os.environ['LIBTPU_INIT_ARGS'] = ' '.join([given, *deep_stacks(given, file)]).strip()
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
            found = topologies.get_topology_desc(
                platform='tpu', topology_name=topology.name, **options
            )
    except Exception as error:
        reason = ' '.join(str(error).split())
        raise UserError(f'--topology {topology.name}: {reason}') from error
    return found.devices


# The compiler recurses through products that are fused with one another, in threads of 128 KiB,
# which a train step of L at 512 pixels for v6e has overflowed.
_STACKS = ('default_thread_stack_size', 'fibers_default_thread_stack_size')


def deep_stacks(given, file):
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


def train(config, mesh):
    """Compiles the train step of a `Config` for a mesh.

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


def sample(config, mesh, batch):
    """Compiles the sampler of a `Config` for `batch` images, cut over all axes of a mesh.

    Raises: as `train`.
    """
    if batch % mesh.size:
        raise UserError(f'--batch-size {batch} must be a multiple of the {mesh.size} devices')
    flat = jax.sharding.Mesh(mesh.devices.reshape(-1), ('data',))
    sampler = Sampler(config.model, config.sampling, flat)
    whole = jax.sharding.NamedSharding(flat, jax.sharding.PartitionSpec())
    placed = jax.tree.map(
        lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=whole),
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
        state={name: (held(tree), held(tree, whole=True)) for name, tree in state.items()},
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


def needed(message):
    """Bytes that the compiler's refusal names; raises RuntimeError if it names none."""
    units = {'K': 2**10, 'M': 2**20, 'G': 2**30, 'T': 2**40}
    found = re.search(r'(?:Used |\()([\d.]+)([KMGT])(?: of |\) exceeds)', message)
    if 'RESOURCE_EXHAUSTED' not in message or not found:
        raise RuntimeError(f'the compiler failed: {message}')
    return float(found[1]) * units[found[2]]


def held(tree, whole=False):
    """Bytes of a tree of placed shapes on one device, or in all."""
    sizes = [
        math.prod(a.shape if whole else a.sharding.shard_shape(a.shape))
        * np.dtype(a.dtype).itemsize
        for a in jax.tree.leaves(tree)
    ]
    return float(sum(sizes))


def largest(module, count=5):
    """The largest arrays in HBM that the program makes: [(bytes, array, how many, origin)]."""
    found = {}
    for made in hlo.executed(module):
        name = made.instruction.opcode
        if made.fusion or name in ('parameter', 'get-tuple-element', 'tuple', 'while', 'bitcast'):
            continue
        origin = re.search(r'op_name="([^"]*)"', made.instruction.attributes)
        for shape in made.instruction.shapes:
            if not shape.on_chip and not name.endswith('-done'):
                text = f'{shape.dtype}[{",".join(map(str, shape.dims))}]'
                _, times, where = found.get(text, (0, 0, ''))
                where = where or (origin[1] if origin else '')
                found[text] = shape.bytes, times + 1, where
    rows = [(size, text, times, where) for text, (size, times, where) in found.items()]
    return sorted(rows, reverse=True)[:count]
