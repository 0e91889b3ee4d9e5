"""What a run is, for people and reports: WORKDIR/about.json."""

import datetime
import pathlib
import secrets
import shlex
import sys

import jax
from etils import epath

import emigm_jax
from emigm_jax.io import files

FILE = 'about.json'


def write(
    workdir: epath.Path, start: int, parameters: int, data: str, mesh: jax.sharding.Mesh
) -> str:
    """Writes what is known of a run as it begins, or goes on from a step; returns its `id`.

    Args:
      workdir: local or gs://.
      start: the step; beyond 0, beginning and `id` are those that the file has.
      parameters: of the network.
      data: a description of what it is trained on.
      mesh: its devices.
    """
    now = datetime.datetime.now(datetime.UTC).strftime('%Y-%m-%d %H:%M UTC')
    earlier = (files.read_json(workdir / FILE) or {}) if start else {}
    text = lambda name, new: earlier[name] if isinstance(earlier.get(name), str) else new
    kind = mesh.devices.flat[0].device_kind
    processes = f', {jax.process_count()} processes' if jax.process_count() > 1 else ''
    about = {
        'parameters': f'{parameters:,}',
        'data': data,
        'devices': f'{mesh.size} x {kind}{processes}',
        'version': f'emigm_jax {emigm_jax.__version__}, jax {jax.__version__}',
        'command': _command(sys.argv),
        'began': text('began', now),
        'id': text('id', secrets.token_hex(4)),
    }
    files.write_json(workdir / FILE, about)
    return about['id']


def _command(argv: list[str]) -> str:
    name = pathlib.PurePath(argv[0]).name
    return shlex.join(['emigm' if name == '__main__.py' else name, *argv[1:]])
