"""Programs are kept in the user's own cache, unless somebody has said otherwise."""

import os
import pathlib
import subprocess
import sys
import types

import pytest

from emigm_jax.parallel import compiled


class Config(types.SimpleNamespace):
    """Stands in for that of jax, which all tests share."""

    def update(self, name, value):
        setattr(self, name, value)


@pytest.fixture
def config(tmp_path, monkeypatch):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    found = Config(jax_compilation_cache_dir=None)
    monkeypatch.setattr(compiled, 'jax', types.SimpleNamespace(config=found))
    return found


def test_where_programs_go(config, tmp_path):
    compiled.keep()
    place = pathlib.Path(config.jax_compilation_cache_dir)
    assert place == compiled.folder()
    assert place.parent == tmp_path / 'cache/emigm_jax/compiled'
    assert place.stat().st_mode & 0o777 == 0o700


def test_without_a_word_about_it_they_go_to_the_home(monkeypatch):
    monkeypatch.delenv('XDG_CACHE_HOME', raising=False)
    monkeypatch.setenv('HOME', '/home/somebody')
    assert compiled.folder().is_relative_to('/home/somebody/.cache/emigm_jax')


def test_what_somebody_has_said_stays(config, tmp_path):
    config.jax_compilation_cache_dir = 'gs://bucket/compiled'
    compiled.keep()
    assert config.jax_compilation_cache_dir == 'gs://bucket/compiled'
    assert not (tmp_path / 'cache').exists()


def test_a_home_that_cannot_be_written_keeps_nothing(config, tmp_path, monkeypatch):
    (tmp_path / 'cache').touch()
    compiled.keep()
    assert config.jax_compilation_cache_dir is None
    (tmp_path / 'cache').unlink()
    # Whoever may write there could have anything executed.
    compiled.folder().mkdir(parents=True)
    compiled.folder().chmod(0o777)
    compiled.keep()
    assert config.jax_compilation_cache_dir is None
    compiled.folder().chmod(0o700)
    monkeypatch.setattr(os, 'getuid', lambda: -1)
    compiled.keep()
    assert config.jax_compilation_cache_dir is None


def test_the_oldest_programs_make_room(config, monkeypatch):
    compiled.keep()
    monkeypatch.setattr(compiled, 'MOST_BYTES', 250)
    for age in range(4):
        file = compiled.folder() / f'{age}-cache'
        file.write_bytes(bytes(100))
        os.utime(file, (1e9 - age, 1e9 - age))
    (compiled.folder() / 'of_xla').mkdir()
    config.jax_compilation_cache_dir = None
    compiled.keep()
    left = sorted(file.name for file in compiled.folder().iterdir())
    assert left == ['0-cache', '1-cache', 'of_xla']


def test_jax_keeps_programs_there(tmp_path):
    code = (
        'import jax; from emigm_jax.parallel import compiled; compiled.keep(); '
        'jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0); '
        'print(jax.jit(lambda x: 2 * x)(21)); print(compiled.folder())'
    )
    environment = {k: v for k, v in os.environ.items() if k != 'JAX_COMPILATION_CACHE_DIR'}
    environment['XDG_CACHE_HOME'] = str(tmp_path)
    kept = []
    for _ in range(2):
        command = [sys.executable, '-W', 'error', '-c', code]
        shown = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE).stdout
        answer, place = shown.decode().split()
        assert answer == '42'
        kept.append(sorted(pathlib.Path(place).glob('*-cache')))
    assert kept[0] and kept[0] == kept[1]
