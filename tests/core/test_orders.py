"""Orders of generation: permutations of the grid, and Halton's as the official code has it."""

import jax
import numpy as np
import pytest

from emigm_jax.core import orders
from emigm_jax.core.reveal import RevealConfig
from emigm_jax.errors import UserError
from support import golden


def order(name, positions=()):
    return orders.order(RevealConfig(order=name, positions=positions))


@pytest.mark.parametrize('name', orders.ORDERS)
@pytest.mark.parametrize('grid', [2, 5, 16])
def test_every_position_comes_once(name, grid):
    positions = tuple(range(grid**2))[::-1] if name == 'given' else ()
    drawn = [order(name, positions)(jax.random.key(i), grid) for i in range(3)]
    for one in drawn:
        assert one.dtype == np.int32
        np.testing.assert_array_equal(np.sort(one), np.arange(grid**2))
    same = all((one == drawn[0]).all() for one in drawn)
    assert same == (name not in ('random', 'halton'))


@pytest.mark.parametrize('grid', [2, 3, 8, 9])
def test_the_spiral_winds_from_the_centre(grid):
    cells = np.asarray(order('spiral')(jax.random.key(0), grid))
    rows, columns = np.divmod(cells, grid)
    assert (rows[0], columns[0]) == ((grid - 1) // 2, (grid - 1) // 2)
    # Each cell is beside the one before.
    assert (np.abs(np.diff(rows)) + np.abs(np.diff(columns)) == 1).all()
    ring = np.maximum(np.abs(2 * rows + 1 - grid), np.abs(2 * columns + 1 - grid))
    assert (np.diff(ring) >= 0).all()


def test_positions_that_are_given():
    np.testing.assert_array_equal(order('given', (2, 0, 3, 1))(jax.random.key(0), 2), [2, 0, 3, 1])
    for wrong in ((0, 1, 2), (0, 1, 2, 2), (1, 2, 3, 4)):
        with pytest.raises(UserError, match=r'each of 0 to 3 once: there are'):
            order('given', wrong)(jax.random.key(0), 2)
    for name, positions in (('given', ()), ('confidence', (0, 1))):
        with pytest.raises(UserError, match='go together'):
            order(name, positions)


@pytest.mark.parametrize('grid', [4, 8, 16, 32])
def test_halton_cells_are_the_official_ones(grid):
    row, column = golden.arrays('halton_orders.npz')[f'order_{grid}'].T
    np.testing.assert_array_equal(orders.halton_cells(grid), row * grid + column)


def test_halton_starts_anywhere_and_keeps_its_course():
    cells = orders.halton_cells(8)
    for i in range(4):
        drawn = np.asarray(order('halton')(jax.random.key(i), 8))
        np.testing.assert_array_equal(drawn, np.roll(cells, int(np.argmax(drawn == cells[0]))))


def test_a_grid_of_many_cells_is_covered():
    """Beyond the 10,000 points with which the official code ends."""
    cells = orders.halton_cells(150)
    np.testing.assert_array_equal(np.sort(cells), np.arange(150**2))
