"""What the paper reports (Tables 2, 3 and 8 of arXiv 2503.07197 v3; MAR: its own figures there)."""

from typing import NamedTuple


class Published(NamedTuple):
    """A row of the paper's tables; None where it gives nothing."""

    nfe: str
    fid: float
    sfid: float | None = None
    inception_score: float | None = None
    precision: float | None = None
    recall: float | None = None


# (method, image size, size, preset): row
ROWS = {
    ('emigm', 256, 'xs', 'fast'): Published('16x1.2', 4.23, 5.74, 218.63, 0.79, 0.50),
    ('emigm', 256, 's', 'fast'): Published('16x1.2', 3.44, 5.31, 244.16, 0.80, 0.53),
    ('emigm', 256, 'b', 'fast'): Published('16x1.2', 2.79, 5.20, 284.62, 0.82, 0.54),
    ('emigm', 256, 'l', 'fast'): Published('16x1.2', 2.22, 4.80, 291.62, 0.80, 0.59),
    ('emigm', 256, 'h', 'fast'): Published('16x1.2', 2.02, 4.66, 299.36, 0.80, 0.60),
    ('emigm', 256, 'xs', 'best'): Published('128x1.4', 3.62, 5.47, 224.91, 0.80, 0.51),
    ('emigm', 256, 's', 'best'): Published('128x1.4', 2.87, 5.53, 254.48, 0.80, 0.54),
    ('emigm', 256, 'b', 'best'): Published('128x1.35', 2.32, 4.63, 278.97, 0.81, 0.57),
    ('emigm', 256, 'l', 'best'): Published('128x1.4', 1.72, 4.63, 304.16, 0.80, 0.60),
    ('emigm', 256, 'h', 'best'): Published('128x1.4', 1.57, 4.68, 305.99, 0.80, 0.63),
    ('emigm', 512, 'xs', 'fast'): Published('16x1.2', 4.63),
    ('emigm', 512, 's', 'fast'): Published('16x1.2', 3.65),
    ('emigm', 512, 'b', 'fast'): Published('16x1.2', 2.78),
    ('emigm', 512, 'l', 'fast'): Published('16x1.2', 2.19),
    ('emigm', 512, 'xs', 'best'): Published('64x1.25', 4.45),
    ('emigm', 512, 's', 'best'): Published('64x1.25', 3.29),
    ('emigm', 512, 'b', 'best'): Published('64x1.25', 2.31),
    ('emigm', 512, 'l', 'best'): Published('64x1.25', 1.77),
    ('mar', 256, 'b', 'best'): Published('256x2', 2.31),
    ('mar', 256, 'l', 'best'): Published('256x2', 1.78),
    ('mar', 256, 'h', 'best'): Published('256x2', 1.55),
}


def rows(method, image_size, size):
    """{preset: `Published`} of a model, {} if the paper has none."""
    return {key[3]: row for key, row in ROWS.items() if key[:3] == (method, image_size, size)}
