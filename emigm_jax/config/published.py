"""What the paper reports (arXiv 2503.07197 v3): scores, sizes and speeds, ours to stand beside.

Scores: Tables 2, 3 and 8; MAR: its own figures there; MaskGIT: these, and Table 1 of its paper
(arXiv 2202.04200). Speeds: Table 10, and section 5 on Figure 4c.
"""

from typing import Any, NamedTuple


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
    ('maskgit', 256, 'b', 'fast'): Published('8', 6.18, None, 182.1, 0.80, 0.51),
    ('maskgit', 512, 'b', 'fast'): Published('12', 7.32, None, 156.0, 0.78, 0.50),
}

# (method, image size, size): millions of parameters (Tables 2 and 3; MaskGIT's with its VQGAN)
PARAMETERS = {
    ('emigm', 256, 'xs'): 69,
    ('emigm', 256, 's'): 97,
    ('emigm', 256, 'b'): 208,
    ('emigm', 256, 'l'): 478,
    ('emigm', 256, 'h'): 942,
    ('emigm', 512, 'xs'): 104,
    ('emigm', 512, 's'): 132,
    ('emigm', 512, 'b'): 244,
    ('emigm', 512, 'l'): 478,
    ('mar', 256, 'b'): 208,
    ('mar', 256, 'l'): 479,
    ('mar', 256, 'h'): 943,
    ('maskgit', 256, 'b'): 227,
    ('maskgit', 512, 'b'): 227,
}


class Other(NamedTuple):
    """Another method in the paper's tables."""

    name: str
    nfe: str
    fid: float
    parameters: float | None = None  # millions


# image size: rows of Table 2 (256) and Table 3 (512) that are neither eMIGM nor in ROWS
OTHERS = {
    256: (
        Other('ADM-G', '250x2', 4.59, 554),
        Other('ADM-G-U', '750', 3.94, 554),
        Other('LDM-4-G', '250x2', 3.60, 400),
        Other('VDM++', '512x2', 2.40, 2000),
        Other('SimDiff', '512x2', 2.44, 2000),
        Other('U-ViT-H/2', '50x2', 2.29, 501),
        Other('DiT-XL/2', '250x2', 2.27, 675),
        Other('Large-DiT-3B', '250x2', 2.10, 3000),
        Other('Large-DiT-7B', '250x2', 2.28, 7000),
        Other('SiT-XL', '250x2', 2.06, 675),
        Other('DiffuSSM-XL-G', '250x2', 2.28, 660),
        Other('DiffiT', '250x2', 1.73, 561),
        Other('REPA', '250x1.7', 1.42, 675),
        Other('VQGAN', '256', 18.65, 227),
        Other('VAR-d16', '10x2', 3.30, 310),
        Other('VAR-d20', '10x2', 2.57, 600),
        Other('VAR-d24', '10x2', 2.09, 1000),
        Other('VAR-d30', '10x2', 1.92, 2000),
        Other('BigGAN', '1', 6.95),
        Other('StyleGAN-XL', '1x2', 2.30),
    ),
    512: (
        Other('ADM-G', '250x2', 7.72, 559),
        Other('ADM-G-U', '750', 3.85, 559),
        Other('VDM++', '512x2', 2.65, 2000),
        Other('SimDiff', '512x2', 3.02, 2000),
        Other('U-ViT-H/4', '50x2', 4.05, 501),
        Other('DiT-XL/2', '250x2', 3.04, 675),
        Other('Large-DiT-3B', '250x2', 2.52, 3000),
        Other('SiT-XL', '250x2', 2.62, 675),
        Other('EDM2-XXL', '32x2', 1.81, 1500),
        Other('EDM2-XXL, interval', '32x1.2', 1.40, 1500),
        Other('sCT-XXL', '2', 3.76, 1500),
        Other('sCD-XXL', '2', 1.88, 1500),
        Other('BigGAN', '1', 8.43),
        Other('StyleGAN-XL', '1x2', 2.41),
        Other('VQGAN', '1024', 26.52, 227),
        Other('VAR-d36-s', '10x2', 2.63, 2300),
        Other('MAR-L', '256x2', 1.73, 481),
    ),
}


class Timed(NamedTuple):
    """A speed that the paper states, on one A100 with batches of 256."""

    name: str
    seconds: float  # per image
    fid: float
    origin: str


# image size: rows
SPEEDS = {
    256: (
        Timed('eMIGM-L', 0.2, 1.8, 'text on Figure 4c, "about"'),
        Timed('eMIGM-B', 0.2, 2.3, 'text on Figure 4c, "about"'),
    ),
    512: (
        Timed('eMIGM-L', 0.165, 1.77, 'Table 10'),
        Timed('EDM2-XXL', 0.552, 1.81, 'Table 10'),
        Timed('EDM2-XXL, interval', 0.481, 1.40, 'Table 10'),
    ),
}


def evaluations(nfe: str) -> float:
    """Transformer evaluations per image of a label: '16x1.2' -> 19.2, '750' -> 750."""
    product = 1.0
    for factor in str(nfe).split('x'):
        product *= float(factor)
    return product


def rows(method: str, image_size: int, size: str) -> dict[str, Published]:
    """The rows of a model by preset, {} if the paper has none."""
    return {key[3]: row for key, row in ROWS.items() if key[:3] == (method, image_size, size)}


def table(image_size: int) -> list[tuple[Any, ...]]:
    """What the paper's tables have at an image size, our methods first; None where they have none.

    Returns:
      [(model, millions of parameters, NFE label, FID, sFID, Inception Score, precision, recall)].
    """
    titles = {'emigm': 'eMIGM-{}', 'mar': 'MAR-{}', 'maskgit': 'MaskGIT'}  # which has one size
    ours = [
        (titles[method].format(size.upper()), PARAMETERS[method, pixels, size], *row)
        for (method, pixels, size, _), row in ROWS.items()
        if pixels == image_size
    ]
    others = OTHERS.get(image_size, ())
    return ours + [(row.name, row.parameters, row.nfe, row.fid, *[None] * 4) for row in others]
