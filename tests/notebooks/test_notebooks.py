"""The notebooks run from top to bottom, say what is true, and name only flags that exist."""

import ast
import base64
import io
import json
import os
import pathlib
import re
import subprocess
import sys
import tomllib
import types

import nbformat
import numpy as np
import pytest
from packaging import requirements
from PIL import Image

import emigm_jax as em
from emigm_jax.cli import main
from emigm_jax.config import nested
from emigm_jax.data import class_names
from emigm_jax.models import emigm
from support import run_notebook

ROOT = pathlib.Path(__file__).parents[2]
NAMES = ('emigm_colab', 'masking')


def read(name):
    return nbformat.read(ROOT / f'notebooks/{name}.ipynb', as_version=4)


def cell(notebook, name):
    (found,) = [c.source for c in notebook.cells if c.id == name]
    return found


def run(name, folder, *flags):
    """Executes a notebook in `folder`: (the notebook with its outputs, values that were kept)."""
    # The `python3` kernel and the `emigm` command of this environment; nothing is downloaded.
    scripts = str(pathlib.Path(sys.executable).parent)
    offline = dict.fromkeys(('http_proxy', 'https_proxy', 'HTTPS_PROXY'), 'http://127.0.0.1:9')
    path = os.pathsep.join([scripts, os.environ['PATH']])
    packages = os.pathsep.join([str(ROOT), os.environ.get('PYTHONPATH', '')])
    env = {**os.environ, **offline, 'PATH': path, 'PYTHONPATH': packages}
    command = [
        sys.executable,
        ROOT / 'tests/support/run_notebook.py',
        ROOT / f'notebooks/{name}.ipynb',
    ]
    done = subprocess.run(
        [*command, 'done.ipynb', *flags],
        cwd=folder,
        env=env,
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    values = json.loads((folder / 'values.json').read_text())
    return nbformat.read(folder / 'done.ipynb', as_version=4), values


def outputs(notebook):
    return [o for c in notebook.cells if c.cell_type == 'code' for o in c.outputs]


def pictures(notebook):
    """The PNG outputs as arrays."""
    data = [o.data['image/png'] for o in outputs(notebook) if 'image/png' in o.get('data', {})]
    opened = [Image.open(io.BytesIO(base64.b64decode(png))) for png in data]
    return [np.asarray(image.convert('RGB')) for image in opened]


def printed(notebook, stream='stdout'):
    """What each cell printed."""
    return {
        c.id: ''.join(o.text for o in c.outputs if o.get('name') == stream)
        for c in notebook.cells
        if c.cell_type == 'code'
    }


@pytest.mark.parametrize('name', NAMES)
def test_files_are_valid_and_clean(name):
    notebook = read(name)
    nbformat.validate(notebook)
    assert (notebook.nbformat, notebook.nbformat_minor) == (4, 5)
    assert notebook.metadata.kernelspec.name == 'python3'
    for c in notebook.cells:
        assert 'execution' not in c.metadata
        if c.cell_type == 'code':
            assert c.execution_count is None
            lines = c.source.splitlines()
            assert len(lines) <= 40
            assert all(len(line) <= 100 or '://' in line for line in lines)
    kinds = [c.cell_type for c in notebook.cells]
    assert kinds[0] == 'markdown'
    assert 'code code code' not in ' '.join(kinds)  # every thing done has a reason beside it
    text = (ROOT / f'notebooks/{name}.ipynb').read_text()
    assert not re.search(r'(?<![\w.:/])/(root|home|work|tmp|Users|mnt|content|opt)\b', text)


def test_outputs_are_few_and_small():
    assert sum(p.stat().st_size for p in (ROOT / 'notebooks').iterdir()) < 300_000
    assert not outputs(read('emigm_colab'))
    assert {o.output_type for o in outputs(read('masking'))} == {'stream', 'display_data'}
    assert not any(printed(read('masking'), 'stderr').values())


def flags_of(command, capsys):
    assert main.main([command, '--help']) == 0
    return set(re.findall(r'(?<!\w)--[a-z][a-z-]*', capsys.readouterr().out))


def test_flags_and_settings_that_the_text_names(capsys):
    told = '\n'.join(
        c.source for name in NAMES for c in read(name).cells if c.cell_type == 'markdown'
    )
    spoken = set(re.findall(r'(?<!\w)--[a-z][a-z-]*', told)) - {'--config'}
    assert spoken
    assert spoken <= flags_of('sample', capsys) & flags_of('evaluate', capsys)
    settings = nested.defaults()
    for name, value in re.findall(r'--config\.([\w.]+)=(\w+)', told):
        group, leaf = name.rsplit('.', 1)
        node = settings
        for part in group.split('.'):
            node = node[part]
        assert leaf in node
        node[leaf] = value
    nested.resolve(settings)


def test_colab_uses_the_public_api_and_shows_an_image_soon():
    cells = [c for c in read('emigm_colab').cells if c.cell_type == 'code']
    tree = ast.parse('\n'.join(c.source for c in cells))
    imports = {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
    imports |= {n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
    assert {name for name in imports if name.startswith('emigm_jax')} == {'emigm_jax'}
    used = {
        n.attr
        for n in ast.walk(tree)
        if isinstance(n, ast.Attribute) and isinstance(n.value, ast.Name) and n.value.id == 'em'
    }
    assert used - {'__file__'} <= set(em.__all__)
    shown = [place for place, c in enumerate(cells, 1) if 'display(' in c.source]
    assert shown[0] == 4
    # What comes before it is out of sight.
    assert all(c.metadata.get('cellView') == 'form' for c in cells[:3])


# --- Finding the package -------------------------------------------------------------------------


@pytest.fixture
def bare(monkeypatch, tmp_path):
    """An empty runtime, in which emigm_jax is not installed: the commands that it ran."""
    commands = []
    runtime = types.SimpleNamespace(folder=tmp_path / 'here', commands=commands, code=0)
    runtime.folder.mkdir()

    def run(command, check=False):
        commands.append(command)
        return types.SimpleNamespace(returncode=runtime.code)

    monkeypatch.chdir(runtime.folder)
    monkeypatch.setattr(sys, 'path', list(sys.path))
    monkeypatch.setattr('importlib.util.find_spec', lambda name: None)
    monkeypatch.setattr(subprocess, 'run', run)
    return runtime


def install(source, name='emigm_colab'):
    names = {}
    text, found = re.subn(
        r"^SOURCE = 'emigm_jax'", f'SOURCE = {source!r}', cell(read(name), 'package'), flags=re.M
    )
    assert found == 1
    exec(text, names)
    return names


def test_both_notebooks_find_the_package_in_the_same_way():
    assert cell(read('masking'), 'package') == cell(read('emigm_colab'), 'package')
    for name in NAMES:
        assert next(c for c in read(name).cells if c.cell_type == 'code').id == 'package'


@pytest.mark.parametrize(
    ('source', 'pip_takes'),
    [
        ('emigm_jax', 'emigm_jax[{}]'),
        (
            'https://example.org/emigm_jax.git',
            'emigm_jax[{}] @ git+https://example.org/emigm_jax.git',
        ),
        (
            'git+ssh://git@example.org/emigm_jax',
            'emigm_jax[{}] @ git+ssh://git@example.org/emigm_jax',
        ),
        (
            'https://example.org/emigm_jax-1-py3-none-any.whl',
            'emigm_jax[{}] @ https://example.org/emigm_jax-1-py3-none-any.whl',
        ),
        ('dist/emigm_jax-1-py3-none-any.whl', 'dist/emigm_jax-1-py3-none-any.whl[{}]'),
    ],
)
def test_install_from_an_index_an_address_or_a_wheel(bare, source, pip_takes):
    install(source)
    ((*pip, wanted),) = bare.commands
    assert pip == [sys.executable, '-m', 'pip', 'install', '-q']
    extras = re.search(r'\[(.*?)\]', wanted)[1]
    assert wanted == pip_takes.format(extras)
    assert {'report', 'gcs'} <= set(extras.split(','))
    project = tomllib.loads((ROOT / 'pyproject.toml').read_text())['project']
    assert set(extras.split(',')) <= set(project['optional-dependencies'])
    if '@' in wanted or '.whl' not in wanted:
        assert requirements.Requirement(wanted).name == 'emigm_jax'


@pytest.mark.parametrize('where', ['.', '..', 'elsewhere'])
def test_install_from_a_checkout(bare, where):
    checkout = (bare.folder / where).resolve()
    (checkout / 'emigm_jax').mkdir(parents=True)
    (checkout / 'emigm_jax/__init__.py').touch()
    install('emigm_jax' if where != 'elsewhere' else str(checkout))
    (command,) = bare.commands
    assert command[-2] == '-e'
    assert command[-1].startswith(f'{checkout}[')
    assert sys.path[0] == str(checkout)


def test_install_that_fails_says_what_to_do(bare):
    bare.code = 1
    with pytest.raises(RuntimeError, match='set SOURCE to what you have it from'):
        install('emigm_jax')


def test_nothing_is_installed_twice(bare, monkeypatch):
    monkeypatch.setattr('importlib.util.find_spec', lambda name: name)
    install('emigm_jax')
    assert not bare.commands


# --- Models --------------------------------------------------------------------------------------


class Loaded:
    """Stands in for `em`: notes what is asked of it."""

    def __init__(self):
        self.trained, self.converted, self.loaded, self.evaluated = [], [], [], []
        self.__file__ = str(ROOT / 'emigm_jax/__init__.py')
        self.Work = em.Work

    def train(self, config, workdir, **settings):
        self.trained.append((config, workdir, settings))

    def convert(self, source, target):
        self.converted.append((str(source), target))
        target.mkdir(parents=True)
        return types.SimpleNamespace(lines=lambda: ['a model'])

    def load(self, path, **options):
        self.loaded.append((path, options))
        config = types.SimpleNamespace(data=types.SimpleNamespace(name='synthetic'))
        return types.SimpleNamespace(saved=types.SimpleNamespace(step=0), config=config)

    def evaluate(self, model, **options):
        self.evaluated.append(options)
        return em.Result({'fid': 2.0}, 50_000)


@pytest.fixture
def opened(bare, monkeypatch):
    """The cells up to a model, with settings: (names, `Loaded`)."""
    stand_in = Loaded()
    monkeypatch.setitem(sys.modules, 'emigm_jax', stand_in)

    def run(**settings):
        notebook, names = read('emigm_colab'), install('emigm_jax')
        bare.commands.clear()
        run_notebook.with_settings(notebook, settings)
        for name in ('settings', 'model'):
            with monkeypatch.context() as inner:  # it tells stderr that it is a terminal
                inner.setattr(sys, 'stderr', io.StringIO())
                exec(cell(notebook, name), names)
        return names

    return run, stand_in


@pytest.mark.parametrize(
    ('chosen', 'variant', 'length'),
    [('digits', 'default', '300 steps'), ('digits:best', 'best', None)],
)
@pytest.mark.parametrize('checkout', [True, False])
def test_digits_are_trained(opened, chosen, variant, length, checkout, tmp_path):
    run, stand_in = opened
    file = str(ROOT / 'configs/digits.py')
    if not checkout:
        file, stand_in.__file__ = 'digits', str(tmp_path / 'site-packages/emigm_jax/__init__.py')
    run(MODEL=chosen)
    folder = f'runs/{chosen.replace(":", "-")}'
    settings = {} if length is None else {'training.total': length}
    assert stand_in.trained == [(f'{file}:{variant}', folder, settings)]
    ((path, options),) = stand_in.loaded
    assert path == folder
    assert options == dict(tokenizer=None, dtype='float32', batch_size=64)


@pytest.mark.parametrize(('path', 'asks'), [('gs://bucket/run', True), ('runs/mine', False)])
def test_a_bucket_asks_for_an_account(opened, path, asks, monkeypatch):
    run, stand_in = opened
    calls = []
    auth = types.SimpleNamespace(authenticate_user=lambda: calls.append(path))
    for name in ('google', 'google.colab'):
        monkeypatch.setitem(sys.modules, name, types.SimpleNamespace(auth=auth))
    run(MODEL=path, TOKENIZER='my/kl16')
    ((loaded, options),) = stand_in.loaded
    assert (loaded, options['tokenizer']) == (path, 'my/kl16')
    assert calls == [path] * asks
    assert not stand_in.trained + stand_in.converted


@pytest.mark.parametrize(('image_size', 'size'), emigm.PRESETS)
def test_cells_of_the_official_weights(opened, bare, image_size, size, monkeypatch):
    """What cannot be downloaded here: the right files are asked for, and passed on."""
    run, stand_in = opened
    asked, hub = [], types.ModuleType('huggingface_hub')
    hub.hf_hub_download = lambda *where: asked.append(where) or 'a file.pth'
    hub.snapshot_download = lambda *where: asked.append(where) or 'dc-ae folder'
    monkeypatch.setitem(sys.modules, 'huggingface_hub', hub)

    def download(command, check):
        assert check
        bare.commands.append(command)
        if command[0] == 'curl':
            pathlib.Path(command[command.index('--output') + 1]).touch()

    monkeypatch.setattr(subprocess, 'run', download)
    with monkeypatch.context() as inner:
        inner.setattr('importlib.util.find_spec', lambda name: hub)
        names = run(MODEL='official', SIZE=size, IMAGE_SIZE=image_size, FOLDER='my results')
        names['EVALUATION'] = 'full'
        exec(cell(read('emigm_colab'), 'evaluate'), names)
    long = {'xs': 'xsmall', 's': 'small', 'b': 'base', 'l': 'large', 'h': 'huge'}[size]
    weights = ('GSAI-ML/eMIGM', f'eMIGM_{long}_{image_size}_checkpoint.pth')
    decoder = [('mit-han-lab/dc-ae-f32c32-in-1.0',)] if image_size == 512 else []
    assert asked == [weights, *decoder]
    urls = [command[-1].rpartition('/')[2] for command in bare.commands]
    kl16 = ['kl16.ckpt?rlkey=l44xipsezc8atcffdp4q7mwmh&dl=1'] if image_size == 256 else []
    virtual = 'VIRTUAL_imagenet256_labeled.npz' if image_size == 256 else 'VIRTUAL_imagenet512.npz'
    assert urls == [*kl16, 'pt_inception-2015-12-05-6726825d.pth', virtual]
    sources = [source for source, _ in stand_in.converted]
    tokenizer = 'my results/kl16.ckpt' if image_size == 256 else 'dc-ae folder'
    assert sources == ['a file.pth', tokenizer, f'my results/{urls[-2]}']
    model, tokens, inception = (str(target) for _, target in stand_in.converted)
    ((path, options),) = stand_in.loaded
    assert (path, options['tokenizer']) == (model, tokens)
    (measured,) = stand_in.evaluated
    assert measured['inception'] == inception
    assert str(measured['reference']) == f'my results/{virtual}'
    assert measured['num_images'] == 50_000
    assert measured['work'].folder == 'my results/evaluation-50000'


def test_the_animals_are_classes_of_imagenet():
    (animals,) = re.findall(r'^animals = (\[.*\])', cell(read('emigm_colab'), 'sample'), re.M)
    assert [class_names.label(name, 1000) for name in ast.literal_eval(animals)] == [
        207,
        360,
        387,
        88,
    ]


@pytest.mark.slow
def test_masking(tmp_path):
    keep = (
        'analytic={k: list(v) for k, v in analytic.items()}, nfe=nfe, drawn=drawn_means, '
        'means={f"{k[0]} {k[1]} {k[2]}": v for k, v in means.items()}, cost=cost, '
        'simulated={k: list(v.mean(0)) for k, v in simulated.items()}, padded=padded, '
        'ideal=ideal, prefix=[int((step_in_order < k).argmin()) for k in range(1, K)], '
        'before=[int(n) for n in counts.cumsum()[:-1]], t8=list(tables["DPM-Solver++, 8"].t), '
        't14=list(tables["DPM-Solver++, 14"].t)'
    )
    done, values = run('masking', tmp_path, '--keep', keep)
    assert not [o for o in outputs(done) if o.output_type == 'error']
    assert not any(printed(done, 'stderr').values())
    assert printed(done) == printed(read('masking'))  # the committed outputs are of these cells
    drawn = pictures(done)
    assert len(drawn) == len(pictures(read('masking'))) == 8
    for picture in drawn:
        assert picture.shape[0] > 100
        assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 10

    # The paper's Figure 6, from its formulas.
    exp = [
        0.64,
        0.87,
        1.19,
        1.63,
        2.22,
        3.04,
        4.15,
        5.68,
        7.76,
        10.61,
        14.50,
        19.82,
        27.09,
        37.02,
        50.60,
        69.18,
    ]
    np.testing.assert_allclose(values['analytic']['exp'], exp, atol=0.006)
    np.testing.assert_allclose(values['analytic']['linear'], 16.0, atol=0.005)
    np.testing.assert_allclose(values['analytic']['cosine'][::15], [1.23, 25.10], atol=0.006)
    np.testing.assert_allclose(values['analytic']['log-exp'][::15], [3.28, 118.98], atol=0.006)
    for name, counts in values['simulated'].items():
        # Forced reveals add up to 0.53 where 0.64 tokens are expected; the rest is noise.
        np.testing.assert_allclose(counts, values['analytic'][name], atol=1.3)
        assert sum(counts) == pytest.approx(256)
    assert values['simulated']['exp'][0] > 1.0  # no step reveals nothing
    # Mean mask ratios.
    want = {
        'linear clamp 0.2': 0.5205,
        'cosine range 0.4': 0.8587,
        'exp clamp 0.0': 0.8021,
        'exp clamp 0.2': 0.8547,
        'exp range 0.2': 0.9100,
        'exp clamp 0.4': 0.9204,
        'log-exp range 0.4': 0.9230,
    }
    assert {name: round(values['means'][name], 4) for name in want} == want
    drawn = list(values['drawn'].values())
    assert drawn[:2] == pytest.approx([0.8547, 0.9100], abs=2e-3)
    assert values['prefix'] == values['before']
    # Guided steps, padding, solver times.
    assert values['nfe'] == {
        '256 XS/S/B/L 16': 19,
        '256 H 16': 19,
        '256 XS/S/L 128': 181,
        '256 B 128': 173,
        '256 H 128': 179,
        '512 XS/S/B/L 16': 19,
        '512 XS/S/B/L 64': 80,
    }
    assert 1.0 <= values['padded']['shared'] / values['ideal']['shared'] < 1.05
    assert values['padded']['per_image'] > values['padded']['shared']
    exact, four, one = values['cost'].values()
    assert exact < four < 1.15 * exact < one
    times = [998.996, 990.634, 964.952, 886.917, 673.572, 328.977, 110.850, 14.733]
    np.testing.assert_allclose(values['t8'], times, atol=0.05)
    assert len(values['t14']) == 14


@pytest.mark.slow
def test_colab_smoke(tmp_path):
    keep = (
        'drawn={k: p.size for k, p in drawn.items()}, seconds=seconds, start=start, '
        'sliders={w._kwarg: w.value for w in sliders.widget.kwargs_widgets}, '
        'checkpoint=path, step=model.saved.step, shapes=[list(images.shape), str(images.dtype)], '
        'scores=result.scores, halves=result.real_halves, count=result.images, frames=len(frames)'
    )
    done, values = run('emigm_colab', tmp_path, '--set', 'MODEL=digits:smoke', '--keep', keep)
    assert not [o for o in outputs(done) if o.output_type == 'error']
    assert (values['checkpoint'], values['step']) == ('runs/digits-smoke', 12)
    folder = tmp_path / 'runs'
    with Image.open(folder / 'samples.png') as image:
        sampled = np.asarray(image)
    assert sampled.std() > 10
    grids = [p for p in pictures(done) if p.shape[:2] == sampled.shape[:2]]
    assert len(grids) == 4 and len(pictures(done)) == 5  # and one of the steps
    assert all(p.std() > 10 for p in pictures(done))
    assert values['frames'] == 4
    assert values['drawn'] == {"{'guidance': 1.0}": list(sampled.shape[1::-1])}
    assert values['sliders'] == values['start']
    assert set(values['start']) == {'guidance', 'interval', 'steps', 'solver_steps'}
    assert values['shapes'] == [[100, 8, 8, 3], 'uint8']
    assert values['seconds'].keys() == {'fast', 'best'}
    nfe = re.findall(r'^(\w+): NFE (\d+), ([\d.]+) GFLOP', printed(done)['presets'], re.M)
    assert [row[:2] for row in nfe] == [('fast', '3'), ('best', '6')]
    assert float(nfe[0][2]) < float(nfe[1][2])
    assert values['count'] == 200
    assert values['scores']['frechet_distance'] > values['halves']['frechet_distance']
    scores = json.loads((folder / 'digits-smoke/scores.json').read_text())
    assert scores.items() >= values['scores'].items()
    assert 'batches' in printed(done, 'stderr')['sample']  # a progress bar, though no terminal
    page = (folder / 'report/report.html').read_text()
    assert 'data:image/png' in page
    assert list((folder / 'report').glob('*.png'))
    (shown,) = [
        o.data['text/html']
        for c in done.cells
        if c.id == 'report'
        for o in c.outputs
        if 'text/html' in o.get('data', {})
    ]
    assert shown.startswith('<div><iframe srcdoc=')
    assert {p.name for p in tmp_path.iterdir()} == {'runs', 'done.ipynb', 'values.json'}
