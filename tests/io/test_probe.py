"""The look at a folder before work begins, by many processes at once."""

import concurrent.futures
import pathlib

import pytest

from emigm_jax.errors import UserError
from emigm_jax.io import access


def test_probes_of_the_same_place_do_not_meet(tmp_path):
    """All processes of a run look at its workdir at the same moment, on a shared file system."""
    place = tmp_path / 'runs' / 'one'
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        list(pool.map(access.probe, [place] * 400))
    assert list(tmp_path.iterdir()) == []


def test_probe_leaves_a_folder_as_it_is(tmp_path):
    (tmp_path / 'kept').write_text('x')
    access.probe(tmp_path)
    access.probe(tmp_path / 'new' / 'deep')
    assert [p.name for p in tmp_path.iterdir()] == ['kept']


@pytest.mark.parametrize('name', ['file/below', 'n' * 300, 'deep/' + 'n' * 300])
def test_places_where_nothing_can_be_made(name, tmp_path):
    (tmp_path / 'file').write_text('x')
    with pytest.raises(UserError, match='cannot be reached or written'):
        access.probe(tmp_path / pathlib.Path(name))
