"""Where in a file the tensors of a model are: under which entry, behind which prefixes."""

import re
from typing import Any

from flax import traverse_util

from emigm_jax.conversion.rules import Tensors
from emigm_jax.errors import UserError
from emigm_jax.io.formats.strangers import Placeholder

# What DistributedDataParallel, torch.compile, FSDP, activation checkpoints and DeepSpeed put
# before the names of a module that they wrap, be it the model or a part of it.
_WRAPPERS = (
    *('module', '_orig_mod', '_fsdp_wrapped_module', '_checkpoint_wrapped_module'),
    '_forward_module',
)
_WRAPPING = tuple(f'{wrapper}.' for wrapper in _WRAPPERS)
_WRAPPED = rf'(?:(?:{"|".join(_WRAPPERS)})\.)'
_PLACES = 100  # of the weights of one kind in a file, at most
_AVERAGED = re.compile(r'(?i)(?<![a-z])(ema|averaged?|avg|shadow|swa)(?![a-z])')


def flat(tree: dict[Any, Any]) -> Tensors:
    """{names joined by '/': array} of all arrays in nested dicts."""
    leaves = traverse_util.flatten_dict(tree)
    # Joined here, as not all the names in a file need be strings.
    named = {'/'.join(map(str, path)): leaf for path, leaf in leaves.items()}
    return {name: leaf for name, leaf in named.items() if hasattr(leaf, 'dtype')}


def unnamed(tree: dict[Any, Any]) -> list[str]:
    """Places of lists of tensors, whose names nobody wrote down: averages are kept so at times."""
    leaves: dict[Any, Any] = traverse_util.flatten_dict(tree)
    several = lambda leaf: isinstance(leaf, (list, tuple)) and len(leaf) > 1
    return [
        '/'.join(map(str, path))
        for path, leaf in leaves.items()
        if several(leaf) and all(hasattr(each, 'dtype') and each.ndim for each in leaf)
    ]


def find(tensors: Tensors, mark: str, source: str) -> dict[str, Tensors]:
    """{name of the place: its tensors, by their own names} for every place where `mark` is.

    Args:
      tensors: of `flat`.
      mark: a tensor of every model of a kind.
      source: for messages.

    Raises:
      UserError: two tensors of a place have one name.
    """
    parts = mark.split('.')
    matches = (_before(name, parts) for name in tensors)
    places: dict[str, Tensors] = {prefix: {} for prefix in matches if prefix is not None}
    if len(places) > _PLACES:
        raise UserError(f'{source}: holds {len(places):,} tensors {mark}, no file has so many')
    deepest = sorted(places, key=len, reverse=True)
    for full, tensor in tensors.items():
        prefix = next((p for p in deepest if full.startswith(p)), None)
        if prefix is None or ('/' in full[len(prefix) :] and '/' not in mark):  # of another entry
            continue
        own, rest = places[prefix], _unwrapped(full[len(prefix) :])
        if rest in own:
            raise UserError(f'{source}: holds two tensors {rest!a}, as {full!a} too')
        own[rest] = tensor
    found = {}
    for prefix, own in places.items():
        name = _unwrapped(prefix).rstrip('./')
        found[prefix.rstrip('./') if name in found else name] = own
    return found


def _before(name, parts):
    """What stands before the last parts of a name, between which wrappers may be; None: others."""
    if not name.endswith(parts[-1]):
        return None
    rest = name.removesuffix(parts[-1])
    for part in reversed(parts[:-1]):
        while rest.endswith(_WRAPPING):
            rest = rest[: rest.rfind('.', 0, -1) + 1]
        if not rest.endswith(f'{part}.'):
            return None
        rest = rest.removesuffix(f'{part}.')
    return rest if rest == '' or rest[-1] in './' else None


def _unwrapped(name):
    return re.sub(rf'(?<![^./]){_WRAPPED}', '', name)


def best_first(found: dict[str, Tensors], official: tuple[str, ...]) -> dict[str, Tensors]:
    """The places in order: `official` ones, averages, all others as they are in the file."""

    def rank(name):
        last = re.split('[./]', name)[-1]
        at = official.index(name) if name in official else len(official)
        return at, not _AVERAGED.search(last), not _AVERAGED.search(name)

    return {name: found[name] for name in sorted(found, key=rank)}


def described(tree: object) -> str:
    """What a file holds, in a few words for messages."""
    names = list(flat(tree)) if isinstance(tree, dict) else []
    if names:
        more = f' and {len(names) - 4} more' * (len(names) > 4)
        return f'{", ".join(map(repr, names[:4]))}{more}'[:300]
    if isinstance(tree, dict) and tree:
        rows = (f'{key!r} ({_kind(value)})' for key, value in list(tree.items())[:4])
        return f'no tensors, but {", ".join(rows)}'[:300]
    return _kind(tree)


def _kind(value):
    if isinstance(value, Placeholder):
        return f'an object of {value.name[:80]}; if that is the model, save its state_dict()'
    return f'a {type(value).__name__}'
