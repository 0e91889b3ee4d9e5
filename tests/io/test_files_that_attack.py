"""Damaged and hostile files of every kind end in one line, soon, and take little memory.

They are read in processes of their own, whose memory and time are bounded.
"""

import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from emigm_jax.checkpoints import store
from emigm_jax.errors import LONGEST, Damaged, UserError, printable
from emigm_jax.io import bounded, npz

TESTS = pathlib.Path(__file__).parents[1]
# Changed files of each kind; those that take long have fewer.
COUNTS = [40, pytest.param(120, marks=pytest.mark.slow)]
SECONDS = 'EMIGM_FUZZ_SECONDS'  # in the environment: other files, for as long as that
OTHERS = 10**6  # the first of these


def run(module, *arguments, seconds):
    """What a module of the tests prints; it must end with code 0."""
    path = os.pathsep.join(filter(None, (str(TESTS), os.environ.get('PYTHONPATH'))))
    command = [sys.executable, '-m', f'support.{module}', *map(str, arguments)]
    environment = {**os.environ, 'PYTHONPATH': path}
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=seconds, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize('count', COUNTS)
def test_changed_files_of_every_kind(count):
    if asked := int(os.environ.get(SECONDS, 0)):
        from support import fuzzed

        share = asked // len(fuzzed.KINDS) + 1
        print(run('fuzz', 'all', OTHERS, 10**9, share, seconds=2 * asked + 600))
    else:
        run('fuzz', 'all', 0, count, seconds=600)


def test_small_files_that_are_meant_to_cost_much():
    run('bombs', seconds=300)


def test_lines_are_printable_and_bounded():
    """Whatever a message is made of, as the name of a file is."""
    names = ['\x1b[31mred', 'a\nb', '\udcff\ud800', '\N{ZERO WIDTH SPACE}', 'x' * 10**6, '\0' * 900]
    for name in names:
        line = str(UserError(f'{name}: is no file'))
        assert line.isprintable() and line.endswith(': is no file') and len(line) <= LONGEST
        assert printable(name).isprintable() and len(printable(name)) <= 500
    assert printable('caf\N{LATIN SMALL LETTER E WITH ACUTE} \udcff') == 'caf\xe9 \\xff'
    assert str(UserError('as it is')) == 'as it is'


def test_arrays_of_a_checkpoint_are_not_far_larger_than_its_files(tmp_path, monkeypatch):
    """Zeros are compressed to nothing."""
    monkeypatch.setattr(store, '_SPARE', 2**16)
    random = np.random.default_rng(0).standard_normal(2**16, np.float32)
    for name, array in {'zeros': np.zeros(2**22, np.float32), 'weights': random}.items():
        store.save(tmp_path / name, {'params': array}, {})
    np.testing.assert_array_equal(
        store.checkpoint(tmp_path / 'weights').load_part('params'), random
    )
    with pytest.raises(Damaged, match='arrays of 16,777,216 bytes in files of'):
        store.checkpoint(tmp_path / 'zeros').load_part('params')


def test_arrays_of_an_npz_are_not_far_larger_than_its_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr(npz, '_SPARE', 2**12)
    numbers = np.arange(2**12, dtype=np.float32)
    np.savez_compressed(tmp_path / 'a.npz', zeros=np.zeros(2**20), numbers=numbers)
    members = npz.members(tmp_path / 'a.npz')
    np.testing.assert_array_equal(members['numbers'].read(), numbers)
    with pytest.raises(UserError, match='zeros has 8,388,736 bytes of nearly nothing'):
        members['zeros'].read()
    content = (tmp_path / 'a.npz').read_bytes()
    monkeypatch.setattr(npz, '_SMALL', 2**16)
    (read,) = npz.loads(content, ['numbers'])
    np.testing.assert_array_equal(read, numbers)
    with pytest.raises(ValueError, match='zeros is larger than any of its kind'):
        npz.loads(content, ['zeros'])


@pytest.mark.parametrize('order', '<>')
def test_texts_of_an_npz_are_of_characters(order, tmp_path):
    """Python would take 0x110000 for one, and break when it looks at the text."""
    text = np.array('caf\xe9', f'{order}U4')
    np.savez(tmp_path / 'a.npz', text=text, other=np.array(3))
    members = npz.members(tmp_path / 'a.npz')
    assert members['text'].text() == 'caf\xe9' and members['other'].whole() == 3
    for name, read in {'text': npz.Rows.whole, 'other': npz.Rows.text}.items():
        with pytest.raises(UserError, match=f'{name} is no (count|text)'):
            read(members[name])
    letters = np.frombuffer(text.tobytes(), f'{order}u4').copy()
    letters[1] = 0x110000
    broken = np.frombuffer(letters.tobytes(), f'{order}U4').reshape(())
    np.savez(tmp_path / 'b.npz', text=broken)
    with pytest.raises(UserError, match='text is no text'):
        npz.members(tmp_path / 'b.npz')['text'].text()


DESCRIPTIONS = (
    {'config': []},
    {'presets': {'best': 1}},
    {'source': 'x'},
    {'source': {'step': -1}},
    {'source': {'unread': {'fake_latent': 3}}},
    {'class_names': ['a', 1]},
    {'data': 7},
    {'versions': {'jax': 1}},
    {'tokenizer': 'kl16'},
    {'counters': {'a': 2**63}},
)


@pytest.mark.parametrize('description', DESCRIPTIONS, ids=str)
def test_descriptions_of_checkpoints_have_their_types(description, tmp_path):
    store.save(tmp_path / 'a', {'params': np.zeros(3)}, description)
    with pytest.raises(
        Damaged, match=f'its {next(iter(description))[:4]}.* cannot be|its (step|unread)'
    ):
        store.checkpoint(tmp_path / 'a')


@pytest.mark.parametrize(
    ('text', 'reason'),
    [
        (b'{"a": 1', 'delimiter'),
        (b'\xff\xfe', 'decode'),
        ('[' * 60 + ']' * 60, 'nested deeper'),
        ('[' * 10**5, 'nested deeper'),
        ('{"a": 12345678901234567890}', '20 digits is out of range'),
    ],
)
def test_json_is_bounded(text, reason, monkeypatch):
    with pytest.raises(ValueError, match=reason):
        bounded.parsed(text)
    assert bounded.parsed(b'\xef\xbb\xbf{"a": [1, 2.5, "x", null, -9]}') == {
        'a': [1, 2.5, 'x', None, -9]
    }
    monkeypatch.setattr(bounded, 'MOST_BYTES', 9)
    with pytest.raises(ValueError, match='10 bytes are more'):
        bounded.parsed(b'"01234567"')
