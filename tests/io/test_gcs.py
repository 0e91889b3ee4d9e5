"""What takes a path takes gs://, tried against an emulator; and what is told where it cannot."""

import hashlib
import http.server
import io
import json
import os
import subprocess
import sys
import threading
import time
import urllib.request

import numpy as np
import pytest
from PIL import Image

from emigm_jax.checkpoints import copy, store
from emigm_jax.cli import main
from emigm_jax.errors import UserError
from emigm_jax.io import access, files, npz, paths, png, swap
from emigm_jax.io import gcs as buckets
from emigm_jax.training import metrics
from emigm_jax.training.speed import Work
from support import gcs

pytestmark = pytest.mark.filterwarnings('ignore:Sending a large body:ResourceWarning')

TREE = {'a': np.arange(6, dtype=np.float32), 'b': {'c': np.ones((2, 3), np.float32)}}


def test_files(bucket):
    files.write(f'{bucket}/a/one', [b'12', b'3'])
    files.write_text(f'{bucket}/a/one', 'Grüße')  # replaced whole
    assert gcs.text(f'{bucket}/a/one') == 'Grüße'
    files.write_json(f'{bucket}/a/two.json', {'x': 1})
    assert files.read_json(f'{bucket}/a/two.json') == {'x': 1}
    assert files.read_json(f'{bucket}/a/three.json') is None
    found = copy.listing(bucket)
    assert {name: file.size for name, file in found.items()} == {'a/one': 7, 'a/two.json': 12}
    assert found['a/one'].md5 == hashlib.md5('Grüße'.encode()).hexdigest()

    def broken():
        yield b'half'
        raise OSError('the disk is gone')

    with pytest.raises(UserError, match='the disk is gone'):
        files.write(f'{bucket}/a/four', broken())
    assert not paths.absolute(f'{bucket}/a/four').exists()


def test_pictures_and_arrays(bucket):
    picture = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    png.save(f'{bucket}/samples/one.png', picture)
    data = paths.absolute(f'{bucket}/samples/one.png').read_bytes()
    with Image.open(io.BytesIO(data)) as image:
        np.testing.assert_array_equal(np.asarray(image), picture)
    npz.write(f'{bucket}/s.npz', {'arr_0': picture})
    np.testing.assert_array_equal(npz.members(f'{bucket}/s.npz')['arr_0'].read(), picture)


def test_checkpoint(bucket):
    path = f'{bucket}/one'
    assert not store.is_checkpoint(path)
    store.save(path, TREE, {'x': 1})
    assert store.is_checkpoint(path)
    stored = store.checkpoint(path)
    description, tree = stored.description, stored.tree
    assert description['x'] == 1
    assert description['versions'] == store.versions()
    assert tree['b']['c'].shape == (2, 3)
    np.testing.assert_array_equal(stored.load_part('b')['c'], TREE['b']['c'])
    with pytest.raises(UserError, match='exists already'):
        store.save(path, TREE, {})


def test_what_another_host_writes_is_seen(bucket):
    files.write_text(f'{bucket}/one', 'x')
    seen = lambda: sorted(p.name for p in paths.absolute(bucket).iterdir())
    assert seen() == ['one']
    place, folder = os.environ['STORAGE_EMULATOR_HOST'], bucket.removeprefix('gs://emulated/')
    url = f'{place}/upload/storage/v1/b/emulated/o?uploadType=media&name={folder}/two'
    with urllib.request.urlopen(urllib.request.Request(url, b'y', method='POST')):
        assert seen() == ['one', 'two']
    assert paths.absolute(f'{bucket}/two').exists()


def values(loss=1.0):
    return {'loss': loss, 'mse': 0.5, 'vlb': 0.25, 'gradient_norm': 2.0}


def events(workdir):
    """{tag: [(step, value), ...]} of all event files below a workdir."""
    import tempfile

    from tensorboard.backend.event_processing import event_accumulator

    with tempfile.TemporaryDirectory() as folder:
        for name in copy.listing(f'{workdir}/{metrics.EVENTS}'):
            data = (paths.absolute(workdir) / metrics.EVENTS / name).read_bytes()
            files.write(f'{folder}/{name}', [data])
        found = event_accumulator.EventAccumulator(folder)
        found.Reload()
        tags = found.Tags()['scalars']
        return {tag: [(e.step, e.value) for e in found.Scalars(tag)] for tag in tags}


