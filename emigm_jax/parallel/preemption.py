"""Notices that a run is to end now: SIGTERM, or the word of a metadata server on this machine.

All processes of a run must stop at the same step; jax's coordination service finds one.
"""

import contextlib
import os
import signal
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Self

import jax
from jax.experimental import multihost_utils

# What Google's machines are told. GCE_METADATA_HOST is the usual name of another server.
_KEYS = ('instance/preempted', 'instance/maintenance-event')
_QUIET = ('FALSE', 'NONE', '')
POLL = 5.0  # seconds


class BrokenOff(BaseException):
    """Ends work that is not waited for; nobody takes it for one of its own errors."""


class Watch:
    """`due(step)` says whether the run should save and end after this step; a context manager.

    Attributes:
      reason: why, as far as this process knows.
    """

    def __init__(self):
        self._noticed, self._over = threading.Event(), threading.Event()
        self._breaking = False
        self.reason = 'asked to end by SIGTERM'

    def __enter__(self) -> Self:
        # With several processes jax's own handler of SIGTERM tells the coordinator.
        self._single = jax.process_count() == 1
        if self._single and threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(signal.SIGTERM, self._notice)
        if _on_google_cloud():
            threading.Thread(target=self._poll, daemon=True).start()
        return self

    def __exit__(self, *_):
        self._over.set()
        if hasattr(self, '_previous'):
            signal.signal(signal.SIGTERM, self._previous)

    def _notice(self, *_):
        self._noticed.set()
        if self._breaking:
            raise BrokenOff

    @contextlib.contextmanager
    def breaking(self) -> Iterator[None]:
        """Around work that would keep a run from ending: raises `BrokenOff` when it is to end.

        Only where the run is one process: several would have to break off at the same place.
        """
        self._breaking = True
        try:
            if self._single and self._noticed.is_set():
                raise BrokenOff
            yield
        finally:
            self._breaking = False

    def due(self, step: int) -> bool:
        """Whether step `step` is the last one: True at the same step in every process."""
        if self._single:
            return self._noticed.is_set()
        return multihost_utils.reached_preemption_sync_point(step)

    def _poll(self):
        while not self._over.wait(POLL):
            if any(_metadata(key) not in _QUIET for key in _KEYS):
                self.reason = 'this machine is about to be taken away'
                os.kill(os.getpid(), signal.SIGTERM)  # the one way in, whoever listens
                return


def _on_google_cloud():
    if 'GCE_METADATA_HOST' not in os.environ and jax.default_backend() == 'cpu':
        return False
    return _metadata('instance/id') != ''


def _metadata(key):
    host = os.environ.get('GCE_METADATA_HOST', 'metadata.google.internal')
    request = urllib.request.Request(
        f'http://{host}/computeMetadata/v1/{key}', headers={'Metadata-Flavor': 'Google'}
    )
    try:
        with urllib.request.urlopen(request, timeout=2) as answer:
            return answer.read().decode().strip()
    except (OSError, ValueError):
        return ''
