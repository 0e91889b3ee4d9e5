"""Classes that begin as copies of others, as people write them: '0=207,1=otter'."""

from emigm_jax.core.setting import Form, setting
from emigm_jax.errors import UserError


def parse_copies(name: str, text: str) -> dict[int, str]:
    """'0=207,1=otter' -> {0: '207', 1: 'otter'}."""
    copies = {}
    for part in filter(None, text.split(',')):
        new, _, old = (word.strip() for word in part.partition('='))
        if not (new.isdecimal() and old):
            raise UserError(f"{name} must look like '0=207,1=otter', not {text!r}")
        if int(new) in copies:
            raise UserError(f'{name}: class {int(new)} is there twice')
        copies[int(new)] = old
    return copies


def class_copies(meaning: str) -> str:
    """A setting that says which classes are copies of which."""
    return setting('', meaning, form=Form('NEW=OLD,...', parse_copies))
