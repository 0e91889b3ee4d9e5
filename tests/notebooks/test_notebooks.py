"""The notebooks run from top to bottom, say what is true, and name only flags that exist."""

import ast
import base64
import io
import json
import os
import pathlib
import re
import shlex
import subprocess
import sys
import tomllib
import types

import nbformat
import numpy as np
import pytest
from PIL import Image

from emigm_jax.cli import convert as convert_command
from emigm_jax.cli import evaluate as evaluate_command
from emigm_jax.cli import main
from emigm_jax.config import nested
from emigm_jax.models import emigm

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


def commands(notebook):
    """The lines given to `emigm(...)` in any cell, with '{}' where something is put in."""
    for c in notebook.cells:
        if c.cell_type != 'code':
            continue
        for node in ast.walk(ast.parse(c.source)):
            if isinstance(node, ast.Call) and getattr(node.func, 'id', '') == 'emigm':
                (line,) = node.args
                parts = line.values if isinstance(line, ast.JoinedStr) else [line]
                yield ''.join(p.value if isinstance(p, ast.Constant) else '{}' for p in parts)


def flags_of(command, capsys):
    with pytest.raises(SystemExit):
        main.main([command, '--help'])
    return set(re.findall(r'(?<!\w)--[a-z][a-z-]*', capsys.readouterr().out))


def test_every_flag_is_one_of_its_command(capsys):
    lines = list(commands(read('emigm_colab')))
    assert {line.split()[0] for line in lines} == {'train', 'convert', 'evaluate', 'report'}
    for line in lines:
        command, *words = line.split()
        used = {word for word in words if word.startswith('--')}
        assert used <= flags_of(command, capsys), line
    # Flags that are put in, and those that the text speaks of.
    source = cell(read('emigm_colab'), 'evaluate')
    assert set(re.findall(r"= f?'(--[a-z-]+) ", source)) == {'--tokenizer', '--preset'}
    assert {'--tokenizer', '--preset'} <= flags_of('evaluate', capsys)
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


class Kernel:
    """Stands in for IPython: notes commands, and reports `code` as their exit code."""

    def __init__(self, code=0, effect=lambda command: None):
        self.commands, self.user_ns, self._code, self._effect = [], {}, code, effect

    def system(self, command):
        self.commands.append(command)
        self._effect(command)
        self.user_ns['_exit_code'] = self._code


