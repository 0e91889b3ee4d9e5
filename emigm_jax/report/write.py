"""Writes a report into a folder, local or gs://, whole or not at all."""

import contextlib
import html
import os
import re

from emigm_jax.errors import UserError
from emigm_jax.io import files
from emigm_jax.io.paths import absolute
from emigm_jax.report.page import FILES

PAGE = 'report.html'


def check(folder):
    """Raises UserError if `folder` cannot be one of a report; leaves nothing there."""
    place = absolute(folder)
    with files.reported(folder):
        if place.exists() and not place.is_dir():
            raise UserError(f'{folder}: is a file; --out names a folder')
        _earlier(place)


def write(folder, page, pictures):
    """Writes the page and the pictures beside it; those of an earlier report there go.

    Everything is written under other names first, so that a full disk leaves the earlier report
    as it was. Other files in the folder stay.

    Args:
      folder: need not exist.
      page: HTML text.
      pictures: {file name: PNG bytes}.

    Raises:
      UserError: the folder cannot be written, or has such a picture that is not of a report.
    """
    place = absolute(folder)
    contents = {
        **pictures,
        PAGE: page.encode('utf-8', 'replace'),
    }  # the page last: it names the pictures
    with files.reported(folder):
        earlier = _earlier(place)
        for name in pictures:
            if name not in earlier and (place / name).exists():
                raise UserError(
                    f'{folder}: has a {name} that is not of a report; choose another --out'
                )
        if files.remote(place):
            for name, content in contents.items():
                files.write(place / name, [content])
        else:
            _replace(place, contents)
        for name in earlier - contents.keys():
            (place / name).unlink(missing_ok=True)


def _replace(place, contents):
    place.mkdir(parents=True, exist_ok=True)
    partial = {name: place / f'.{name}.{os.getpid()}.partial' for name in contents}
    try:
        for name, content in contents.items():
            partial[name].write_bytes(content)
        for name in contents:
            os.replace(partial[name], place / name)
    finally:
        for path in partial.values():
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)


def _earlier(place):
    """Names of the pictures of the report that lies in a folder."""
    page = place / PAGE
    if not page.exists():
        return set()
    head = page.read_bytes().decode('utf-8', 'replace').partition('<title>')[0]
    found = re.search(f'<meta name="{FILES}" content="(.*?)">', head)
    if not found:
        raise UserError(f'{page}: is not of emigm report; choose another --out')
    names = html.unescape(found[1]).split()
    return {name for name in names if re.fullmatch(r'[\w.-]+\.png', name)}
