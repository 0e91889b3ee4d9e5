"""Classes that begin as copies of others, as people write them: '0=207,cat=281,dog=otter'."""

from emigm_jax.core.setting import Form, setting
from emigm_jax.errors import UserError


def parse_copies(name: str, text: str) -> dict[str, str]:
    """'0=207,cat=281' -> {'0': '207', 'cat': '281'}: {new class: old one}, numbers or names."""
    copies = {}
    for part in filter(None, text.split(',')):
        new, _, old = (word.strip() for word in part.partition('='))
        if not (new and old):
            raise UserError(f"{name} must look like '0=207,cat=otter' (NEW=OLD), not {text!r}")
        if new in copies:
            raise UserError(f'{name}: class {new} is there twice')
        copies[new] = old
    return copies


def class_copies(meaning: str) -> str:
    """A setting that says which classes are copies of which."""
    return setting('', meaning, form=Form('NEW=OLD,...', parse_copies))
