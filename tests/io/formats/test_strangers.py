"""What people save beside tensors: settings, paths, counters. Names come out, and nothing runs."""

import collections
import dataclasses
import datetime
import decimal
import enum
import functools
import logging
import pathlib
import pickle
import random
import re
import sys
import types
import uuid

import numpy as np
import pytest

from emigm_jax.io.formats.strangers import Placeholder, is_stranger
from emigm_jax.io.formats.torch_files import read
from support.checkpoint_files import SIX, build, call, glob, tensor, write_zip

NEVER = []  # would get an item if a class were made or imported by reading


def trainer():
    """A module of classes as a trainer has them, which is gone when the file is read."""

    class Mode(enum.Enum):
        FAST = 'fast'

    class Parts(enum.Flag):
        A = 1
        B = 2

    class Ordered(collections.OrderedDict):
        pass

    class Attributes(dict):
        pass

    class Names(list):
        pass

    @dataclasses.dataclass
    class Settings:
        rate: float = 0.1

        def __setstate__(self, state):
            NEVER.append(state)

    def step(x):
        NEVER.append(x)

    module = types.ModuleType('trainer')
    for thing in (Mode, Parts, Ordered, Attributes, Names, Settings, step):
        thing.__module__, thing.__qualname__ = 'trainer', thing.__name__
        setattr(module, thing.__name__, thing)
    return module


def saved(own):
    """{what: (a value, *what may come out of it)}; Pythons and numpys differ in some names."""
    named = lambda *names: tuple(map(Placeholder, names))
    return {
        'path': (pathlib.Path('/a/b'), *named('pathlib.PosixPath', 'pathlib._local.PosixPath')),
        'counter': (collections.Counter('aab'), *named('collections.Counter')),
        'default': (collections.defaultdict(dict, x=1), {'x': 1}),
        'deque': (collections.deque([1]), *named('collections.deque')),
        'now': (datetime.datetime(2025, 1, 1), *named('datetime.datetime')),
        'decimal': (decimal.Decimal('0.1'), *named('decimal.Decimal')),
        'uuid': (uuid.UUID(int=1), *named('uuid.UUID')),
        'simple': (types.SimpleNamespace(a=own.Settings), {'a': Placeholder('trainer.Settings')}),
        'partial': (functools.partial(own.step, 1), *named('functools.partial')),
        'pattern': (re.compile('x', re.IGNORECASE), *named('re._compile')),
        'logger': (logging.getLogger('trainer'), *named('logging.getLogger')),
        'generator': (random.Random(0), *named('random.Random')),
        'range': (range(3), *named('builtins.range', '__builtin__.xrange')),
        'class': (own.Settings, *named('trainer.Settings')),
        'function': (own.step, *named('trainer.step')),
        'enum': (own.Mode.FAST, *named('trainer.Mode', 'trainer.Mode.FAST')),
        'flags': (own.Parts.A, *named('trainer.Parts', 'trainer.Parts.A')),
        'ordered': (own.Ordered(a=SIX[0], b=own.Ordered(c=1)), {'a': 0.0, 'b': {'c': 1}}),
        'attributes': (own.Attributes(a=[own.step]), {'a': [Placeholder('trainer.step')]}),
        'names': (own.Names(['a']), *named('trainer.Names')),
        'settings': (own.Settings(), *named('trainer.Settings')),
        'keys': ({own.step: 1, (1, 'a'): 2}, {Placeholder('trainer.step'): 1, (1, 'a'): 2}),
        'set': ({own.step, (1, 2)}, {Placeholder('trainer.step'), (1, 2)}),
        'number': (np.float64(2.5), 2.5),
        'text': (np.str_('x'), *named('numpy.dtype U1')),
        'texts': (np.array(['x', 'y']), *named('numpy.dtype U1')),
        'time': (np.datetime64('2025-01-01'), *named('numpy.dtype M8')),
        'objects': (np.array([{'a': 1}, None]), [{'a': 1}, None]),
        'type': (np.float32, 'numpy.float32'),
        'random': (np.random.RandomState(0), *named('numpy.random._pickle.__randomstate_ctor')),
    }


