"""The constants of a frozen TensorFlow graph (a serialised GraphDef), read without TensorFlow.

Only the few protocol buffer messages on the way to a constant are known here; the rest of the
graph, its operations, is skipped. Field numbers are those of TensorFlow's graph.proto,
node_def.proto, attr_value.proto, tensor.proto and tensor_shape.proto.
"""

import re

import numpy as np

from emigm_jax.io.formats import arrays

_GRAPH_NODE = 1
_NODE_NAME, _NODE_OPERATION, _NODE_ATTRIBUTE = 1, 2, 5
_PAIR_KEY, _PAIR_VALUE = 1, 2  # of any map
_ATTRIBUTE_TENSOR = 8
_TENSOR_DTYPE, _TENSOR_SHAPE, _TENSOR_BYTES, _TENSOR_FLOATS = 1, 2, 4, 5
_SHAPE_DIMENSION, _DIMENSION_SIZE = 2, 1
_FLOAT = 1  # DT_FLOAT

_FLOAT32 = np.dtype('<f4')


def is_graph(mapping):
    """Whether it begins as a graph does: a node, whose name comes first and operation second."""
    start = re.match(rb'\n[\x80-\xff]{0,4}[\x00-\x7f]\n([\x01-\x7f])', mapping[:8])
    return bool(start) and mapping[(end := start.end() + start[1][0]) : end + 1] == b'\x12'


def read_graph(mapping):
    """{name: float32 array} of the constants of a graph; those of other dtypes are left out."""
    found = {}
    for node in _message(memoryview(mapping)).get(_GRAPH_NODE, ()):
        node = _message(node)
        if _text(node, _NODE_OPERATION) != 'Const':
            continue
        pairs = map(_message, node.get(_NODE_ATTRIBUTE, ()))
        values = {_text(pair, _PAIR_KEY): _message(pair[_PAIR_VALUE][-1]) for pair in pairs}
        tensor = _message(values['value'][_ATTRIBUTE_TENSOR][-1])
        if tensor.get(_TENSOR_DTYPE) == [_FLOAT]:
            found[_text(node, _NODE_NAME)] = _array(tensor)
    return found


def _array(tensor):
    shape = _message(tensor.get(_TENSOR_SHAPE, [b''])[-1])
    sizes = tuple(
        _message(dimension).get(_DIMENSION_SIZE, [0])[-1]
        for dimension in shape.get(_SHAPE_DIMENSION, ())
    )
    if _TENSOR_BYTES in tensor:
        return arrays.array(tensor[_TENSOR_BYTES][-1], _FLOAT32, sizes)
    raw = b''.join(tensor.get(_TENSOR_FLOATS, ()))
    arrays.check_counts(sizes)
    if len(raw) == _FLOAT32.itemsize:  # one number stands for all
        return np.broadcast_to(np.frombuffer(raw, _FLOAT32)[0], sizes)
    return arrays.array(raw, _FLOAT32, sizes)


def _text(message, field):
    return bytes(message.get(field, [b''])[-1]).decode()


def _message(data):
    """{field number: [values]} of a message; a value is an int, or bytes of the same memory."""
    fields, place = {}, 0
    while place < len(data):
        tag, place = _varint(data, place)
        match tag & 7:
            case 0:
                value, place = _varint(data, place)
                fields.setdefault(tag >> 3, []).append(value)
                continue
            case 1:
                size = 8
            case 2:
                size, place = _varint(data, place)
            case 5:
                size = 4
            case _:
                raise ValueError('a field has an unknown wire type')
        if place + size > len(data):
            raise ValueError('a field ends behind the end of its message')
        fields.setdefault(tag >> 3, []).append(data[place : place + size])
        place += size
    return fields


def _varint(data, place):
    """A number in 7-bit groups, lowest first, and the place behind it."""
    value = 0
    for shift in range(0, 64, 7):
        if place >= len(data):
            raise ValueError('a number ends behind the end of its message')
        byte = data[place]
        place += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, place
    raise ValueError('a number has more than 64 bits')
