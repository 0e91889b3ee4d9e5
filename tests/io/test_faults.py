"""A bucket that fails for a moment, or for good: nothing that was there is lost."""

import numpy as np
import pytest

from emigm_jax.checkpoints import copy, store
from emigm_jax.data import copies, latents
from emigm_jax.errors import Damaged, Unavailable, UserError
from emigm_jax.io import files
from support import gcs
from support.caches import make
from support.faulty_gcs import Rule

pytestmark = pytest.mark.filterwarnings('ignore:Sending a large body:ResourceWarning')


@pytest.mark.parametrize('fault', ['403', '503', 'reset'])
def test_a_failed_upload_leaves_what_was_there(fault, bucket, faults, hurried, capsys):
    files.write_text(f'{bucket}/metrics.jsonl', 'old')
    faults.use(Rule(fault, 'POST .*metrics', times=1000))
    with pytest.raises(UserError, match=r'metrics\.jsonl: ') as failed:
        files.write_text(f'{bucket}/metrics.jsonl', 'new')
    assert isinstance(failed.value, Unavailable) == (fault != '403')
    assert ('trying again' in capsys.readouterr().err) == (fault != '403')
    faults.use()
    assert gcs.text(f'{bucket}/metrics.jsonl') == 'old'


def test_half_of_what_was_to_be_written_replaces_nothing(bucket):
    files.write_text(f'{bucket}/a', 'old')

    def broken():
        yield b'half'
        raise OSError('the disk is gone')

    with pytest.raises(UserError, match='the disk is gone'):
        files.write(f'{bucket}/a', broken())
    assert gcs.text(f'{bucket}/a') == 'old'


@pytest.mark.parametrize('fault', ['429', '503', 'reset', 'slow', 'stored', 'short'])
def test_what_fails_for_a_moment_is_done_again(fault, bucket, faults, hurried):
    faults.use(
        Rule(fault, 'POST .*one'), Rule('short' if fault == 'stored' else fault, 'GET .*one')
    )
    files.write_text(f'{bucket}/one', '0123456789' * 20)
    assert gcs.text(f'{bucket}/one') == '0123456789' * 20
    assert faults.met == {0: 1, 1: 1}


@pytest.mark.parametrize(
    ('fault', 'reason'),
    [('503', '(HTTP 503)'), ('reset', 'Unknown error 104'), ('403', '(HTTP 403)')],
)
def test_arrays_that_cannot_be_written(fault, reason, bucket, faults, hurried):
    faults.use(Rule(fault, 'POST .*/d/', times=1000))
    with pytest.raises(UserError, match='cannot be written') as failed:
        store.save(f'{bucket}/a', {'a': np.ones(3, np.float32)}, {})
    assert isinstance(failed.value, Unavailable) == (fault != '403')
    assert reason in str(failed.value)
    assert len(str(failed.value)) < 300
    assert (faults.met[0] >= 6) == (fault != '403')


def test_a_description_that_does_not_come_is_not_damaged(bucket, faults, hurried):
    path = f'{bucket}/a'
    store.save(path, {'a': np.ones(3, np.float32)}, {'x': 1})
    faults.use(Rule('short', f'GET .*{store.MARK}.*alt=media', times=3))
    assert store.checkpoint(path).description['x'] == 1
    assert faults.met == {0: 3}
    for what in (store.MARK, '/_METADATA'):  # which Orbax would take for empty
        faults.use(Rule('503', f'GET .*{what}.*alt=media', times=1000))
        with pytest.raises(Unavailable, match='cannot be read'):
            store.checkpoint(path)
    faults.use(Rule('403', 'GET .*alt=media', times=1000))
    with pytest.raises(UserError, match=r'cannot be read .*Forbidden') as refused:
        store.checkpoint(path)
    assert not isinstance(refused.value, Damaged)


ON_THE_WAY = ('503', 'reset', '429', 'stored')


def test_a_cache_is_made_and_copied_amid_faults(bucket, faults, hurried, tmp_path):
    make(tmp_path / 'whole')
    faults.use(
        *(Rule(fault, 'POST .*shards') for fault in ON_THE_WAY),
        *(Rule(fault, 'POST .*manifest') for fault in ('stored', '503')),
    )
    make(f'{bucket}/cache')
    assert len(faults.met) == 6
    faults.use(*(Rule(fault, 'GET .*shards.*alt=media') for fault in ('short', *ON_THE_WAY[:3])))
    copied = copies.copied(f'{bucket}/cache', tmp_path / 'copy')
    assert len(faults.met) == 4
    for name in copy.listing(copied):
        if name != '.lock':
            assert (copied / name).read_bytes() == (tmp_path / 'whole' / name).read_bytes()
    rows, flips = np.arange(20), np.arange(20) % 2 == 1
    faults.use(*(Rule(fault, 'GET .*shards.*alt=media', 2) for fault in ('503', 'short', 'slow')))
    found = latents.Cache(f'{bucket}/cache').take(rows, flips)
    assert faults.met == {0: 2, 1: 2, 2: 2}
    np.testing.assert_array_equal(found, latents.Cache(copied).take(rows, flips))


def test_a_checkpoint_is_copied_amid_faults(bucket, faults, hurried, tmp_path):
    store.save(tmp_path / 'a', {'a': np.arange(9, dtype=np.float32)}, {'x': 1})
    faults.use(*(Rule(fault, f'POST .*{bucket[-8:]}') for fault in ON_THE_WAY))
    copy.copy(tmp_path / 'a', f'{bucket}/b')
    assert len(faults.met) == 4
    faults.use(*(Rule(fault, 'GET .*/b/.*alt=media') for fault in ('short', *ON_THE_WAY[:3])))
    copy.copy(f'{bucket}/b', tmp_path / 'c')
    assert len(faults.met) == 4
    for name in copy.listing(tmp_path / 'a').keys() - {store.COMMIT_MARK}:
        assert (tmp_path / 'c' / name).read_bytes() == (tmp_path / 'a' / name).read_bytes()
    faults.use(Rule('403', 'POST .*/d', times=99))
    with pytest.raises(UserError, match='Forbidden'):
        copy.copy(tmp_path / 'a', f'{bucket}/d')
    faults.use()
    assert not store.is_checkpoint(f'{bucket}/d')
    copy.copy(tmp_path / 'a', f'{bucket}/d')
