"""Paths, local, gs:// or hf://. Nothing heavy is imported for one, so it is apart from `files`."""

import os

from etils import epath

from emigm_jax.errors import UserError
from emigm_jax.io import gcs, hub


def absolute(path: os.PathLike | str) -> epath.Path:
    """`path` as Orbax wants it, `~` the home folder; gs:// and the like as they are.

    hf:// is the copy in its cache. Whatever a user names goes through here, so that a path means
    the same wherever it is written.

    Raises:
      UserError: its kind of place is unknown here, or it cannot be fetched from hf://.
    """
    if hub.on_hub(path):
        path = hub.fetched(path)
    if gcs.remote(path):
        gcs.set_up()
    try:
        if gcs.remote(path):
            return epath.Path(path)
        return epath.Path(os.path.expanduser(path)).resolve()
    except (KeyError, ImportError) as error:
        raise UserError(
            f'{path}: no access to such places ({error}); gs:// needs the extra emigm_jax[gcs]'
        ) from error
