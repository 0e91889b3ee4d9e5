"""Exports to a bucket that fail or are killed: nothing half-written is believed, or in the way."""

import numpy as np
import pytest

from emigm_jax.checkpoints import begun, copy, runs, store
from emigm_jax.errors import Unavailable, UserError
from emigm_jax.io import files, lease, paths
from support.faulty_gcs import Rule

pytestmark = pytest.mark.filterwarnings('ignore:Sending a large body:ResourceWarning')

TREE = {'params': {'a': np.ones((50, 50), np.float32)}}
PLACES = ('POST .*/d/', 'POST .*/_METADATA', f'POST .*{store.COMMIT_MARK}')


def exported(bucket):
    store.save(f'{bucket}/m', TREE, {'x': 1})
    assert store.checkpoint(f'{bucket}/m').description['x'] == 1
    names = set(copy.listing(bucket))
    assert all(name.startswith('m/') for name in names)


@pytest.mark.parametrize('what', PLACES)
def test_what_failed_leaves_nothing(what, bucket, faults, hurried):
    faults.use(Rule('403', what, 10**9))
    with pytest.raises(UserError, match='/m: cannot be written'):
        store.save(f'{bucket}/m', TREE, {})
    assert faults.met[0]
    faults.use()
    assert not copy.listing(bucket)
    exported(bucket)


@pytest.mark.parametrize('what', PLACES[::2])
def test_what_was_cut_off_is_no_checkpoint_and_goes(what, bucket, faults, hurried, monkeypatch):
    """The bucket does not answer any more, so nothing can be cleared."""
    with monkeypatch.context() as cut:
        cut.setattr(lease.Lease, 'leave', lambda self: self._over.set())  # as if it was killed
        cut.setattr(lease, 'born', lambda process: 'before')
        faults.use(Rule('503', what, 10**9))
        with pytest.raises(Unavailable):
            store.save(f'{bucket}/m', TREE, {})
        faults.use()
    assert 'm/orbax.checkpoint' in copy.listing(bucket)
    files.write_text(f'{bucket}/m/state/d/more', 'of what was cut off')
    assert not store.is_checkpoint(f'{bucket}/m')
    assert runs.find(f'{bucket}/m') is None
    with pytest.raises(UserError, match='holds no checkpoint'):
        runs.require(f'{bucket}/m')
    store.check_free(f'{bucket}/m')
    exported(bucket)
    assert 'm/state/d/more' not in copy.listing(bucket)


def test_only_what_an_export_left_is_cleared(bucket, capsys):
    """Not what another tool copied there without a mark, nor what is whole, nor another's work."""
    exported(bucket)
    path = paths.absolute(f'{bucket}/m')
    files.write_text(path.parent / '.m.begun/unfinished', 'killed before it went')
    with pytest.raises(UserError, match='exists already'):
        store.save(path, TREE, {})
    (path.parent / '.m.begun/unfinished').unlink()
    (path / store.COMMIT_MARK).unlink()
    with pytest.raises(UserError, match='exists already'):
        store.save(path, TREE, {})
    other = paths.absolute(f'{bucket}/other')
    with begun.alone(other, store.COMMIT_MARK), pytest.raises(UserError, match='another export'):
        store.save(other, TREE, {})
    assert not [name for name in copy.listing(bucket) if 'begun' in name]
