"""Helpers of the tests, and how calls are checked while they run."""

import typing

from beartype import BeartypeConf, beartype

# Named in pyproject.toml. An int is a float, as it is for every type checker.
checked = beartype(conf=BeartypeConf(is_pep484_tower=True))

# A protocol looks for all its members whenever it is asked, which took a tenth of the suite's time:
# what one object of a type has, the others of this type have, too.
_PROTOCOLS = type(typing.Protocol)
_has_all, _having = _PROTOCOLS.__instancecheck__, set()


def _known(protocol, instance):
    asked = protocol, type(instance)
    if asked not in _having and _has_all(protocol, instance):
        _having.add(asked)
    return asked in _having


_PROTOCOLS.__instancecheck__ = _known
