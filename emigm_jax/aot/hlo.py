"""Reads the text of a compiled program: which instructions run, and how many times.

The compiler's own cost analysis counts the body of a loop once, whatever its trip count; layers are
loops here, so costs are counted from the text instead. Trip counts come from `known_trip_count`
where a backend writes it (CPU), else from the loop's condition, `counter < constant` (TPU).
"""

import functools
import math
import re
from collections.abc import Iterator
from typing import NamedTuple

BITS = {
    'pred': 8,
    's2': 2,
    'u2': 2,
    's4': 4,
    'u4': 4,
    's8': 8,
    'u8': 8,
    's16': 16,
    'u16': 16,
    's32': 32,
    'u32': 32,
    's64': 64,
    'u64': 64,
    'f16': 16,
    'bf16': 16,
    'f32': 32,
    'f64': 64,
    'c64': 64,
    'c128': 128,
    'token': 0,
    'opaque': 0,
}
_SHAPE = re.compile(r'\b([a-z]+\d*(?:e\d+m\d+\w*)?)\[([\d,<=]*)\](\{[^}]*\})?')
_NAME = re.compile(r'%([\w.\-]+)')
_CALLED = {
    'while': ('condition', 'body'),
    'fusion': ('calls',),
    'call': ('to_apply',),
    'async-start': ('calls',),
    'conditional': ('true_computation', 'false_computation', 'branch_computations'),
}


class Shape(NamedTuple):
    """One array of an instruction's result."""

    dtype: str
    dims: tuple[int, ...]
    on_chip: bool  # in a memory of the core (layout S(1) and up), not in HBM

    @property
    def bytes(self) -> float:
        """Without padding to tiles."""
        # Eight-bit floats have many names.
        return math.prod(self.dims) * BITS.get(self.dtype, 8) / 8


class Instruction(NamedTuple):
    """`%name = type opcode(operands), attributes`."""

    name: str
    type: str
    opcode: str
    operands: tuple[str, ...]  # names
    literal: str  # what stands between the parentheses
    attributes: str
    root: bool

    @property
    def shapes(self) -> tuple[Shape, ...]:
        """Of the result; a tuple has several."""
        return _shapes(self.type)

    def called(self, key: str) -> tuple[str, ...]:
        """Names of the computations of an attribute, () if it has none."""
        names = re.search(rf'\b{key}=(\{{[^}}]*\}}|%?[\w.\-]+)', self.attributes)
        return tuple(re.findall(r'[\w.\-]+', names[1])) if names else ()


Computation = dict[str, Instruction]  # by name


class Module(NamedTuple):
    """A program."""

    computations: dict[str, Computation]  # by name
    entry: str
    devices: int


class Executed(NamedTuple):
    """An instruction, how often it runs, and where it stands."""

    instruction: Instruction
    times: int
    computation: Computation
    fusion: str  # of the fusion that it is a part of, '' if of none


@functools.lru_cache(maxsize=2**16)
def _shapes(text):
    return tuple(
        Shape(dtype, tuple(int(d.lstrip('<=')) for d in dims.split(',') if d), 'S(' in layout)
        for dtype, dims, layout in _SHAPE.findall(text)
    )


def parse(text: str) -> Module:
    """The program of the text of an optimised program (`compiled.as_text()`)."""
    computations, entry, current = {}, '', None
    counts = re.search(r'num_partitions=(\d+)', text)
    replicas = re.search(r'replica_count=(\d+)', text)
    for line in text.splitlines():
        if current is None or not line.startswith(' '):
            opened = re.match(r'(ENTRY )?%?([\w.\-]+) .*\{$', line)
            if opened and not line.startswith('HloModule'):
                current = computations.setdefault(opened[2], {})
                entry = opened[2] if opened[1] else entry
            continue
        if ' = ' in line:
            instruction = _instruction(line.strip())
            current[instruction.name] = instruction
    devices = int(counts[1] if counts else 1) * int(replicas[1] if replicas else 1)
    return Module(computations, entry, devices)


def _instruction(line):
    head, rest = line.split(' = ', 1)
    end = _closing(rest, 0) + 1 if rest.startswith('(') else rest.index(' ')
    kind, rest = rest[:end], rest[end:].lstrip()
    opcode, _, rest = rest.partition('(')
    end = _closing('(' + rest, 0) - 1
    literal, attributes = rest[:end], rest[end + 1 :]
    root = head.startswith('ROOT ')
    name = head.removeprefix('ROOT ').lstrip('%')
    return Instruction(name, kind, opcode, tuple(_NAME.findall(literal)), literal, attributes, root)


def _closing(text, start):
    depth = 0
    for place in re.finditer(r'[()]', text[start:]):
        depth += 1 if place[0] == '(' else -1
        if depth == 0:
            return start + place.start()
    raise ValueError(f'no closing parenthesis in {text[:80]!r}')


def executed(module: Module) -> Iterator[Executed]:
    """Yields an `Executed` for every instruction that runs, parts of fusions included.

    Every branch of a conditional counts; what reductions apply per element does not.
    """
    yield from _walk(module, module.entry, 1, '')


def _walk(module, name, times, fusion):
    computation = module.computations[name]
    for instruction in computation.values():
        yield Executed(instruction, times, computation, fusion)
        opcode = instruction.opcode
        for key in _CALLED.get(opcode, ()):
            for called in instruction.called(key):
                inner = instruction.name if opcode == 'fusion' else fusion
                runs = trips(module, computation, instruction) if opcode == 'while' else 1
                yield from _walk(module, called, times * runs, inner)


def trips(module: Module, computation: Computation, loop: Instruction) -> int:
    """How many times the body of a `while` runs; 1 if its text does not say."""
    count = re.search(r'"known_trip_count":\{"n":"(\d+)"\}', loop.attributes)
    if count:
        return int(count[1])
    condition = module.computations[loop.called('condition')[0]]
    test = next(i for i in condition.values() if i.root)
    direction = re.search(r'direction=(\w+)', test.attributes)
    if test.opcode != 'compare' or not direction or direction[1] not in ('LT', 'GT'):
        return 1
    counter, limit = (condition[n] for n in test.operands[:: 1 if direction[1] == 'LT' else -1])
    place = re.search(r'index=(\d+)', counter.attributes)
    if limit.opcode != 'constant' or counter.opcode != 'get-tuple-element' or not place:
        return 1
    place = int(place[1])
    body = module.computations[loop.called('body')[0]]
    # JAX counts from 0 by 1; loops that the compiler has changed may not.
    start = _element(computation, computation[loop.operands[0]], place)
    start = int(start.literal) if start and start.opcode == 'constant' else 0
    following = _element(body, next(i for i in body.values() if i.root), place)
    steps = [
        int(body[n].literal)
        for n in (following.operands if following and following.opcode == 'add' else ())
        if n in body and body[n].opcode == 'constant'
    ]
    return max(0, -(-(int(limit.literal) - start) // (steps[0] if steps else 1)))


def _element(computation, elements, place):
    """Element `place` of a tuple, through copies; None if it is not made here."""
    if elements.opcode != 'tuple':
        return None
    element = computation.get(elements.operands[place])
    while element is not None and element.opcode in ('copy', 'bitcast', 'convert'):
        element = computation.get(element.operands[0])
    return element