@pytest.mark.parametrize('protocol', [2, 3, 4, 5])
def test_objects_beside_tensors(tmp_path, protocol, monkeypatch):
    own = trainer()
    monkeypatch.setitem(sys.modules, 'trainer', own)
    rows = saved(own)
    values = {what: value for what, (value, *_) in rows.items()}
    (tmp_path / 'a.pt').write_bytes(pickle.dumps(values, protocol))
    monkeypatch.setitem(sys.modules, 'trainer', None)  # an import would raise
    got = read(tmp_path / 'a.pt')
    for what, (_, *outcomes) in rows.items():
        assert got[what] in outcomes and type(got[what]).__module__ != 'trainer', what
    assert not NEVER


def test_tensors_of_torch_beside_objects(tmp_path):
    """In PyTorch's archive; a subclass of Tensor is a tensor, a module is a name."""
    plain = (glob('torch._utils._rebuild_tensor_v2'), glob('torch.nn.parameter.Buffer'))
    inner = tensor((2, 3), (3, 1)).parts[1]  # the arguments of the usual call
    module = build(
        call('torch.nn.modules.linear.Linear'), {'_parameters': {'w': tensor((6,), (1,))}}
    )
    values = {
        'subclass': call('torch._tensor._rebuild_from_type_v2', *plain, inner, {'tag': 1}),
        'module': module,
        'activation': glob('torch.nn.modules.activation.GELU'),
        'member': call('builtins.getattr', glob('trainer.Mode'), 'FAST'),
        'optimizer': call('functools.partial', glob('torch.optim.adamw.AdamW')),
        'version': call('torch.torch_version.TorchVersion', '2.1'),
    }
    got = read(write_zip(tmp_path / 'a.pth', values, [SIX]))
    np.testing.assert_array_equal(got.pop('subclass'), SIX.reshape(2, 3))
    assert got == {
        'module': Placeholder('torch.nn.modules.linear.Linear'),
        'activation': Placeholder('torch.nn.modules.activation.GELU'),
        'member': Placeholder('trainer.Mode.FAST'),
        'optimizer': Placeholder('functools.partial'),
        'version': Placeholder('torch.torch_version.TorchVersion'),
    }


@pytest.mark.parametrize(
    ('name', 'may'),
    [
        ('__main__.Settings', True),
        ('omegaconf.dictconfig.DictConfig', True),
        ('pytorch_lightning.utilities.parsing.AttributeDict', True),
        ('trainer.Outer.Inner', True),
        ('trainer.make.<locals>.Settings', True),
        ('pathlib.PosixPath', True),
        ('pathlib.os.system', False),
        ('os.system', False),
        ('nt.system', False),
        ('builtins.exec', False),
        ('collections.Counter.__init__', False),
        ('torch.load', False),
        ('torch.Tensor', True),
        ('numpy.load', False),
        ('emigm_jax.errors.UserError', False),
        ('trainer', False),
        ('trainer.a b', False),
        ('trainer.a\nb', False),
    ],
)
def test_whose_names_may_be_in_a_file(name, may):
    assert is_stranger(name) is may


def test_a_dict_in_npy(tmp_path):
    """As np.save writes it: a pickle, of which nothing is run."""
    np.save(tmp_path / 'a.npy', {'mu': SIX, 'path': pathlib.PurePosixPath('x')})
    got = read(tmp_path / 'a.npy')
    np.testing.assert_array_equal(got['mu'], SIX)
    assert isinstance(got['path'], Placeholder)
    grid = SIX.reshape(2, 3)
    for array in (grid, np.asfortranarray(grid), np.float64(2.5)):
        np.save(tmp_path / 'b.npy', array)
        np.testing.assert_array_equal(read(tmp_path / 'b.npy'), array)
