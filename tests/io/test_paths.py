"""`~` is the home folder wherever a path is written, quoted or not."""

import numpy as np
import pytest
from PIL import Image

from emigm_jax.cli import main
from emigm_jax.config.load import load_config
from emigm_jax.data.folder import ImageFolder
from emigm_jax.errors import UserError
from emigm_jax.evaluation import image_sets
from emigm_jax.io import access, files, npz, paths
from emigm_jax.io.formats import torch_files


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv('HOME', str(tmp_path))
    (tmp_path / 'elsewhere').mkdir()
    monkeypatch.chdir(tmp_path / 'elsewhere')
    yield tmp_path
    assert not list((tmp_path / 'elsewhere').iterdir())


def test_files_are_written_and_read_there(home):
    assert str(paths.absolute('~/a/b')) == f'{home}/a/b'
    assert str(paths.absolute('gs://bucket/~/b')) == 'gs://bucket/~/b'
    files.write_json('~/a/b.json', {'x': 1})
    assert files.read_json(f'{home}/a/b.json') == {'x': 1}
    npz.write('~/a/images.npz', {'arr_0': np.zeros((2, 4, 4, 3), np.uint8)})
    assert len(image_sets.stored('~/a/images.npz')) == 2
    access.probe('~/new/deep')
    assert sorted(path.name for path in home.iterdir()) == ['a', 'elsewhere']


def test_pictures_weights_and_configs_are_found_there(home):
    (home / 'pictures/cat').mkdir(parents=True)
    Image.new('RGB', (4, 4)).save(home / 'pictures/cat/a.png')
    (home / 'mine.py').write_text('def get_config(seed="1"):\n    return {"seed": int(seed)}\n')
    assert len(ImageFolder('~/pictures')) == len(image_sets.folder('~/pictures')) == 1
    assert load_config('~/mine.py:7').seed == 7
    (home / 'weights').write_bytes(b'')
    with pytest.raises(UserError, match='the file is empty'):
        torch_files.read('~/weights')


def test_commands_look_there(home, capsys):
    assert main.main(['checkpoint', 'ls', '~/run']) == 2
    assert f'{home}/run: no such checkpoint' in capsys.readouterr().err
    command = ('evaluate', '--images', '~/a', '--reference', '~/r', '--inception', '~/i')
    assert main.main([*command, '--json', '~/nowhere/scores.json']) == 2
    assert 'its folder does not exist' in capsys.readouterr().err
    assert main.main([*command, '--json', '~/scores.json', '--out', '~/out']) == 2
    assert '~/r: no such file' in capsys.readouterr().err
