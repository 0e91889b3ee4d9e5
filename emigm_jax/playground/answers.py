"""What the page answers: pure functions and generators, which know no browser."""

import hashlib
import pathlib
import urllib.parse
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from emigm_jax.errors import UserError
from emigm_jax.playground import commands, links
from emigm_jax.playground.painted import enlarged, painted, png
from emigm_jax.playground.settings import Settings
from emigm_jax.playground.studio import Frame, Studio


class Shown(NamedTuple):
    """What changes on the page while pictures are drawn."""

    images: list[np.ndarray]  # uint8 (S, S, 3)
    line: str  # how far it is, and what it takes
    link: str
    command: str
    files: list[str]  # that the command names
    steps: int  # in which the pictures appear


def drawn(studio: Studio, settings: Settings, address: str) -> Iterator[Shown]:
    """Pictures while their tokens are revealed.

    Args:
      studio: draws.
      settings: what.
      address: of the page, without a query.

    Raises:
      UserError: a setting makes no sense.
    """
    link, command = _link(studio, settings, address), commands.sample(studio.offer, settings)
    for frame in studio.sample(settings):
        yield _shown(frame, link, command, [])


def edited(
    studio: Studio,
    settings: Settings,
    address: str,
    editor: Mapping[str, Any] | None,
    folder: pathlib.Path,
) -> Iterator[Shown]:
    """As `drawn`, of what is painted in an editor; the files of the command lie in `folder`."""
    on = painted(editor)
    files = _kept(folder, {commands.PICTURE: png(on.picture), commands.MASK: png(on.mask)})
    link, command = _link(studio, settings, address), commands.edit(studio.offer, settings)
    for frame in studio.edit(settings, on):
        yield _shown(frame, link, command, files)


def restored(studio: Studio, query: Mapping[str, str]) -> tuple[Settings, str]:
    """The settings that a link says, and what is wrong with it; then those of a new page."""
    offer = studio.offer
    try:
        return links.settings(offer, query), ''
    except UserError as error:
        return offer.start(offer.preset), str(error)


def _shown(frame: Frame, link, command, files):
    images = [enlarged(image) for image in frame.images]
    return Shown(images, frame.described(), link, command, files, frame.steps)


def _link(studio, settings, address):
    place = urllib.parse.urlsplit(address)._replace(query=links.query(studio.offer, settings))
    return place._replace(fragment='').geturl()


def _kept(folder, contents):
    """Writes files of a visitor, once: their paths."""
    digest = hashlib.sha256(b''.join(contents.values())).hexdigest()[:16]
    (folder / digest).mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        (folder / digest / name).write_bytes(content)
    return [str(folder / digest / name) for name in contents]
