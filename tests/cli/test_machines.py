"""What a machine lacks is said in one line, and is not blamed on anything else."""

import jax
import pytest

from emigm_jax.checkpoints import store
from emigm_jax.cli import main
from emigm_jax.errors import Damaged, UserError
from emigm_jax.parallel import backend


@pytest.fixture
def no_device(monkeypatch):
    def fails(*_):
        raise RuntimeError("Unable to initialize backend 'tpu'")

    monkeypatch.setenv('JAX_PLATFORMS', 'tpu')
    monkeypatch.setattr(jax, 'local_devices', fails)


def test_without_a_device_no_checkpoint_is_called_damaged(tmp_path, no_device):
    says = r'no device for JAX_PLATFORMS=tpu \(RuntimeError'
    with pytest.raises(UserError, match=says) as error, store.readable(tmp_path):
        raise AssertionError
    assert not isinstance(error.value, Damaged)


@pytest.mark.parametrize('error', [AssertionError(), RuntimeError('no backend')])
def test_a_command_without_a_device(error, no_device, monkeypatch, capsys):
    def fails(*_):
        raise error

    monkeypatch.setattr(main, 'dispatch', fails)
    assert main.main(['train']) == 2
    assert capsys.readouterr().err.startswith('emigm: jax finds no device for JAX_PLATFORMS=tpu')


def test_out_of_memory(monkeypatch, capsys):
    def fails(*_):
        raise jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: Out of memory allocating 5 bytes.')

    monkeypatch.setattr(main, 'dispatch', fails)
    assert main.main(['sample']) == 2
    line = capsys.readouterr().err
    assert line.startswith('emigm: out of memory (Out of memory allocating 5 bytes.): sampling')
    assert line.count('\n') == 1


def test_what_is_nobodys_fault_keeps_its_traceback(monkeypatch):
    assert backend.explained(RuntimeError('x')) == ''

    def fails(*_):
        raise RuntimeError('x')

    monkeypatch.setattr(main, 'dispatch', fails)
    with pytest.raises(RuntimeError, match='x'):
        main.main(['train'])
