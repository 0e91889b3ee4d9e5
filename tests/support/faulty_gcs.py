"""The fixtures `faults`, what goes wrong between a run and its bucket, and `hurried`.

A small server before the emulator hands requests on, but for those that a `Rule` names. It listens
on 127.0.0.1 only.
"""

import collections
import contextlib
import dataclasses
import http.client
import http.server
import json
import os
import re
import socket
import struct
import threading
import time
import urllib.parse

import pytest

from support.gcs import environment

SLOW = 0.5  # seconds that an answer is late
_OF_A_CONNECTION = ('connection', 'keep-alive', 'transfer-encoding', 'content-length')


@dataclasses.dataclass
class Rule:
    """Which requests fail, and how."""

    fault: str  # a status, or 'reset', 'slow', 'short', 'stored' (done, but answered by 500)
    what: str = ''  # pattern of 'METHOD /path?query', unquoted
    times: int = 1  # how often
    after: int = 0  # so many that match are well first


class Faults:
    """The server's address, its rules, what they met ({rule's index: times}), and all requests."""

    def __init__(self, upstream):
        self.upstream, self._rules, self._lock = upstream, [], threading.Lock()
        self.met, self.asked = collections.Counter(), []

    def use(self, *rules):
        with self._lock:
            self._rules, self.met = [dataclasses.replace(rule) for rule in rules], type(self.met)()
            self.asked.clear()

    def of(self, request):
        """The fault of a request, or ''."""
        with self._lock:
            self.asked.append(request)
            for number, rule in enumerate(self._rules):
                if not rule.times or not re.search(rule.what, request):
                    continue
                if rule.after:
                    rule.after -= 1
                    continue
                rule.times -= 1
                self.met[number] += 1
                return rule.fault
        return ''


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'
    faults: Faults

    def handle_one(self):
        body = self.rfile.read(int(self.headers.get('Content-Length') or 0))
        fault = self.faults.of(f'{self.command} {urllib.parse.unquote(self.path)}')
        if fault == 'reset':
            return self._reset()
        if fault.isdecimal():
            return self._refuse(int(fault))
        if fault == 'slow':
            time.sleep(SLOW)
        status, headers, data = self._passed_on(body)
        if fault == 'stored':
            return self._refuse(500)
        self._answer(status, headers, data, fault == 'short')

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = do_HEAD = handle_one

    def _passed_on(self, body):
        headers = {k: v for k, v in self.headers.items() if k.lower() not in _OF_A_CONNECTION}
        with contextlib.closing(http.client.HTTPConnection(self.faults.upstream)) as connection:
            connection.request(self.command, self.path, body, headers)
            answer = connection.getresponse()
            return answer.status, answer.getheaders(), answer.read()

    def _answer(self, status, headers, data, short=False):
        self.send_response_only(status)
        for name, value in headers:
            if name.lower() not in _OF_A_CONNECTION:
                self.send_header(name, value)
        self.send_header('Content-Length', str(len(data)))
        self.end_headers()
        if self.command != 'HEAD':
            self.wfile.write(data[: len(data) // 2] if short else data)
        if short:
            self._reset()

    def _refuse(self, status):
        value = {'error': {'code': status, 'message': 'made to fail'}}
        self._answer(status, [('Content-Type', 'application/json')], json.dumps(value).encode())

    def _reset(self):
        """What was written so far is delivered, or not, and the connection is gone."""
        self.wfile.flush()
        time.sleep(0.05)
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))
        self.close_connection = True

    def finish(self):
        with contextlib.suppress(OSError):
            super().finish()

    def log_message(self, *_):
        """Silent."""


class _Server(http.server.ThreadingHTTPServer):
    request_queue_size = 128

    def handle_error(self, *_):
        """A client that has gone is no news."""

    def shutdown_request(self, request):
        request.close()  # without a polite end, which a connection that was reset does not have


@pytest.fixture
def faults(_emulator, monkeypatch):
    """`Faults` between this process, those that it starts, and the bucket; none at first."""
    made = Faults(_emulator.removeprefix('http://'))
    handler = type('Handler', (_Handler,), {'faults': made})
    # A thread of its own for each connection, which may be slow.
    with _Server(('127.0.0.1', 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        for name, value in environment(f'http://127.0.0.1:{server.server_port}').items():
            monkeypatch.setenv(name, value)
        assert os.environ['STORAGE_EMULATOR_HOST'] != _emulator
        yield made
        server.shutdown()


@pytest.fixture
def hurried(monkeypatch):
    """Nobody waits between two tries."""
    from emigm_jax.checkpoints import requests
    from support.hurried import hurry

    hurry(monkeypatch.setattr)
    requests.bound.cache_clear()
    yield
    requests.bound.cache_clear()
