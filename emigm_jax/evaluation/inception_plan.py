"""The Inception network of FID as a table (Szegedy et al. 2015, arXiv 1512.00567).

A path is a sequence of steps: `Conv`, the name of a pool, or `Split`. The names are those of
torchvision and of the PyTorch ports of TensorFlow's network of 2015-12-05.
"""

from typing import Any, NamedTuple

COLOURS = 3
WIDTH = 2048  # channels before the classifier
SPATIAL_CHANNELS = 7  # of the 17 x 17 map, that sFID reads
SPATIAL_WIDTH = 17 * 17 * SPATIAL_CHANNELS
CLASSES = 1008  # ImageNet's 1000, a background and unused ones


class Conv(NamedTuple):
    """Convolution without bias, batch norm with recorded statistics, ReLU."""

    name: str
    outputs: int  # channels
    size: tuple[int, int]  # rows, columns
    stride: int = 1
    padding: str = 'SAME'

    @property
    def attribute(self) -> str:
        """Where the parameters are kept: the name with '_' for '.'."""
        return self.name.replace('.', '_')


class Split(NamedTuple):
    """Paths with one input; their outputs' channels are joined in this order."""

    paths: 'tuple[Path, ...]'


Path = tuple[Conv | str | Split, ...]

_1X1, _3X3, _5X5 = (1, 1), (3, 3), (5, 5)
_ROW7, _COLUMN7, _ROW3, _COLUMN3 = (1, 7), (7, 1), (1, 3), (3, 1)
_REDUCE: dict[str, Any] = dict(stride=2, padding='VALID')


def _block(name, *paths):
    """A `Split` whose convolutions get the name of the block in front of theirs."""

    def named(step):
        match step:
            case Conv():
                return step._replace(name=f'{name}.{step.name}')
            case Split(paths):
                return Split(tuple(tuple(map(named, path)) for path in paths))
        return step

    return named(Split(paths))


def _grid35(name, pooled):
    return _block(
        name,
        (Conv('branch1x1', 64, _1X1),),
        (Conv('branch5x5_1', 48, _1X1), Conv('branch5x5_2', 64, _5X5)),
        (
            Conv('branch3x3dbl_1', 64, _1X1),
            Conv('branch3x3dbl_2', 96, _3X3),
            Conv('branch3x3dbl_3', 96, _3X3),
        ),
        ('average', Conv('branch_pool', pooled, _1X1)),
    )


def _grid17(name, inner):
    return _block(
        name,
        (Conv('branch1x1', 192, _1X1),),
        (
            Conv('branch7x7_1', inner, _1X1),
            Conv('branch7x7_2', inner, _ROW7),
            Conv('branch7x7_3', 192, _COLUMN7),
        ),
        (
            Conv('branch7x7dbl_1', inner, _1X1),
            Conv('branch7x7dbl_2', inner, _COLUMN7),
            Conv('branch7x7dbl_3', inner, _ROW7),
            Conv('branch7x7dbl_4', inner, _COLUMN7),
            Conv('branch7x7dbl_5', 192, _ROW7),
        ),
        ('average', Conv('branch_pool', 192, _1X1)),
    )


def _grid8(name, pool):
    def cross(stem):
        return Split(((Conv(f'{stem}a', 384, _ROW3),), (Conv(f'{stem}b', 384, _COLUMN3),)))

    return _block(
        name,
        (Conv('branch1x1', 320, _1X1),),
        (Conv('branch3x3_1', 384, _1X1), cross('branch3x3_2')),
        (
            Conv('branch3x3dbl_1', 448, _1X1),
            Conv('branch3x3dbl_2', 384, _3X3),
            cross('branch3x3dbl_3'),
        ),
        (pool, Conv('branch_pool', 192, _1X1)),
    )


LOWER = (  # 299 x 299 x 3 -> 17 x 17 x 768, whose first channels sFID reads
    Conv('Conv2d_1a_3x3', 32, _3X3, **_REDUCE),
    Conv('Conv2d_2a_3x3', 32, _3X3, padding='VALID'),
    Conv('Conv2d_2b_3x3', 64, _3X3),
    'halve',
    Conv('Conv2d_3b_1x1', 80, _1X1),
    Conv('Conv2d_4a_3x3', 192, _3X3, padding='VALID'),
    'halve',
    _grid35('Mixed_5b', 32),
    _grid35('Mixed_5c', 64),
    _grid35('Mixed_5d', 64),
    _block(
        'Mixed_6a',
        (Conv('branch3x3', 384, _3X3, **_REDUCE),),
        (
            Conv('branch3x3dbl_1', 64, _1X1),
            Conv('branch3x3dbl_2', 96, _3X3),
            Conv('branch3x3dbl_3', 96, _3X3, **_REDUCE),
        ),
        ('halve',),
    ),
    _grid17('Mixed_6b', 128),
    _grid17('Mixed_6c', 160),
    _grid17('Mixed_6d', 160),
)
UPPER = (  # -> 8 x 8 x 2048
    _grid17('Mixed_6e', 192),
    _block(
        'Mixed_7a',
        (Conv('branch3x3_1', 192, _1X1), Conv('branch3x3_2', 320, _3X3, **_REDUCE)),
        (
            Conv('branch7x7x3_1', 192, _1X1),
            Conv('branch7x7x3_2', 192, _ROW7),
            Conv('branch7x7x3_3', 192, _COLUMN7),
            Conv('branch7x7x3_4', 192, _3X3, **_REDUCE),
        ),
        ('halve',),
    ),
    _grid8('Mixed_7b', 'average'),
    _grid8('Mixed_7c', 'max'),
)


def convolutions(path: Path, inputs: int) -> tuple[list[tuple[Conv, int]], int]:
    """All convolutions of a path that gets `inputs` channels: ([(Conv, inputs)], its outputs)."""
    rows = []
    for step in path:
        match step:
            case Conv():
                rows.append((step, inputs))
                inputs = step.outputs
            case Split(paths):
                inside = [convolutions(path, inputs) for path in paths]
                rows += [row for branch, _ in inside for row in branch]
                inputs = sum(outputs for _, outputs in inside)
    return rows, inputs


def network() -> list[tuple[Conv, int]]:
    """All convolutions, each with the number of its input channels."""
    return convolutions(LOWER + UPPER, COLOURS)[0]
