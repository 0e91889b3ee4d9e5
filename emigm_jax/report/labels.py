"""Names beside points, each where it covers neither a point nor another name."""

import itertools

import numpy as np

# (dx, dy) in points of a name from its point, horizontal and vertical alignment, best first
_PLACES = (
    ((6, 0), 'left', 'center'),
    ((-6, 0), 'right', 'center'),
    ((0, 5), 'center', 'bottom'),
    ((0, -5), 'center', 'top'),
    ((5, 4), 'left', 'bottom'),
    ((5, -4), 'left', 'top'),
    ((-5, 4), 'right', 'bottom'),
    ((-5, -4), 'right', 'top'),
)


def place(figure, axes, named, paths, annotate):
    """Writes names into axes whose scales and limits are final.

    Args:
      figure: of the axes; it is laid out here.
      axes: of matplotlib.
      named: [(name, x, y)], the more important first. A name given twice is written once.
      paths: [[(x, y), ...]], lines and further points that no name may cover.
      annotate: as axes.annotate.

    Returns:
      The names that found room.
    """
    figure.draw_without_rendering()
    renderer, frame = figure.canvas.get_renderer(), axes.get_window_extent()
    scale = figure.dpi / 72
    around = lambda x, y, r: (x - r * scale, y - r * scale, x + r * scale, y + r * scale)
    boxes = [around(*axes.transData.transform((x, y)), 3) for _, x, y in named]
    for path in paths:
        corners = axes.transData.transform(path)
        boxes += [around(x, y, 4) for x, y in corners]
        boxes += [around(x, y, 1) for x, y in _along(corners, 3 * scale)]
    written = []
    for index, (name, x, y) in enumerate(named):
        if name in written:
            continue
        for offset, horizontal, vertical in _PLACES:
            text = annotate(
                name,
                (x, y),
                offset,
                textcoords='offset points',
                ha=horizontal,
                va=vertical,
                annotation_clip=True,
            )
            extent = text.get_window_extent(renderer)
            box = (extent.x0, extent.y0, extent.x1, extent.y1)
            others = boxes[:index] + boxes[index + 1 :]
            if _inside(box, frame.extents) and not any(_overlap(box, b) for b in others):
                boxes.append(box)
                written.append(name)
                break
            text.remove()
    # Names are not part of the layout, lest the axes shrink to make room for them.
    for text in axes.texts:
        text.set_in_layout(False)
    return written


def _along(corners, distance):
    """Points at most `distance` apart on the line through (n, 2) corners."""
    for start, end in itertools.pairwise(corners):
        count = int(np.hypot(*(end - start)) / distance) + 1
        yield from start + (end - start) * np.linspace(0, 1, count, endpoint=False)[:, None]


def _inside(box, frame):
    x0, y0, x1, y1 = frame
    return box[0] >= x0 and box[1] >= y0 and box[2] <= x1 + 0.02 * (x1 - x0) and box[3] <= y1


def _overlap(a, b):
    return bool(np.all([a[0] < b[2], b[0] < a[2], a[1] < b[3], b[1] < a[3]]))
