"""Objects beside the tensors of a pickle: settings, paths, counters. They are names, never made.

People save a whole trainer's state, with classes of their own in it. Nothing of a pickle is ever
imported or called, so that any name is harmless as a name; but one that an attack would need is
refused all the same, as nothing else in such a file is to be trusted. Those lie in Python's own
library, in torch and in numpy, of which only what is listed here may be named.
"""

import dataclasses
import re
import sys
from typing import Any


@dataclasses.dataclass(frozen=True)
class Placeholder:
    """What a finished tree holds in place of an object of class `name`."""

    name: str


@dataclasses.dataclass(eq=False)
class Stranger:
    """A class, or an object of it, while a pickle is read.

    Of what the pickle says about it only keyed items are kept, as some state dicts are of a class
    derived from dict; arguments, attributes and the items of lists are dropped.
    """

    name: str
    items: dict[Any, Any] = dataclasses.field(default_factory=dict)


def _in(module: str, names: str) -> set[str]:
    return {f'{module}.{name}' for name in names.split()}


_NAMES = {
    *_in('collections', 'Counter defaultdict deque'),
    *_in('datetime', 'date datetime time timedelta timezone'),
    *(
        name
        for home in ('pathlib', 'pathlib._local')
        for kind in ('', 'Pure')
        for name in _in(home, f'{kind}Path {kind}PosixPath {kind}WindowsPath')
    ),
    *(
        name
        for home in ('builtins', '__builtin__')
        for name in _in(home, 'bool dict float int list long object range slice str tuple type')
    ),
    *_in('torch', 'Tensor Generator contiguous_format preserve_format channels_last strided'),
    *_in('re', '_compile RegexFlag'),
    *_in('logging', 'getLogger Logger'),
    *_in('numpy', 'dtype bool_ float_ int_ str_ object_ generic'),
    *(
        '__builtin__.unicode',
        '__builtin__.xrange',
        'decimal.Decimal',
        'fractions.Fraction',
        'functools.partial',
        'random.Random',
        'uuid.UUID',
    ),
    *('torch.serialization._get_layout', 'torch._tensor.Tensor'),
}
_FAMILIES = (
    *('torch.nn.', 'torch.optim.', 'torch.amp.', 'torch.cuda.amp.', 'torch.utils.data.'),
    *('torch.distributed.', 'torch.torch_version.', 'numpy.random.', 'numpy.dtypes.'),
)
_GUARDED = {
    *sys.stdlib_module_names,
    *('__builtin__', '__torch__', 'commands', 'copy_reg', 'emigm_jax', 'numpy', 'torch'),
}


def is_stranger(name: str) -> bool:
    """Whether a global may stand in a tree as a `Placeholder`."""
    if not re.fullmatch(r'\w+(\.(\w+|<\w+>))+', name):
        return False
    guarded = name.partition('.')[0] in _GUARDED
    return name in _NAMES or name.startswith(_FAMILIES) or not guarded