@pytest.mark.parametrize('remote', [False, True])
@pytest.mark.filterwarnings('ignore::DeprecationWarning')  # of TensorBoard's reader
def test_metrics_go_on_where_they_stopped(remote, bucket, tmp_path, capsys, monkeypatch):
    workdir = bucket if remote else str(tmp_path)
    first = metrics.Metrics(workdir, 0, 10)
    for step in (1, 2, 3):
        first.write(step, values(step), Work(8), 0.0)
    first.add(3, {'fid': 7.5, 'bad': float('nan')})
    first.flush()
    first.close()
    assert 'step 3/10  fid 7.5  bad nan' in capsys.readouterr().out

    second = metrics.Metrics(workdir, 2, 10)
    second.write(3, values(30), Work(8), 0.0)
    second.close()
    second.close()  # nothing happens
    lines = metrics.read(workdir)
    assert [(line['step'], line.get('loss')) for line in lines] == [(1, 1), (2, 2), (3, 30)]
    assert lines[2]['images_per_second'] > 0
    assert events(workdir)['loss'] == [(1, 1.0), (2, 2.0), (3, 30.0)]


def test_metrics_reach_the_bucket_within_a_minute(bucket, monkeypatch):
    monkeypatch.setattr(metrics, 'PERIOD', 0.5)
    writes, write = [], swap.replace

    def counted(path, text, seen):
        writes.append(str(path))
        return write(path, text, seen)

    monkeypatch.setattr(swap, 'replace', counted)
    made = metrics.Metrics(bucket, 0, 100)
    start = time.monotonic()
    for step in range(1, 21):
        made.write(step, values(), Work(8), 0.0)
    deadline = time.monotonic() + 20
    while len(metrics.read(bucket)) < 20 and time.monotonic() < deadline:
        time.sleep(0.05)
    periods = 2 + (time.monotonic() - start) / 0.5
    # The last lines came without a further call; and not every line cost an object.
    assert len(metrics.read(bucket)) == 20
    assert writes.count(f'{bucket}/{metrics.FILE}') <= periods
    made.close()


def test_metrics_of_another_process_are_silent(tmp_path, capsys):
    silent = metrics.Metrics(tmp_path / 'none', 0, 10, writes=False)
    silent.write(1, values(), Work(8), 0.0)
    silent.add(1, {'fid': 1.0})
    silent.pause(0.0)
    silent.flush()
    silent.close()
    assert capsys.readouterr().out == ''
    assert not list(tmp_path.iterdir())


def test_metrics_survive_a_bucket_that_does_not_answer(bucket, monkeypatch, capsys):
    monkeypatch.setattr(metrics, 'PERIOD', 0.2)
    made = metrics.Metrics(bucket, 0, 100)
    write, broken = swap.replace, threading.Event()
    broken.set()

    def sometimes(path, text, seen):
        if broken.is_set():
            raise UserError(f'{path}: no route')
        return write(path, text, seen)

    monkeypatch.setattr(swap, 'replace', sometimes)
    made.add(1, {'fid': 1.0})
    time.sleep(0.6)
    assert f'metrics: {bucket}/{metrics.FILE}: no route' in capsys.readouterr().out
    broken.clear()
    made.add(2, {'fid': 2.0})
    made.close()
    assert [line['fid'] for line in metrics.read(bucket)] == [1.0, 2.0]


def test_metrics_that_somebody_else_writes_are_left_alone(bucket):
    made = metrics.Metrics(bucket, 0, 100)
    made.add(1, {'fid': 1.0})
    files.write_text(f'{bucket}/{metrics.FILE}', 'theirs')
    with pytest.raises(UserError, match=r'metrics\.jsonl: somebody else writes it'):
        made.close()
    assert gcs.text(f'{bucket}/{metrics.FILE}') == 'theirs'


def test_probe_leaves_nothing(bucket):
    access.probe(f'{bucket}/run/deep')
    access.probe(bucket, write=False)
    access.probe('gs://emulated')
    assert not copy.listing(bucket)
    assert not [n for n in copy.listing('gs://emulated') if 'probe' in n]


def test_bucket_that_does_not_exist(bucket):
    for action in (
        lambda: access.probe('gs://nobody-has-this/x'),
        lambda: access.probe('gs://nobody-has-this/x', write=False),
        lambda: store.save('gs://nobody-has-this/x', TREE, {}),  # and no thread is left waiting
    ):
        with pytest.raises(UserError, match='there is no bucket gs://nobody-has-this'):
            action()
    with pytest.raises(UserError, match='names no bucket'):
        access.probe('gs://')


