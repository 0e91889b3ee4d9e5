"""Collectives of a compiled program by kind: how often, how many bytes, over how many devices."""

import math
import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from emigm_jax.aot import hlo

# kind: bytes that each of g devices sends per byte of `payload`, by the usual ring algorithms.
SENT = {
    'all-gather': lambda g: (g - 1) / g,
    'reduce-scatter': lambda g: (g - 1) / g,
    'all-reduce': lambda g: 2 * (g - 1) / g,
    'all-to-all': lambda g: (g - 1) / g,
    'collective-permute': lambda g: 1.0,
}


class Collective(NamedTuple):
    """Collectives of one kind over groups of one size."""

    kind: str  # a key of SENT
    devices: int  # of a group
    between_slices: bool  # over the data-centre network
    # The field takes the place of the method that tuples have.
    count: int  # per step  # pyright: ignore[reportIncompatibleMethodOverride]
    payload: float  # bytes per step of the whole arrays: before a scatter, after a gather

    @property
    def sent(self) -> float:
        """Bytes that each device sends per step."""
        return self.payload * SENT[self.kind](self.devices)


def collectives(module: hlo.Module, slices: int = 1) -> list[Collective]:
    """The collectives of a program, largest first; a -start and its -done count once.

    Args:
      module: from `hlo.parse`.
      slices: the devices, in order, are cut into so many slices.
    """
    totals, chains = {}, set()
    steps = list(hlo.executed(module))
    # A program of several TPU slices is that of one of them, and what goes to the others is sent.
    apart = any(_between(step.instruction) for step in steps)
    per_slice = module.devices if apart else module.devices // slices
    for step in steps:
        sent = _between(step.instruction)
        kind = sent or step.instruction.opcode.removesuffix('-start')
        if kind not in SENT or _continues(step, chains):
            continue
        members = group(step.instruction.attributes, module.devices)
        size = 2 if kind == 'collective-permute' else slices if sent else len(members)
        if size == 1:
            continue
        between = bool(sent) or len({m // per_slice for m in members}) > 1
        moved = sum(
            shape.bytes
            for name in step.instruction.operands
            if name in step.computation
            for shape in step.computation[name].shapes
        )
        if kind == 'all-gather':
            moved *= size
        elif kind == 'all-reduce' and _scatters(step):
            kind = 'reduce-scatter'
        key = kind, size, between
        count, total = totals.get(key, (0, 0.0))
        totals[key] = count + step.times, total + step.times * moved
    rows = [Collective(*key, *value) for key, value in totals.items()]
    return sorted(rows, key=lambda row: -row.sent)


def _between(instruction):
    """Kind of the collective between TPU slices that a `send` is; None for all else."""
    sent = re.search(r'_xla_megascale_transfer_type="(\w+)"', instruction.attributes)
    if instruction.opcode != 'send' or not sent:
        return None
    kind = sent[1].lower().replace('_', '-')
    return kind if kind in SENT else 'collective-permute'


def _continues(step, chains):
    """Whether this is a later part of a collective that is spread over a chain of fusions."""
    chain = re.search(r'chain_id="(\d+)"', step.instruction.attributes)
    channel = re.search(r'channel_id=(\d+)', step.instruction.attributes)
    if not (step.fusion and chain and channel):
        return False
    key = chain[1], channel[1], step.times
    seen = key in chains
    chains.add(key)
    return seen


def _scatters(step):
    # TPU programs write a reduce-scatter as an all-reduce and a slice fused into one.
    return step.fusion != '' and 'all-reduce-scatter' in step.fusion


def group(attributes: str, devices: int) -> Sequence[int]:
    """Numbers of the first group of devices that work together."""
    pairs = re.search(r'source_target_pairs=\{(.*?)\}\}', attributes)
    if pairs:
        return max(_pairs(pairs[1]), key=lambda pair: abs(pair[0] - pair[1]))
    listed = re.search(r'replica_groups=\{\{([\d,]+)\}', attributes)
    if listed:
        return [int(d) for d in listed[1].split(',')]
    iota = re.search(r'replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?', attributes)
    if iota:
        shape, source, order = (_ints(text) for text in iota.groups())
        numbers = np.arange(math.prod(source)).reshape(source)
        numbers = numbers.transpose(order) if order else numbers
        return numbers.reshape(shape)[0].tolist()
    mesh = re.search(
        r'replica_groups=mesh\[([^\]]*)\](?:, device_ids=\(\[([\d,]+)\](?:T\(([\d,]+)\))?\))?'
        r'\s*\{([^}]*)\}',
        attributes,
    )
    if mesh:
        sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", mesh[1])}
        axes = re.findall(r"'([^']+)'", mesh[4])
        numbers = np.arange(math.prod(sizes.values()))
        if mesh[2]:
            numbers = numbers.reshape(_ints(mesh[2]))
            numbers = numbers.transpose(_ints(mesh[3])) if mesh[3] else numbers
        numbers = numbers.reshape(tuple(sizes.values()))
        return numbers[tuple(slice(None) if a in axes else 0 for a in sizes)].reshape(-1).tolist()
    return list(range(devices))


def _ints(text):
    return [int(d) for d in text.split(',')] if text else []


def _pairs(text):
    return [tuple(map(int, pair)) for pair in re.findall(r'(\d+),(\d+)', text)]
