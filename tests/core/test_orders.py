"""Orders of generation: permutations of the grid, and Halton's as the official code has it."""

import jax
import numpy as np
import pytest

from emigm_jax.core import orders
from support import golden


@pytest.mark.parametrize('name', orders.ORDERS)
@pytest.mark.parametrize('grid', [2, 5, 16])
def test_every_position_comes_once(name, grid):
    drawn = [orders.ORDERS[name](jax.random.key(i), grid) for i in range(3)]
    for order in drawn:
        assert order.dtype == np.int32
        np.testing.assert_array_equal(np.sort(order), np.arange(grid**2))
    same = all((order == drawn[0]).all() for order in drawn)
    assert same == (name == 'raster')


@pytest.mark.parametrize('grid', [4, 8, 16, 32])
def test_halton_cells_are_the_official_ones(grid):
    row, column = golden.arrays('halton_orders.npz')[f'order_{grid}'].T
    np.testing.assert_array_equal(orders.halton_cells(grid), row * grid + column)


def test_halton_starts_anywhere_and_keeps_its_course():
    cells = orders.halton_cells(8)
    for i in range(4):
        order = np.asarray(orders.ORDERS['halton'](jax.random.key(i), 8))
        np.testing.assert_array_equal(order, np.roll(cells, int(np.argmax(order == cells[0]))))


def test_a_grid_of_many_cells_is_covered():
    """Beyond the 10,000 points with which the official code ends."""
    cells = orders.halton_cells(150)
    np.testing.assert_array_equal(np.sort(cells), np.arange(150**2))
