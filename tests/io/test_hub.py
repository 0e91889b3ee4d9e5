"""hf://: files and folders come through huggingface_hub from a server of this machine."""

import sys
import time

import numpy as np
import pytest

from emigm_jax.checkpoints import copy, store
from emigm_jax.cli import main
from emigm_jax.conversion import convert
from emigm_jax.errors import UserError
from emigm_jax.evaluation import references
from emigm_jax.io import access, files, npz, paths
from emigm_jax.io.formats import torch_files
from support import golden
from support.checkpoint_files import SIX, write_safetensors
from support.hub import forget

FILE = 'eMIGM_tiny.pth'


@pytest.fixture
def stocked(hub, tmp_path):
    one = {'x': {'dtype': 'F32', 'shape': [6], 'data_offsets': [0, 24]}}
    weights = write_safetensors(tmp_path / 'w', one, SIX.tobytes()).read_bytes()
    hub.files['me/weights'] = {
        FILE: golden.path('emigm_tiny_release.pth').read_bytes(),
        'dc-ae/config.json': b'{"model_name": "tiny"}',
        'dc-ae/model.safetensors': weights,
        'dc-ae/optimizer.bin': bytes(1000),
        'shards/model.safetensors.index.json': b'{"weight_map": {"x": "a.safetensors"}}',
        'shards/a.safetensors': weights,
        'empty.pth': b'',
    }
    return hub


def test_published_weights_in_one_command(stocked, tmp_path, capsys):
    target = tmp_path / 'model'
    command = ['convert', f'hf://me/weights/{FILE}', str(target), '--heads', '4']
    assert main.main(command) == 0
    assert f'hf://me/weights/{FILE}: emigm' in capsys.readouterr().out
    assert store.checkpoint(target).description['source']['file'] == FILE
    assert len(stocked.fetches(FILE)) == 1
    assert 'model_ema' in torch_files.read(f'hf://me/weights@v1/{FILE}')
    assert len(stocked.fetches(FILE)) == 1  # it was in the cache


def test_of_a_folder_only_what_is_read_is_fetched(stocked):
    with pytest.raises(UserError, match="it holds 'x'"):
        convert.convert('hf://me/weights/dc-ae', 'nowhere')
    for place in ('dc-ae', 'dc-ae/', 'shards', 'shards/model.safetensors.index.json'):
        np.testing.assert_array_equal(torch_files.read(f'hf://me/weights/{place}')['x'], SIX)
    assert torch_files.read_config('hf://me/weights/dc-ae') == {'model_name': 'tiny'}
    assert not stocked.fetches('optimizer') and not stocked.fetches(FILE)


def test_every_path_that_is_read(stocked, tmp_path):
    """Checkpoints, statistics and texts go through the same door."""
    store.save(tmp_path / 'ours', {'x': SIX}, {'what': 'a test'})
    lying = (f for f in (tmp_path / 'ours').rglob('*') if f.is_file())
    stocked.files['me/run'] = {
        f'final/{f.relative_to(tmp_path / "ours")}': f.read_bytes() for f in lying
    }
    np.savez(tmp_path / 'ref.npz', mu=np.zeros(2048), sigma=np.eye(2048, dtype=np.float32))
    stocked.files['me/run'] |= {
        'ref.npz': (tmp_path / 'ref.npz').read_bytes(),
        'settings.json': b'{"a": 1}',
    }
    assert store.is_checkpoint('hf://me/run/final')
    loaded = store.checkpoint('hf://me/run/final')
    np.testing.assert_array_equal(loaded.load_part('x'), SIX)
    assert references.read('hf://me/run/ref.npz').name == 'ref.npz'
    assert len(stocked.fetches('ref.npz')) == 1
    assert sum('ref.npz' in path for _, path, _ in stocked.asked) == 2  # HEAD, GET
    assert files.read_json('hf://me/run/settings.json') == {'a': 1}
    assert (paths.absolute('hf://datasets/me/run') / 'settings.json').read_text() == '{"a": 1}'


