"""How often a bucket is asked, and that nothing is missed by asking less."""

import re
import time

import numpy as np
import pytest

import emigm_jax as em
from emigm_jax.checkpoints import copy, runs, store
from emigm_jax.cli import main
from emigm_jax.io import files, listings, paths
from support.faulty_gcs import Rule
from support.runs import SMOKE, state, write_run  # noqa: F401 (a fixture)

pytestmark = pytest.mark.filterwarnings('ignore:Sending a large body:ResourceWarning')

NEWEST, KEPT = 20, range(1, 20)
MOST = 60  # requests of a process that goes on with a run, or reads a model
ARRAYS = re.compile(r'/state/(.*/)?d/')


def questions(faults):
    """How many requests there were since the last call, and how many of them for arrays."""
    asked, arrays = len(faults.asked), sum(map(bool, map(ARRAYS.search, faults.asked)))
    faults.asked.clear()
    print(f'{asked} requests, {arrays} of them for arrays')
    return asked, arrays


def restart(workdir):
    flags = '--config.optimizer.ema_decays=(0.9,0.5)', '--config.training.keep=5'
    total = f'--config.training.total={NEWEST} steps'
    assert main.main(['train', f'--config={SMOKE}', *flags, total, '--workdir', workdir]) == 0


@pytest.mark.slow
def test_many_checkpoints_are_asked_about_as_few_are(state, bucket, faults, monkeypatch):  # noqa: F811
    # These runs have nothing to do, and would end while Orbax looks for remains in a thread.
    close = runs.Writer.close
    monkeypatch.setattr(runs.Writer, 'close', lambda self: (time.sleep(2), close(self)))
    write_run(bucket, state, (NEWEST,))
    restart(bucket)  # what a run writes beside them is there
    counted = []
    for _ in range(2):
        faults.asked.clear()
        restart(bucket)
        restarted = questions(faults)
        em.load(bucket)
        counted.append((restarted, questions(faults)))
        newest = paths.absolute(bucket) / runs.FOLDER / str(NEWEST)
        for name in copy.listing(newest):
            for step in KEPT:
                files.write(newest.parent / str(step) / name, [(newest / name).read_bytes()])
    assert len(runs.finished(bucket)) == 1 + len(KEPT)
    for one, twenty in zip(*counted, strict=True):
        assert abs(twenty[0] - one[0]) <= 6
    for asked, arrays in counted[1]:
        assert asked <= MOST
        assert arrays <= 10  # of 70 arrays and more


@pytest.mark.parametrize('answer', [listings.ANSWER, 3])
def test_what_is_there_is_found_by_one_listing(answer, bucket, faults, monkeypatch):
    """Or, if one answer is too short for all of it, by one of each folder."""
    monkeypatch.setattr(listings, 'ANSWER', answer)
    store.save(f'{bucket}/checkpoints/5', {'a': np.ones(3, np.float32)}, {'x': 1})
    files.write_text(f'{bucket}/checkpoints/7/state/d/1', 'not finished')
    folder = paths.absolute(bucket)
    faults.asked.clear()
    with listings.once(folder):
        assert [path.name for path in runs.finished(folder)] == ['5']
        assert sorted(path.name for path in folder.iterdir()) == ['checkpoints']
        assert store.checkpoint(folder / 'checkpoints/5').description['x'] == 1
        assert store.description(folder / 'checkpoints/5')['x'] == 1
        assert (folder / 'checkpoints/7/state').is_dir()
        assert not (folder / 'checkpoints/7/nothing/at/all').exists()
        assert not (folder / 'checkpoints/8').is_dir()
    lists = [request for request in faults.asked if 'prefix=' in request]
    # All of it, then the folder, its checkpoints, two of them and their states.
    assert len(lists) == (1 if answer > 3 else 7)
    assert sum(store.MARK in request for request in faults.asked) == 1


def test_what_is_written_within_a_block_is_seen(bucket, faults):
    folder = paths.absolute(bucket)
    with listings.once(folder):
        assert not folder.exists()
        for text in ('one', 'other'):
            files.write_text(folder / 'a/b', text)
            assert (folder / 'a').is_dir()
            assert (folder / 'a/b').read_text() == text
        (folder / 'a/c').write_text('by etils')
        assert sorted(path.name for path in (folder / 'a').iterdir()) == ['b', 'c']
        (folder / 'a/b').unlink()
        assert not (folder / 'a/b').exists()
    faults.asked.clear()
    assert not (folder / 'a/b').exists()  # after the block it is asked again
    assert faults.asked


def test_what_did_not_come_is_asked_for_again(bucket, faults, hurried):
    place = paths.absolute(bucket) / 'a'
    files.write_text(place, 'all of it')
    with listings.once(bucket):
        faults.use(Rule('403', 'GET .*alt=media'))
        with pytest.raises(OSError, match='Forbidden'):
            place.read_text()
        assert place.read_text() == place.read_text() == 'all of it'
    assert sum('alt=media' in request for request in faults.asked) == 2
