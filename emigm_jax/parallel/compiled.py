"""What is compiled is kept in the user's own cache, so that a second start compiles nothing.

It never lies beside a checkpoint: programs are executed as they are read, so those of a run that
somebody passed on would be code of a stranger.
"""

import contextlib
import hashlib
import os
import pathlib
import platform
import stat
import warnings

import jax

MOST_BYTES = 4 * 2**30  # beyond it the oldest go


def keep() -> None:
    """Has jax keep programs from now on, below `folder`.

    Changes nothing where JAX_COMPILATION_CACHE_DIR, or somebody's own code, has said where they
    go, or where the folder cannot be written by this user alone.
    """
    if getattr(jax.config, 'jax_compilation_cache_dir', None) is not None:
        return
    place = folder()
    try:
        place.mkdir(parents=True, exist_ok=True, mode=0o700)
        found = place.stat()
        others_write = found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
        mine = found.st_uid == os.getuid() and not others_write and os.access(place, os.W_OK)
    except OSError:  # a home that is read-only, or none
        return
    if mine:
        _prune(place)
        jax.config.update('jax_compilation_cache_dir', str(place))
        # A full disk or a torn file costs a compilation, nothing else.
        warnings.filterwarnings('ignore', 'Error (reading|writing) persistent compilation cache')


def folder() -> pathlib.Path:
    """~/.cache/emigm_jax/compiled/MACHINE, or in place of ~/.cache what XDG_CACHE_HOME says.

    A home may be shared by machines whose processors differ in what they can execute.
    """
    base = os.environ.get('XDG_CACHE_HOME') or os.path.expanduser('~/.cache')
    return pathlib.Path(base) / 'emigm_jax' / 'compiled' / _machine()


def _machine():
    able = platform.processor()
    with contextlib.suppress(OSError):
        lines = pathlib.Path('/proc/cpuinfo').read_text().splitlines()
        able = next((line for line in lines if line.startswith(('flags', 'Features'))), able)
    return f'{platform.machine()}-{hashlib.sha256(able.encode()).hexdigest()[:12]}'


def _prune(place):
    """Removes the oldest programs until the others have room; another process may do the same."""
    with contextlib.suppress(OSError):
        # Beside them lie folders of XLA's own, on GPUs.
        programs = place.glob('*-cache')
        known = [(file.stat().st_mtime, file.stat().st_size, file) for file in programs]
        room = MOST_BYTES
        for _, size, file in sorted(known, reverse=True):
            room -= size
            if room < 0:
                file.unlink(missing_ok=True)
