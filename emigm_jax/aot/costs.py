"""Work of a compiled program on one device, loops multiplied out: FLOPs, vector work, HBM bytes."""

import math
import re
from typing import NamedTuple

import numpy as np

from emigm_jax.aot import hlo


class Costs(NamedTuple):
    """Per step and device."""

    products: float  # FLOPs of matrix products, 2 per multiply-add
    vector: float  # elements that element-wise arithmetic makes, random bits included
    traffic: float  # bytes that instructions read from and write to HBM


# Element-wise arithmetic. Moves, comparisons and selections are left out.
_VECTOR = {
    'add',
    'subtract',
    'multiply',
    'divide',
    'maximum',
    'minimum',
    'and',
    'or',
    'xor',
    'not',
    'negate',
    'abs',
    'power',
    'remainder',
    'shift-left',
    'shift-right-logical',
    'shift-right-arithmetic',
    'exponential',
    'exponential-minus-one',
    'log',
    'log-plus-one',
    'logistic',
    'tanh',
    'rsqrt',
    'sqrt',
    'cosine',
    'sine',
    'erf',
    'reduce',
}
# They move nothing, or their parts are counted.
_FREE = {
    'parameter',
    'tuple',
    'get-tuple-element',
    'bitcast',
    'constant',
    'while',
    'call',
    'conditional',
    'after-all',
    'partition-id',
    'replica-id',
    'iota',
    'opt-barrier',
    'add-dependency',
    'async-start',
}
_SLICES = ('dynamic-slice', 'slice', 'gather')


def costs(module: hlo.Module) -> Costs:
    """The work of a program."""
    products = vector = traffic = 0.0
    for step in hlo.executed(module):
        instruction = step.instruction
        if instruction.opcode in ('dot', 'convolution'):
            products += step.times * product(step.computation, instruction)
        elif instruction.opcode == 'custom-call':  # kernels say what they do
            said = re.search(r'"cost_estimate":\{"flops":"(\d+)"', instruction.attributes)
            products += step.times * (float(said[1]) if said else 0.0)
        elif instruction.opcode in _VECTOR:
            shapes = instruction.shapes
            if instruction.opcode == 'reduce':  # works on what goes in
                shapes = step.computation[instruction.operands[0]].shapes
            vector += step.times * sum(math.prod(shape.dims) for shape in shapes)
        if not step.fusion:
            traffic += step.times * moved(module, step.computation, instruction)
    return Costs(float(products), float(vector), traffic)


def product(computation: hlo.Computation, instruction: hlo.Instruction) -> float:
    """FLOPs of a dot or a convolution (TPU programs write all products as convolutions)."""
    left, right = (computation[name].shapes[0].dims for name in instruction.operands[:2])
    out = instruction.shapes[0].dims
    if instruction.opcode == 'dot':
        contracted = re.search(r'lhs_contracting_dims=\{([\d,]*)\}', instruction.attributes)
        assert contracted, instruction
        axes = [int(d) for d in contracted[1].split(',') if d]
        return 2.0 * math.prod(out) * math.prod(left[axis] for axis in axes)
    labels = re.search(r'dim_labels=(\w+)_(\w+)->(\w+)', instruction.attributes)
    assert labels, instruction
    lhs, rhs, result = labels.groups()
    window = dict(re.findall(r'(\w+)=([\w\-]+)', _window(instruction.attributes)))
    spatial = sorted(set(result) - set('bf'))
    total = 2.0 * out[result.index('b')] * out[result.index('f')] * right[rhs.index('i')]
    for axis, label in enumerate(spatial):
        setting = lambda name, default, axis=axis: window.get(
            name, 'x'.join([default] * len(spatial))
        ).split('x')[axis]
        # Batch dimensions become windows in which one tap falls on data; only such taps count.
        low = int(setting('pad', '0_0').split('_')[0])
        dilation = int(setting('lhs_dilate', '1'))
        reach = (left[lhs.index(label)] - 1) * dilation
        at = (
            np.arange(out[result.index(label)])[:, None] * int(setting('stride', '1'))
            + np.arange(int(setting('size', '1'))) * int(setting('rhs_dilate', '1'))
            - low
        )
        total *= np.count_nonzero((at >= 0) & (at <= reach) & (at % dilation == 0))
    return total


def _window(attributes):
    window = re.search(r'window=\{([^}]*)\}', attributes)
    return window[1] if window else ''


def moved(module: hlo.Module, computation: hlo.Computation, instruction: hlo.Instruction) -> float:
    """Bytes that an instruction, or a fusion as a whole, reads from and writes to HBM."""
    opcode = instruction.opcode
    if opcode in _FREE or opcode.endswith(('-done', '-update')):
        return 0.0
    if '"AllocateBuffer"' in instruction.attributes:  # a place to write to, nothing is written
        return 0.0
    size = lambda shapes: sum(shape.bytes for shape in shapes if not shape.on_chip)
    if opcode in ('copy-start', 'slice-start', 'dynamic-slice-start'):
        # The result names target and source; both move as many bytes as the smaller has.
        arrays = [shape for shape in instruction.shapes if shape.dims]
        smaller = min((shape.bytes for shape in arrays), default=0.0)
        return smaller * sum(not shape.on_chip for shape in arrays[:2])
    if opcode == 'fusion':
        inner = module.computations[instruction.called('calls')[0]]
        reads = sum(
            _read(module, inner, number, computation[name].shapes)
            for number, name in enumerate(instruction.operands)
            if name in computation
        )
        root = next(i for i in inner.values() if i.root)
        roots = [inner[n] for n in root.operands] if root.opcode == 'tuple' else [root]
        if len(roots) != len(instruction.shapes):
            return reads + size(instruction.shapes)
        return reads + sum(
            0.0 if shape.on_chip else _written(inner, one, shape)
            for one, shape in zip(roots, instruction.shapes, strict=True)
        )
    operands = [computation[name].shapes for name in instruction.operands if name in computation]
    if opcode in _SLICES:
        return 2 * size(instruction.shapes)
    if opcode == 'dynamic-update-slice':
        return 2 * size(operands[1])
    if opcode.endswith('-start'):
        return 2 * sum(map(size, operands))
    return size(instruction.shapes) + sum(map(size, operands))


def _read(module, inner, number, shapes):
    """Bytes that a fusion reads of its operand `number`: slices, where it only slices it."""
    full = sum(shape.bytes for shape in shapes if not shape.on_chip)
    here = next(
        (i for i in inner.values() if i.opcode == 'parameter' and i.literal == str(number)), None
    )
    if here is None or full == 0.0:
        return full
    total = 0.0
    for user in inner.values():
        if here.name not in user.operands:
            continue
        first = user.operands[0] == here.name
        if user.opcode in _SLICES and first:
            total += sum(shape.bytes for shape in user.shapes)
        elif user.opcode == 'fusion':
            deeper = module.computations[user.called('calls')[0]]
            total += _read(module, deeper, user.operands.index(here.name), shapes)
        elif not (user.opcode == 'dynamic-update-slice' and first):
            return full
    return min(total, full)


def _written(inner, root, shape):
    """Bytes that a fusion writes of one result: the update alone, where it updates in place."""
    while root.opcode == 'bitcast' and root.operands[0] in inner:
        root = inner[root.operands[0]]
    if root.opcode == 'dynamic-update-slice':
        return sum(s.bytes for s in inner[root.operands[1]].shapes)
    return shape.bytes
