"""Writes a report into a folder, local or gs://, whole or not at all."""

import contextlib
import os
import re

from emigm_jax.errors import UserError
from emigm_jax.io import files
from emigm_jax.io.paths import absolute

PAGE = 'report.html'
FILES = 'emigm-report-files'  # meta entry of the page: the PNG files written beside it


def check(folder: os.PathLike | str) -> None:
    """Raises UserError if `folder` cannot be one of a report; leaves nothing there."""
    place = absolute(folder)
    with files.reported(folder):
        if place.exists() and not place.is_dir():
            raise UserError(f'{folder}: is a file; --out names a folder')
        _earlier(place)


def write(folder: os.PathLike | str, page: str, pictures: dict[str, bytes]) -> None:
    """Writes the page and the pictures beside it; those of an earlier report there go.

    Everything is written under other names first, so that a full disk leaves the earlier report
    as it was. Other files in the folder stay.

    Args:
      folder: need not exist.
      page: HTML text.
      pictures: {file name: PNG}.

    Raises:
      UserError: the folder cannot be written, or has such a picture that is not of a report.
    """
    place = absolute(folder)
    with files.reported(folder):
        earlier = _earlier(place)
        for name in pictures.keys() - earlier:
            if (place / name).exists():
                reason = f'has a {name} that is not of a report; choose another --out'
                raise UserError(f'{folder}: {reason}')
        place.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as stack:  # what is entered first appears last
            for name, content in {PAGE: page.encode('utf-8', 'replace'), **pictures}.items():
                stack.enter_context(files.replacing(place / name)).write(content)
        for name in earlier - pictures.keys():
            (place / name).unlink(missing_ok=True)


def _earlier(place):
    """Names of the pictures of the report in a folder."""
    page = place / PAGE
    if not page.exists():
        return set()
    head = page.read_bytes().decode('utf-8', 'replace').partition('<title>')[0]
    entry = re.search(f'<meta name="{FILES}" content="(.*?)">', head)
    if not entry:
        raise UserError(f'{page}: is not of emigm report; choose another --out')
    return {name for name in entry[1].split() if re.fullmatch(r'[\w.-]+\.png', name)}
