"""Configs by name and by file, in a checkout and as installed, and what can be wrong in them."""

import importlib.util
import pathlib

import pytest

import emigm_jax as em
from emigm_jax.cli import main
from emigm_jax.config import shipped
from emigm_jax.config.load import config_of, load_config
from emigm_jax.errors import UserError
from support.runs import SMOKE

CONFIGS = pathlib.Path(SMOKE).parent


def test_shipped_configs_are_found_by_name_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = {file.stem for file in CONFIGS.glob('*.py')}
    assert shipped.names() == sorted(found - {'ablations'})  # a sweep, and no config
    assert shipped.located('ablations:figure=7', 'sweeps') == f'{CONFIGS / "ablations"}.py:figure=7'
    assert {'digits', 'imagenet256', 'imagenet512', 'mar256'} <= set(shipped.names())
    assert load_config('digits:smoke') == load_config(SMOKE) == config_of('digits:smoke', {})
    assert load_config('imagenet256:size=b').model.width == 768
    for name in shipped.names():
        assert load_config(name) == load_config(f'{CONFIGS / name}.py')


def test_a_file_goes_before_a_shipped_config(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pathlib.Path('digits').write_text('def get_config():\n    return {"seed": 5}\n')
    assert load_config('digits').seed == 5


def test_installed_configs_lie_inside_of_the_package(tmp_path, monkeypatch):
    """As in a wheel, where a folder beside the package would be somebody else's."""
    for folder in ('emigm_jax/configs', 'configs'):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / 'emigm_jax/configs/mine.py').touch()
    (tmp_path / 'configs/foreign.py').touch()
    monkeypatch.setattr(shipped, '_PACKAGE', tmp_path / 'emigm_jax')
    assert shipped.names() == ['mine']
    assert shipped.located('mine:x') == f'{tmp_path}/emigm_jax/configs/mine.py:x'


def test_the_package_says_that_configs_go_into_the_wheel(monkeypatch):
    setuptools = pytest.importorskip('setuptools')
    given = {}
    monkeypatch.setattr(setuptools, 'setup', given.update)
    monkeypatch.chdir(CONFIGS.parent)
    specification = importlib.util.spec_from_file_location('definition', 'setup.py')
    specification.loader.exec_module(importlib.util.module_from_spec(specification))
    text = pathlib.Path('pyproject.toml').read_text()
    assert 'emigm_jax.configs' in given.get('package_dir', ()) or '"emigm_jax.configs"' in text


@pytest.mark.parametrize('name', ['digts', 'configs/digits.py', 'digits.py:smoke'])
def test_an_unknown_name_lists_those_there_are(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        UserError, match=r'did you mean .digits.*there are digits, emigm, folder, imagenet256'
    ):
        em.train(name, 'run')
    assert main.main(['train', '--config', name, '--workdir', 'run']) == 2
    assert capsys.readouterr().err.count('\n') == 1
    assert not list(tmp_path.iterdir())


HEAD = 'from emigm_jax.config import nested\ndef get_config():\n    c = nested.defaults()\n'
FILES = {  # text: (message, line)
    'x = 1': ('has no function get_config', None),
    'x === 1': ('SyntaxError: invalid syntax', 1),
    'import nonsense': ("No module named 'nonsense'", 1),
    'def get_config():\n    return 1 / 0': ('division by zero', 2),
    'def get_config(x):\n    return {}': ('missing 1 required positional argument', 1),
    'def get_config():\n    return 3': ('returns no config, but 3', None),
    'def get_config():\n    raise ValueError("no\\n  such")': ('no such', 2),
    'import sys\nsys.exit("enough")': ('SystemExit: enough', 2),
    'def get_config():\n    return {"sed": 1}': ("unknown setting sed (did you mean 'seed'", 2),
    'def get_config():\n    return {"seed": "x"}': ("seed must be int, not 'x'", 2),
    'def get_config():\n    return {\n    "model": 3}': ('model is a group of settings, not 3', 3),
    'def get_config():\n    return {"data": {"patch": -1}}': ('data.patch must be at least 1', 2),
    f'{HEAD}    c.model.widht = 3': ('Did you mean "width" instead of "widht"?', 4),
    f'{HEAD}    c.modle.width = 3': ('AttributeError: \'modle\' Did you mean "model"', 4),
    f'{HEAD}    c.model.width = "wide"': ("Could not override field 'width'", 4),
    f'{HEAD}    c.model.width = 30\n    return c': ('does not divide model.width = 30', None),
    f'{HEAD}    c.model.width = -3\n    return c': ('model.width must be at least 1', 4),
    f'{HEAD}    def deeper():\n        return unknown\n    deeper()': ("name 'unknown' is", 5),
    'import traceback\ntry: 1/0\nexcept Exception: text = traceback.format_exc()\n'
    'raise RuntimeError(text)': ('RuntimeError: ZeroDivisionError: division by zero', 4),
}


@pytest.mark.parametrize('text', FILES)
def test_what_is_wrong_in_a_file_is_one_line(text, tmp_path):
    file = tmp_path / 'config.py'
    file.write_text(text)
    with pytest.raises(UserError) as error:
        load_config(str(file))
    line, (says, number) = str(error.value), FILES[text]
    assert says in line
    assert '\n' not in line and 'Traceback' not in line and len(line) < 500
    assert line.startswith(f'--config {file}: ')
    if number is not None:
        assert line.endswith(f' ({file}, line {number})')


def test_a_flag_is_not_the_fault_of_the_file():
    with pytest.raises(UserError) as error:
        load_config('digits:smoke', ['--config.model.width=-4'])
    assert str(error.value) == 'model.width must be at least 1, not -4'


def test_a_file_may_say_little(tmp_path):
    file = tmp_path / 'config.py'
    file.write_text('def get_config(variant="1"):\n    return {"seed": int(variant)}\n')
    assert load_config(f'{file}:3', ['--config.model.width=64']) == config_of(
        {'seed': 3, 'model': {'width': 64}}, {}
    )


@pytest.mark.parametrize(
    ('flag', 'says'),
    [
        ('--config.widht=3', "did you mean 'model.width'"),
        ('--config.reveal.steps=3', "did you mean 'sampling.reveal.steps'"),
        ('--config.model.width=wide', '--config.model.width=wide: invalid literal'),
        ('--config.model.width', 'Missing value'),
        ('--config.model.mae=maybe', 'maybe'),
        ('--config.model=3', 'no such setting'),
        ('model.width=3', 'write --config.NAME=VALUE'),
    ],
)
def test_overrides_that_make_no_sense(flag, says):
    with pytest.raises(UserError) as error:
        load_config('digits:smoke', [flag])
    assert says in str(error.value)
    assert '\n' not in str(error.value)