@pytest.fixture
def bare(monkeypatch, tmp_path):
    """An empty runtime, in which emigm_jax is not installed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, 'path', list(sys.path))
    monkeypatch.setattr('importlib.util.find_spec', lambda name: None)
    return tmp_path


def install(kernel, source, model='official'):
    names = {'get_ipython': lambda: kernel, 'SOURCE': source, 'MODEL': model, 'TOKENIZER': ''}
    exec(cell(read('emigm_colab'), 'install'), names)
    return names


def test_install_from_a_git_address(bare):
    address, clone = 'https://example.org/emigm_jax.git', bare / 'emigm_jax_source'

    def effect(command):
        if command.startswith('git'):
            clone.mkdir()
            (clone / 'setup.py').touch()

    kernel = Kernel(effect=effect)
    install(kernel, address, 'gs://bucket/run')
    git, pip = (shlex.split(c) for c in kernel.commands)
    assert git == ['git', 'clone', '--depth', '1', address, 'emigm_jax_source']
    assert pip[:-1] == [sys.executable, '-m', 'pip', 'install', '-q', '-e']
    extras = re.fullmatch(r'emigm_jax_source\[(.*)\]', pip[-1])[1].split(',')
    assert {'report', 'gcs'} <= set(extras)
    project = tomllib.loads((ROOT / 'pyproject.toml').read_text())['project']
    assert set(extras) <= set(project['optional-dependencies'])
    assert sys.path[0] == str(clone)


def test_install_from_a_folder_and_refusals(bare):
    kernel = Kernel()
    with pytest.raises(FileNotFoundError, match='Git address'):
        install(kernel, '..')
    assert not kernel.commands
    (bare / 'setup.py').touch()
    with pytest.raises(RuntimeError, match='pip install'):
        install(Kernel(code=1), '.')


@pytest.mark.parametrize(('path', 'asks'), [('gs://bucket/run', True), ('runs/mine', False)])
def test_a_bucket_asks_for_an_account(path, asks, monkeypatch):
    calls = []
    auth = types.SimpleNamespace(authenticate_user=lambda: calls.append(path))
    for name in ('google', 'google.colab'):
        monkeypatch.setitem(sys.modules, name, types.SimpleNamespace(auth=auth))
    names = {'MODEL': path, 'TOKENIZER': '', 'sys': sys}
    exec(cell(read('emigm_colab'), 'bucket'), names)
    assert names['CHECKPOINT'] == path
    assert calls == [path] * asks


@pytest.mark.parametrize(('image_size', 'size'), emigm.PRESETS)
def test_cells_of_the_official_weights(image_size, size, monkeypatch, tmp_path):
    """What cannot be downloaded here: the commands are right, and real parsers take them."""
    notebook, asked, ran = read('emigm_colab'), [], []
    hub = types.ModuleType('huggingface_hub')
    hub.hf_hub_download = lambda *where: asked.append(where) or 'a file.pth'
    hub.snapshot_download = lambda *where: asked.append(where) or 'dc-ae'
    monkeypatch.setitem(sys.modules, 'huggingface_hub', hub)
    monkeypatch.setattr('importlib.util.find_spec', lambda name: hub)
    monkeypatch.setattr(convert_command, '_convert', lambda a: ran.append(a) or 0)
    monkeypatch.setattr(evaluate_command, '_against_reference', ran.append)
    monkeypatch.chdir(tmp_path)
    data = types.SimpleNamespace(config=types.SimpleNamespace(data=types.SimpleNamespace(name='')))
    kernel = Kernel(effect=lambda c: pathlib.Path(re.search(r'--output "(.*?)"', c)[1]).touch())
    names = {
        **install(kernel, '.'),
        'MODEL': 'official',
        'SIZE': size,
        'IMAGE_SIZE': image_size,
        'FOLDER': 'my results',
        'EVALUATION': 'full',
        'BATCH': 50,
        'DTYPE': 'bfloat16',
        'published': {'fast': None},
        'saved': data,
    }
    for name in ('command', 'official', 'tokenizer', 'evaluate-digits', 'evaluate'):
        with monkeypatch.context() as inner:  # `command` tells stderr that it is a terminal
            inner.setattr(sys, 'stderr', io.StringIO())
            exec(cell(notebook, name), names)
    long = {'xs': 'xsmall', 's': 'small', 'b': 'base', 'l': 'large', 'h': 'huge'}[size]
    weights = ('GSAI-ML/eMIGM', f'eMIGM_{long}_{image_size}_checkpoint.pth')
    decoder = [('mit-han-lab/dc-ae-f32c32-in-1.0',)] if image_size == 512 else []
    assert asked == [weights, *decoder]
    files = [shlex.split(c)[-1].rsplit('/', 1)[1] for c in kernel.commands]
    kl16 = ['kl16.ckpt?rlkey=l44xipsezc8atcffdp4q7mwmh&dl=1'] if image_size == 256 else []
    virtual = 'VIRTUAL_imagenet256_labeled.npz' if image_size == 256 else 'VIRTUAL_imagenet512.npz'
    assert files == [*kl16, 'pt_inception-2015-12-05-6726825d.pth', virtual]
    *converted, measured = ran
    assert len({a.target for a in converted}) == 3
    assert measured.checkpoint == names['CHECKPOINT'] == converted[0].target
    assert measured.tokenizer == names['TOKENIZER'] == converted[1].target
    assert measured.inception == converted[2].target
    assert measured.reference == f'my results/{virtual}'
    assert (measured.num_images, measured.batch_size, measured.preset) == (50_000, 50, 'fast')
    assert (measured.dtype, measured.compare) == ('bfloat16', 'paper')


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
        'drawn=[[c.reveal.steps, c.reveal.guidance, p.size] for c, p in drawn.items()], '
        'seconds=seconds, sliders={w._kwarg: w.value for w in sliders.widget.kwargs_widgets}, '
        'start=start, devices=len(devices), checkpoint=CHECKPOINT, step=saved.step, '
        'shapes=[list(pictures.shape), str(pictures.dtype)]'
    )
    done, values = run('emigm_colab', tmp_path, '--set', 'MODEL=smoke', '--keep', keep)
    assert not [o for o in outputs(done) if o.output_type == 'error']
    assert (values['checkpoint'], values['step']) == ('runs/smoke', 12)
    folder = tmp_path / 'runs'
    with Image.open(folder / 'samples.png') as image:
        sampled = np.asarray(image)
    assert sampled.std() > 10
    assert [p.shape[:2] for p in pictures(done)] == [sampled.shape] * 4
    assert all(p.std() > 10 for p in pictures(done))
    assert values['drawn'] == [[4, 1.0, list(sampled.shape[::-1])]]
    assert values['sliders'] == values['start']
    assert set(values['start']) == {'guidance', 'interval', 'steps', 'solver_steps'}
    assert values['shapes'] == [[100, 8, 8, 1], 'uint8']
    assert values['seconds']['fast'] < values['seconds']['best']
    nfe = re.findall(r'^(\w+): NFE (\d+), ([\d.]+) GFLOP', printed(done)['presets'], re.M)
    assert [row[:2] for row in nfe] == [('fast', '3'), ('best', '6')]
    assert float(nfe[0][2]) < float(nfe[1][2])
    scores = json.loads((folder / 'smoke/scores.json').read_text())
    assert scores['images'] == 200
    assert scores['frechet_distance'] > scores['real_halves']['frechet_distance']
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
