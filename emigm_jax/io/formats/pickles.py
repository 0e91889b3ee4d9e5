"""Pickles read as data, by a small interpreter that can run nothing a pickle names.

A pickle is a program for a stack machine, and its usual reader imports and calls whatever the
program asks for. This one imports nothing: a global is looked up in the tables of `pickle_globals`,
which only build inert values, else it is a mere name (`strangers`) or refused. `plain` turns the
descriptions of tensors into arrays once their bytes are at hand.
"""

import mmap
import pickletools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from emigm_jax.io.formats import pickle_globals
from emigm_jax.io.formats.pickle_globals import (
    Array,
    Dtype,
    Name,
    Refused,
    Storage,
    Tensor,
    asks_for,
    expect,
    in_twos,
    keyed,
    members,
)
from emigm_jax.io.formats.strangers import Placeholder, Stranger, is_stranger

# Limits of a finished tree. Real checkpoints nest about five deep and hold some ten thousand
# values; a small hostile pickle can refer to itself, or unfold to more than any memory holds.
MAX_DEPTH = 50
MAX_NODES = 1_000_000
_OPERATIONS_PER_NODE = 5  # of an honest pickle there are three
_SPARE = 1000  # nodes beyond one for each byte: what is shared counts where it is used
_MEMO = 2**32  # places
_BITS = 512  # of a whole number; torch's own mark has 80, the keys of generators 128


class Loaded(NamedTuple):
    """What one pickle holds."""

    tree: Any  # to be finished by `plain`
    storages: list[Storage]  # that it mentions
    size: int  # its bytes


class _Machine:
    """The state of one pickle while it is read. Marks keep the part of the stack below them.

    `left` and `copies` bound what it may copy: values of containers, and texts as bytes.
    """

    def __init__(self, size):
        self.stack, self.below, self.memo = [], [], {}
        self.storages = {}
        self.left, self.copies = MAX_NODES, size

    def since_mark(self):
        items, self.stack = self.stack, self.below.pop()
        return items

    def last(self, count):
        return tuple([self.stack.pop() for _ in range(count)][::-1])

    def find(self, module, name):
        full = pickle_globals.joined(module, name)
        if full in pickle_globals.WORDS:
            return full
        if full in pickle_globals.NAMES:
            return Name(full)
        if is_stranger(full):
            return Stranger(full)
        raise asks_for(full)

    def call(self, function, arguments):
        if type(function) is Stranger:
            self.spend(expect(arguments, tuple))
            return Stranger(function.name)
        call = pickle_globals.CALLS.get(function.text) if type(function) is Name else None
        if call is None:
            raise Refused('refuses to load: the pickle calls something that is no function')
        self.spend(expect(arguments, tuple))
        result = call(*arguments)
        if type(result) is bytes:  # of a text, each of which is encoded once in an honest pickle
            self.copies -= len(result)
            if self.copies < 0:
                raise ValueError('the pickle encodes one text over and over')
        return result

    def build(self, target, state):
        if type(target) not in pickle_globals.BUILDS:
            raise Refused(f'refuses to load: the pickle sets state on a {type(target).__name__}')
        self.spend([state])
        pickle_globals.BUILDS[type(target)](target, state)

    def spend(self, values):
        """Bounds what a few opcodes can copy, again and again, out of one large container."""
        self.left -= sum(len(v) for v in values if isinstance(v, _CONTAINERS))
        if self.left < 0:
            raise ValueError('the pickle unfolds without bounds')

    def storage(self, identity):
        storage = pickle_globals.storage_of(identity)
        return self.storages.setdefault((storage.key, storage.start, storage.numel), storage)


_CONTAINERS = (list, tuple, dict, set, frozenset)


def _push(value):
    """The operation that pushes what `value` gives for the machine and the opcode's argument."""

    def operation(machine, argument):
        result = value(machine, argument)  # first, as it may change the stack
        machine.stack.append(result)

    return operation


def _add(kind, count, add):
    """The operation that adds `count` values, or all above the mark, to the container below."""

    def operation(machine, _):
        items = machine.last(count) if count else machine.since_mark()
        target = machine.stack[-1]
        if type(target) is Stranger:
            if kind is not dict:
                return
            target = target.items
        elif not isinstance(target, kind):
            raise ValueError(f'adds to a {type(target).__name__} as if to a {kind.__name__}')
        add(target, items)

    return operation


def _mark(machine, _):
    machine.below.append(machine.stack)
    machine.stack = []


def _pop(machine, _):
    if machine.stack:
        machine.stack.pop()
    else:
        machine.since_mark()


def _put(machine, index):
    place = len(machine.memo) if index is None else index
    if place >= _MEMO:
        raise ValueError('a place in the memo is out of range')
    machine.memo[place] = machine.stack[-1]


def _literal(_, value):
    if type(value) is int and value.bit_length() > _BITS:
        raise ValueError(f'a number of {value.bit_length():,} bits is out of range')
    return value


def _build(machine, _):
    state = machine.stack.pop()
    machine.build(machine.stack[-1], state)


def _object(machine, _):
    function, *arguments = machine.since_mark()
    return machine.call(function, tuple(arguments))


def _instance(machine, names):
    return machine.call(machine.find(*names.split(' ', 1)), tuple(machine.since_mark()))


def _named(names, operation):
    return dict.fromkeys(names.split(), operation)


