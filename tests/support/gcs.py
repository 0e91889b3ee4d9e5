"""The fixture `bucket`: a Google Cloud Storage of this machine, the same for all tests of a run.

What the emulator lacks is put right in gcs_server.py. Credentials are not asked for, so the
libraries are told not to look for them, nor to ask (over gRPC, which is not emulated) what kind of
bucket it is.
"""

import os
import pathlib
import subprocess
import sys
import uuid

import pytest

SERVER = pathlib.Path(__file__).with_name('gcs_server.py')


def environment(url):
    """What makes gcsfs, google-cloud-storage and TensorStore talk to `url`."""
    return {
        'STORAGE_EMULATOR_HOST': url,
        'TENSORSTORE_GCS_HTTP_URL': url,
        'GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT': 'false',
        'NO_GCE_CHECK': 'true',
        'GCE_METADATA_HOST': '127.0.0.1:1',  # nobody there: TensorStore goes on without
        'GOOGLE_CLOUD_PROJECT': 'emulated',
    }


@pytest.fixture(scope='session')
def _emulator():
    command = [sys.executable, '-W', 'ignore', str(SERVER), 'emulated']
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        url = f'http://127.0.0.1:{int(process.stdout.readline())}'
        before = dict(os.environ)
        os.environ.update(environment(url))
        yield url
        for name in environment(url):
            os.environ.pop(name)
            if name in before:
                os.environ[name] = before[name]
        process.kill()


@pytest.fixture
def bucket(_emulator):
    """A new folder in a bucket, as 'gs://...'."""
    return f'gs://emulated/{uuid.uuid4().hex[:8]}'


def text(path):
    """The content of an object as a string."""
    from emigm_jax.io import paths

    return paths.absolute(path).read_text()
