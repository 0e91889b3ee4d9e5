"""Pickles that would run code, or take the reader's memory: refused, and never run."""

import os
import pickle
import tracemalloc

import pytest

from emigm_jax.io.formats import pickles
from emigm_jax.io.formats.torch_files import read
from support.checkpoint_files import (
    SIX,
    Op,
    build,
    call,
    complaint,
    dumps,
    emit,
    glob,
    storage,
    tensor,
    write_legacy,
    write_zip,
)


class Exploit:
    """Pickles to a call of os.system that leaves a marker behind."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f'touch {self.marker}',)


@pytest.mark.parametrize('protocol', range(6))
@pytest.mark.parametrize('wrap', ['plain', 'zip', 'legacy'])
def test_exploits_are_refused_by_name(tmp_path, protocol, wrap):
    marker, path = tmp_path / 'marker', tmp_path / 'a.pth'
    exploit = {'model': Exploit(marker)}
    program = pickle.dumps(exploit, protocol)
    if wrap == 'zip':
        write_zip(path, program)
    else:
        write_legacy(path, {})
        head = path.read_bytes().partition(dumps({}) + dumps([]))[0]
        path.write_bytes((head if wrap == 'legacy' else b'') + program)
    line = complaint(path)
    assert f'refuses to load: the pickle asks for {os.name}.system,' in line
    assert not marker.exists()
    pickle.loads(program)  # the exploit is a real one
    assert marker.exists()


def stack_global(module, name):
    return Op(module, name, b'\x93')


NAMED = {
    'os.system': Op(b'cos\nsystem\n(X\x04\x00\x00\x00truetR'),
    'posix.system': Op(b'(', 'true', b'iposix\nsystem\n'),
    'subprocess.Popen': Op(b'(', glob('subprocess.Popen'), 'true', b'o'),
    'os.path.os.system': stack_global('os', 'path.os.system'),
    'torch._utils.os.system': stack_global('torch._utils', 'os.system'),
    'collections.OrderedDict.__init__.__globals__': stack_global(
        'collections', 'OrderedDict.__init__.__globals__'
    ),
    'builtins.getattr': call('builtins.getattr', {}, 'x'),
    'builtins.eval': call('builtins.eval', '1'),
    '__builtin__.exec': call('__builtin__.exec', '1'),
    'torch.load': call('torch.load', 'x'),
    'torch.storage._load_from_bytes': call('torch.storage._load_from_bytes', b''),
    '__torch__.torch.nn.modules.linear.Linear': glob('__torch__.torch.nn.modules.linear.Linear'),
    'numpy.load': call('numpy.load', 'x'),
    'numpy.memmap': glob('numpy.memmap'),
    'copyreg._reconstructor': call('copyreg._reconstructor', 1, 2, 3),
    'argparse.ArgumentParser': Op(glob('argparse.ArgumentParser'), (), b'\x81'),
    'emigm_jax.errors.UserError': glob('emigm_jax.errors.UserError'),
    r'x\ny.z': stack_global('x\ny', 'z'),
    'functools.reduce': call('functools.reduce', 1, 2),
    'pathlib.os.system': stack_global('pathlib', 'os.system'),
    'torch.hub.load': call('torch.hub.load', 'x'),
    'numpy.f2py.crackfortran.myeval': call('numpy.f2py.crackfortran.myeval', '1'),
    'runpy.run_path': call('runpy.run_path', 'x'),
    'importlib.import_module': call('importlib.import_module', 'x'),
}


@pytest.mark.parametrize('name', NAMED)
def test_every_other_global_is_refused_by_name(tmp_path, name):
    for path in (
        write_zip(tmp_path / 'a.pth', [NAMED[name]]),
        write_legacy(tmp_path / 'b', [NAMED[name]]),
    ):
        assert f'the pickle asks for {name},' in complaint(path)


NDARRAY = call('numpy._core.multiarray._reconstruct', glob('numpy.ndarray'), (0,), b'b')
F4 = build(call('numpy.dtype', 'f4', False, True), (3, '<', None, None, None, -1, -1, 0))
MISUSED = {
    'build on a function': build(glob('torch._utils._rebuild_tensor_v2'), {'__code__': 1}),
    'slots on a class': build(glob('argparse.Namespace'), (None, {'__init__': 1})),
    'build on a list': build([], {'a': 1}),
    'build on a tensor': build(tensor((1,), (1,)), {'shape': (9,)}),
    'namespace of no dict': build(call('argparse.Namespace'), (None, {'a': 1})),
    'namespace of numbers': build(call('argparse.Namespace'), {1: 1}),
    'namespace with arguments': call('argparse.Namespace', 1),
    'call of a storage': call('torch.FloatStorage', 2**40),
    'call of ndarray': call('numpy.ndarray', (2**40,)),
    'call of a string': call(Op('os.system'), 'true'),
    'call by keyword': Op(glob('argparse.Namespace'), (), {'a': 1}, b'\x92'),
    'arguments that are no tuple': Op(glob('torch.Size'), [1], b'R'),
    'a function as a value': {'f': glob('_codecs.encode')},
    'a bare storage': storage(),
    'an extension code': Op(b'\x82\x01'),
    'an outside buffer': Op(b'\x97'),
    'persistent string': Op('storage', b'Q'),
    'persistent text': Op(b'Pstorage\n'),
    'persistent of another kind': Op(('module', 'os', 'x', 'y'), b'Q'),
    'persistent with a path': Op(('storage', 'torch.FloatStorage', '../0', 'cpu', 1), b'Q'),
    'persistent with an odd key': Op(('storage', glob('torch.FloatStorage'), 0, 'cpu', 1), b'Q'),
    'persistent with no storage': Op(('storage', glob('torch.Size'), '0', 'cpu', 1), b'Q'),
    'persistent that is short': Op(('storage', glob('torch.FloatStorage')), b'Q'),
    'persistent that is long': storage('torch.FloatStorage', '0', 6, None, None),
    'tensor of no storage': tensor((1,), (1,), 0, Op('x')),
    'tensor that is conjugated': call(
        'torch._utils._rebuild_tensor_v2', storage(), 0, (1,), (1,), False, None, {'conj': True}
    ),
    'parameter of no tensor': call('torch._utils._rebuild_parameter', 'x', True, None),
    'another encoding': call('_codecs.encode', 'x', 'rot13'),
    'unfilled array': NDARRAY,
    'array bomb': build(NDARRAY, (1, (2**40,), F4, False, b'')),
    'array of negative shape': build(NDARRAY, (1, (-1, -1), F4, False, bytes(4))),
    'array of a tensor': build(NDARRAY, (1, (1,), call('numpy.dtype', 'O8'), False, storage())),
    'array of voids': build(NDARRAY, (1, (1,), call('numpy.dtype', 'V8'), False, bytes(8))),
    'objects in themselves': build(
        Op(NDARRAY, b'q\x01'), (1, (1,), call('numpy.dtype', 'O8'), 0, Op(b'(h\x01l'))
    ),
    'attribute of a value': call('builtins.getattr', 'x', 'join'),
    'attribute by number': call('builtins.getattr', glob('trainer.Mode'), 3),
    'tensor of a type by another call': call(
        'torch._tensor._rebuild_from_type_v2',
        glob('_codecs.encode'),
        glob('torch.Tensor'),
        ('x', 'latin1'),
        {},
    ),
    'tensor of a type by a stranger': call(
        'torch._tensor._rebuild_from_type_v2', glob('trainer.Made'), glob('torch.Tensor'), (), {}
    ),
    'array of no dtype': build(NDARRAY, (1, (1,), 'f4', False, bytes(4))),
    'array of records': build(call('numpy.dtype', 'f4'), (3, '<', None, ('a',), {'a': 1}, 4, 4, 0)),
    'scalar bomb': call('numpy.core.multiarray.scalar', F4, bytes(400)),
    'deep key': {Op(*[b')'], *[b'\x85'] * 100_000): 1},
    'deep list': Op(b']' * 200 + b'a' * 199),
    'list in itself': Op(b']q\x01h\x01a'),
    'doubling': Op(b']', *[b'q\x01(h\x01h\x01l'] * 40),
    'unfolding sizes': Op(
        emit([1] * 10_000), b'q\x01]', *[b'(', glob('torch.Size'), b'h\x01\x85Re'] * 2000
    ),
    'memo without a value': Op(b'h\x07'),
    'mark missing': Op(b'e'),
    'odd items': Op(b'}(', 'a', b'u'),
    'append to a dict': Op(b'}', 'a', b'a'),
}


@pytest.mark.parametrize('case', MISUSED)
def test_what_is_known_cannot_be_misused(tmp_path, monkeypatch, case):
    monkeypatch.setattr(pickles, 'MAX_NODES', 50_000)  # the same refusal, sooner
    complaint(write_zip(tmp_path / 'a.pth', MISUSED[case], [SIX]))


def test_small_pickles_cannot_take_much_memory(tmp_path):
    far = Op('x', b'r\xff\xff\xff\x7f')  # a memo index that a plain array of memo would grow to
    long = '\xff' * 100_000
    again = Op(long, b'q\x010](', *[Op(glob('_codecs.encode'), b'(h\x01', 'latin1', b'tR')] * 1000)
    tracemalloc.start()
    assert read(write_zip(tmp_path / 'a.pth', far)) == 'x'
    assert 'over and over' in complaint(write_zip(tmp_path / 'b.pth', Op(again, b'e')))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**23
