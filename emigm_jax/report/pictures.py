"""Grids of samples, chosen and made small enough for a page."""

import io

from PIL import Image

CHOSEN = 6  # grids per run
LARGEST = 1600  # pixels per side of the newest grid; the earlier ones are shown smaller
EARLIER = 420
_PNG_BYTES = 400_000  # a PNG beyond it is embedded as JPEG


def spaced(items, count=CHOSEN):
    """At most `count` of a sequence, evenly spaced, the first and the last among them."""
    items = list(items)
    if len(items) <= count:
        return items
    return [items[round(i * (len(items) - 1) / (count - 1))] for i in range(count)]


def readable(content):
    """Whether bytes are a whole picture."""
    try:
        with Image.open(io.BytesIO(content)) as picture:
            picture.load()
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return False
    return True


def small(content, side):
    """A picture for the page.

    Args:
      content: of a PNG.
      side: pixels that its longer side may have.

    Returns:
      (bytes, MIME type, (width, height) of the bytes, whether they differ from `content`).
    """
    with Image.open(io.BytesIO(content)) as picture:
        size = picture.size
        if max(size) <= side and len(content) <= _PNG_BYTES:
            return content, 'image/png', size, False
        colours = 'L' if picture.mode in ('1', 'L', 'I', 'I;16') else 'RGB'
        picture = picture.convert(colours)
    picture.thumbnail((side, side), Image.Resampling.LANCZOS)
    encoded = {}
    for kind, options in (('PNG', dict(optimize=True)), ('JPEG', dict(quality=88))):
        buffer = io.BytesIO()
        picture.save(buffer, kind, **options)
        encoded[kind] = buffer.getvalue()
        if kind == 'PNG' and len(encoded[kind]) <= _PNG_BYTES:
            break
    kind = min(encoded, key=lambda name: len(encoded[name]))
    return encoded[kind], f'image/{kind.lower()}', picture.size, True