@pytest.fixture
def refusing(bucket, monkeypatch):
    """A server whose answers are chosen: refusing({(method, kind): status}) -> requests made."""
    answers, seen = {}, []

    class Handler(http.server.BaseHTTPRequestHandler):
        def answer(self):
            self.rfile.read(int(self.headers.get('Content-Length') or 0))
            seen.append(self.command)
            status = answers.get(self.command, 200)
            body = {'items': []}
            if status != 200:
                body = {'error': {'code': status, 'message': 'Refused.'}}
            data = json.dumps(body).encode()
            self.send_response(status)
            self.send_header('Content-Type', 'application/json')
            self.send_header('Content-Length', str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = do_DELETE = answer

        def log_message(self, *_):
            """Silent."""

    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        monkeypatch.setenv('STORAGE_EMULATOR_HOST', f'http://127.0.0.1:{server.server_port}')

        def use(**statuses):
            answers.clear()
            answers.update(statuses)
            return seen

        yield use
        server.shutdown()


@pytest.fixture
def account(monkeypatch):
    """Somebody is logged in."""
    import fsspec

    class Credentials:
        service_account_email = 'me@project.iam.gserviceaccount.com'

    buckets.set_up()
    monkeypatch.setattr(fsspec.filesystem('gs').credentials, 'credentials', Credentials())
    monkeypatch.setattr(fsspec.filesystem('gs').credentials, 'apply', lambda _: None)


@pytest.mark.parametrize(
    ('statuses', 'says'),
    [
        (
            {'GET': 403},
            'no permission to list objects in gs://b; grant roles/storage.objectAdmin '
            'there to me@project.iam.gserviceaccount.com',
        ),
        ({'POST': 403}, 'no permission to write objects in gs://b; grant roles/storage'),
        ({'DELETE': 403}, 'no permission to delete .* stays behind'),
        ({'GET': 404}, 'there is no bucket gs://b'),
        ({'GET': 400}, 'cannot list objects in gs://b .*Refused'),
    ],
)
def test_what_a_bucket_refuses(refusing, account, statuses, says):
    refusing(**statuses)
    with pytest.raises(UserError, match=says) as caught:
        access.probe('gs://b/run')
    assert str(caught.value).startswith('gs://b/run: ')
    assert '\n' not in str(caught.value)


def test_reading_needs_less(refusing, account):
    seen = refusing(POST=403)
    access.probe('gs://b/run', write=False)
    assert set(seen) == {'GET'}
    refusing(GET=403)
    with pytest.raises(UserError, match=r'grant roles/storage\.objectViewer'):
        access.probe('gs://b/run', write=False)


def test_nobody_is_logged_in(refusing):
    refusing(GET=403)
    with pytest.raises(UserError, match='gcloud auth application-default login'):
        access.probe('gs://b/run')


def test_without_gcsfs(monkeypatch):
    monkeypatch.setitem(sys.modules, 'gcsfs', None)
    with pytest.raises(UserError, match=r'pip install .emigm_jax\[gcs\]'):
        access.probe('gs://b/run')


@pytest.mark.parametrize('choice', ['', pytest.param('true', marks=pytest.mark.slow)])
def test_tensorflow_is_not_asked(bucket, tmp_path, choice):
    """etils would import an installed TensorFlow; we do not, and say so where somebody insists."""
    (tmp_path / 'tensorflow.py').write_text('raise ImportError("no GPU, no fun")')
    code = (
        f'import sys; from emigm_jax.io import gcs; gcs.probe("{bucket}/x")\n'
        'from etils import epath\n'
        f'assert not epath.Path("{bucket}/x").exists()\n'
        'assert "tensorflow" not in sys.modules'
    )
    env = {**os.environ, 'PYTHONPATH': f'{tmp_path}:{gcs.SERVER.parents[2]}'}
    if choice:
        env['EPATH_USE_TF'] = choice
    done = subprocess.run([sys.executable, '-c', code], env=env, capture_output=True, text=True)
    assert done.returncode == (1 if choice else 0), done.stderr
    told = (done.stderr.strip().splitlines() or [''])[-1]
    assert ('no GPU, no fun' in told) == ('set EPATH_USE_TF=false' in told) == bool(choice)


def test_local_places(tmp_path):
    access.probe(tmp_path / 'a' / 'b')
    assert not list(tmp_path.iterdir())
    with pytest.raises(UserError, match=r'Read-only|Permission|No such'):
        access.probe('/proc/nowhere')


@pytest.mark.parametrize(
    'command',
    [
        'convert x.pth gs://nobody-has-this/m',
        'evaluate --checkpoint x --json gs://nobody-has-this/s.json',
        'evaluate --images x --reference r --inception i --out gs://nobody-has-this/s',
        'prepare latents gs://nobody-has-this/c --folder x --tokenizer y',
        'prepare reference gs://nobody-has-this/r.npz --folder x --inception y',
    ],
)
def test_commands_refuse_at_once_what_they_cannot_write(command, bucket, capsys):
    assert main.main(command.split()) == 2
    assert 'there is no bucket gs://nobody-has-this' in capsys.readouterr().err