_LITERALS = (
    'INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT STRING BINSTRING SHORT_BINSTRING '
    'BINBYTES SHORT_BINBYTES BINBYTES8 BYTEARRAY8 UNICODE SHORT_BINUNICODE BINUNICODE BINUNICODE8'
)
_OPERATIONS = {
    **_named('PROTO FRAME STOP', lambda machine, _: None),
    **_named(_LITERALS, _push(_literal)),
    'NONE': _push(lambda *_: None),
    'NEWTRUE': _push(lambda *_: True),
    'NEWFALSE': _push(lambda *_: False),
    'EMPTY_LIST': _push(lambda *_: []),
    'EMPTY_DICT': _push(lambda *_: {}),
    'EMPTY_TUPLE': _push(lambda *_: ()),
    'EMPTY_SET': _push(lambda *_: set()),
    'TUPLE1': _push(lambda machine, _: machine.last(1)),
    'TUPLE2': _push(lambda machine, _: machine.last(2)),
    'TUPLE3': _push(lambda machine, _: machine.last(3)),
    'TUPLE': _push(lambda machine, _: tuple(machine.since_mark())),
    'LIST': _push(lambda machine, _: machine.since_mark()),
    'DICT': _push(lambda machine, _: keyed(in_twos(machine.since_mark()), {})),
    'FROZENSET': _push(lambda machine, _: frozenset(members(machine.since_mark()))),
    'APPEND': _add(list, 1, list.extend),
    'APPENDS': _add(list, None, list.extend),
    'SETITEM': _add(dict, 2, lambda target, pair: keyed([pair], target)),
    'SETITEMS': _add(dict, None, lambda target, items: keyed(in_twos(items), target)),
    'ADDITEMS': _add(set, None, lambda target, items: target.update(members(items))),
    'MARK': _mark,
    'POP': _pop,
    'POP_MARK': lambda machine, _: machine.since_mark(),
    'DUP': _push(lambda machine, _: machine.stack[-1]),
    **_named('PUT BINPUT LONG_BINPUT MEMOIZE', _put),
    **_named('GET BINGET LONG_BINGET', _push(lambda machine, index: machine.memo[index])),
    'GLOBAL': _push(lambda machine, names: machine.find(*names.split(' ', 1))),
    'STACK_GLOBAL': _push(lambda machine, _: machine.find(*machine.last(2))),
    **_named('REDUCE NEWOBJ', _push(lambda machine, _: machine.call(*machine.last(2)))),
    'OBJ': _push(_object),
    'INST': _push(_instance),
    'BUILD': _build,
    'PERSID': _push(lambda machine, identity: machine.storage(identity)),
    'BINPERSID': _push(lambda machine, _: machine.storage(machine.stack.pop())),
}
# Left out, and so refused: EXT1, EXT2, EXT4 (a registry of code), NEWOBJ_EX (calls by keyword) and
# NEXT_BUFFER, READONLY_BUFFER (data outside the file).


def load(stream: bytes | mmap.mmap) -> Loaded:
    """Reads one pickle from bytes, or from a file's map, which is left just behind it.

    Raises:
      Refused: the pickle asks for a global, a call or an opcode that no checkpoint needs.
      ValueError and others that malformed data lead to: the pickle is damaged.
    """
    machine, begin = _Machine(len(stream)), _place(stream, 0)
    program: Any = stream  # a map is as good as a file
    for count, (opcode, argument, _) in enumerate(pickletools.genops(program)):
        if count > _OPERATIONS_PER_NODE * MAX_NODES:
            raise ValueError('the pickle has more operations than any checkpoint')
        operation = _OPERATIONS.get(opcode.name)
        if operation is None:
            raise Refused(f'refuses to load: the pickle uses the opcode {opcode.name}')
        operation(machine, argument)
    size = _place(stream, len(stream)) - begin
    return Loaded(machine.stack.pop(), list(machine.storages.values()), size)


def _place(stream, otherwise):
    return otherwise if isinstance(stream, bytes) else stream.tell()


def plain(loaded: Loaded, view: Callable[[Tensor], np.ndarray]) -> Any:
    """The tree in plain dicts, lists, tuples, sets, scalars, strings, arrays and placeholders.

    `view` makes the array of a `Tensor`, once. Namespaces become dicts, and dtypes their names. An
    object of an unknown class becomes the dict of its items, or a `Placeholder` if it has none.
    Raises ValueError for anything else, and for a tree that contains itself.
    """
    room = iter(range(min(MAX_NODES, loaded.size + _SPARE)))
    arrays = {}  # by the identity of their descriptions, which live as long as the tree

    def walk(node, depth):
        if depth > MAX_DEPTH or next(room, None) is None:
            raise ValueError('the pickle contains itself, or unfolds without bounds')
        match node:
            case Stranger(name, items):
                return walk(items, depth + 1) if items else Placeholder(name)
            case dict():
                return {walk(key, depth + 1): walk(value, depth + 1) for key, value in node.items()}
            case list() | tuple() | set() | frozenset():
                return type(node)(walk(value, depth + 1) for value in node)
            case Tensor():
                if id(node) not in arrays:
                    arrays[id(node)] = view(node)
                return arrays[id(node)]
            case Array(np.ndarray() as value):
                return value
            case Array(list() | dict() | Stranger() as value):
                return walk(value, depth + 1)
            case Dtype(value):
                return str(value)
            case None | bool() | int() | float() | complex() | str() | bytes() | bytearray():
                return node
            case np.generic():
                return node
        raise ValueError(f'holds a bare {type(node).__name__} where data belongs')

    return walk(loaded.tree, 0)
