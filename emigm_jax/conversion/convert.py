"""Official weights -> self-describing checkpoints, and back: what `emigm convert` runs."""

import os
from typing import Unpack

from emigm_jax.checkpoints import store
from emigm_jax.conversion import kinds, places, rules
from emigm_jax.conversion.conversion import Conversion, Export
from emigm_jax.conversion.options import Given, Options
from emigm_jax.errors import UserError
from emigm_jax.io import files, hub, paths
from emigm_jax.io.formats import torch_files


def convert(
    source: os.PathLike | str,
    target: os.PathLike | str,
    *,
    dry_run: bool = False,
    **options: Unpack[Given],
) -> Conversion:
    """Writes official weights as one of our checkpoints, whole or not at all.

    Nothing in the source is run. What it is, and all sizes but the number of heads, or MaskGIT's
    of classes, are read off names and shapes.

        done = convert('eMIGM_large_256_checkpoint.pth', 'emigm-l-256')
        print(*done.lines(), sep='\\n')

    Args:
      source: a .pth, .ckpt, .safetensors or Flax msgpack file, or a Hugging Face folder, local,
        gs:// or hf://USER/REPOSITORY/FILE.
      target: folder that does not exist yet, local or gs://.
      dry_run: read and check, write nothing.
      kind: a `Kind`, None to recognise it.
      weights: which of several in the file, as 'model_ema' or 'model', '' for averaged ones if
        there are any; models only.
      null: 'mask_token' or 'fake_latent', what becomes eMIGM's shared token; '' for `mask_token`,
        as the official loader does; eMIGM only.
      heads: attention heads, for sizes that were never published; eMIGM and MAR only.
      classes: how many there are, for sizes that were never published; MaskGIT only.
      allow_non_finite: take numbers that are not finite as they are.

    Raises:
      rules.Misfit: tensors are missing, unexpected, misshapen or not finite; it lists them all.
      UserError: the source cannot be read or converted, an option does not apply, or the target
        exists or cannot be written.
    """
    store.check_free(target)
    if store.is_checkpoint(source):
        raise UserError(f'{source}: is converted already; `--to safetensors` exports it')
    conversion = read(source, Options(**options))
    if not dry_run:
        conversion.save(target)
    return conversion


def read(source: os.PathLike | str, options: Options | None = None) -> Conversion:
    """Converts in memory; the arrays are copies, so that the source is let go of."""
    source = os.fspath(source)
    tree = torch_files.read(source)
    if not isinstance(tree, dict):
        raise UserError(f'{source}: is no table of tensors by name, but {places.described(tree)}')
    return kinds.read(tree, source, options or Options())


def export(
    source: os.PathLike | str,
    target: os.PathLike | str,
    *,
    weights: str = '',
    dry_run: bool = False,
    allow_non_finite: bool = False,
) -> Export:
    """Writes one of our checkpoints as a safetensors file with official names, whole or not at all.

        export('emigm-l-256', 'emigm-l-256.safetensors')

    Args:
      source: checkpoint or workdir, local or gs://.
      target: file that does not exist yet, local or gs://.
      weights: an EMA decay or 'params', '' for the first decay; models only.
      dry_run: read and check, write nothing.
      allow_non_finite: take numbers that are not finite as they are.

    Raises:
      rules.Misfit: numbers are not finite.
      UserError: there is no such checkpoint, it has no such weights, or the target exists or
        cannot be written.
    """
    hub.check_not_target(target)
    source, target = os.fspath(source), paths.absolute(target)
    if not files.remote(target) and not target.parent.is_dir():
        raise UserError(f'{target}: its folder does not exist')
    with files.reported(target):
        taken = target.exists()
    if taken:
        raise UserError(store.taken(target))
    stored = store.checkpoint(source) if store.is_checkpoint(source) else None
    described = stored.description if stored else {}
    entry = next((entry for entry in kinds.EXPORTS if entry in described), '')
    exported = kinds.EXPORTS[entry](source, stored, weights)
    broken = [row for named in exported.tensors.items() for row in rules.non_finite(*named)]
    if broken and not allow_non_finite:
        raise rules.NonFinite(source, broken)
    if not dry_run:
        exported.save(target)
    return exported
