"""Paths, local or gs://. Apart from `storage`, so that nothing heavy is imported for a path."""

import os

from etils import epath

from emigm_jax.errors import UserError
from emigm_jax.io import gcs


def absolute(path: os.PathLike | str) -> epath.Path:
    """`path` as Orbax wants it, `~` the home folder; gs:// and the like as they are.

    Whatever a user names goes through here, so that a path means the same wherever it is written.

    Raises:
      UserError: its kind of place is unknown here.
    """
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