def test_an_interrupted_download_goes_on(stocked, monkeypatch):
    monkeypatch.setattr(time, 'sleep', lambda seconds: None)
    stocked.files['me/weights']['big'] = np.arange(3_000_000, dtype=np.int32).tobytes()
    stocked.cut['big'] = 11_000_000
    data = paths.absolute('hf://me/weights/big').read_bytes()
    assert data == stocked.files['me/weights']['big']
    first, second = stocked.fetches('big')
    assert not first and int(second.removeprefix('bytes=').rstrip('-')) > 0


def complaint(action, *arguments):
    with pytest.raises(UserError) as caught:
        action(*arguments)
    line = str(caught.value)
    assert '\n' not in line and len(line) < 400
    return line


MISTAKES = {
    'nobody/nothing/x': 'there is no repository nobody/nothing',
    'me/weights/typo.pth': "has no file or folder 'typo.pth'",
    'me/weights/typo/': "has no file or folder 'typo'",
    f'me/weights@v9/{FILE}': 'has no revision v9',
    'me/closed/x': 'ask on its page',
    'weights': 'write hf://USER/REPOSITORY/FILE',
    'me/weights/../x': 'write hf://USER/REPOSITORY/FILE',
    'me//x': 'write hf://USER/REPOSITORY/FILE',
    'me/a--b/x': 'is no name of a repository',
}


def test_mistakes_are_one_line(stocked, capsys):
    stocked.files['me/closed'] = {'x': b''}
    stocked.closed.add('me/closed')
    for place, says in MISTAKES.items():
        for read in (paths.absolute, torch_files.read):
            line = complaint(read, f'hf://{place}')
            assert line.startswith(f'hf://{place}: ') and says in line
    assert 'empty' in complaint(torch_files.read, 'hf://me/weights/empty.pth')
    assert main.main(['convert', 'hf://me/weights/typo.pth', 'x']) == 2
    assert capsys.readouterr().err.count('\n') == 1


def test_without_a_network(stocked, monkeypatch):
    paths.absolute('hf://me/weights/empty.pth')
    paths.absolute('hf://me/weights/dc-ae')
    assert complaint(torch_files.read, 'hf://me/weights/absent')
    monkeypatch.setenv('HF_HUB_OFFLINE', '1')
    forget()
    assert paths.absolute('hf://me/weights/empty.pth').exists()
    assert list(torch_files.read('hf://me/weights/dc-ae')) == ['x']
    line = complaint(paths.absolute, f'hf://me/weights/{FILE}')
    assert 'is not in the cache' in line and 'HF_HUB_OFFLINE is set' in line


def test_nobody_listens(stocked, monkeypatch, capfd):
    monkeypatch.setattr(time, 'sleep', lambda seconds: None)  # the library tries again, and again
    monkeypatch.setenv('HF_ENDPOINT', 'http://127.0.0.1:9')
    forget()
    line = complaint(paths.absolute, f'hf://me/weights/{FILE}')
    assert 'the Hub cannot be reached' in line and 'check the network' in line
    assert capfd.readouterr() == ('', '')  # nor does it tell each time


def test_the_extra_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, 'huggingface_hub', None)
    assert "pip install 'emigm_jax[hf]'" in complaint(paths.absolute, 'hf://me/weights/x')


def test_nothing_is_written_there(stocked, tmp_path):
    """Neither to the Hub nor into the cache, where the library would not expect it."""
    fetched = paths.absolute('hf://me/weights/dc-ae')
    before = sorted((tmp_path / 'hf-home').rglob('*'))
    store.save(tmp_path / 'ours', {'x': SIX}, {})
    for place in ('hf://me/weights/new', 'hf://me/other', fetched / 'new', str(fetched)):
        for write in (
            access.probe,
            store.check_free,
            lambda path: files.write_text(path, 'x'),
            lambda path: npz.write(path, {'x': SIX}),
            lambda path: copy.copy(tmp_path / 'ours', path),
            lambda path: convert.export(tmp_path / 'ours', path),
        ):
            assert 'hf:// is only read' in complaint(write, place)
    assert sorted((tmp_path / 'hf-home').rglob('*')) == before
