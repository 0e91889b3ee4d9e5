"""The fixture `hub`: a Hugging Face Hub of this machine, which huggingface_hub is sent to.

It speaks the part of the protocol that fetching needs: files with ranges, listings, and the
answers for what is missing or closed.
"""

import dataclasses
import hashlib
import http.server
import json
import re
import sys
import threading
import urllib.parse

import pytest

COMMIT = 'c0ffee' + '0' * 34
_FILE = re.compile(r'/(?:datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)')
_API = re.compile(r'/api/(?:models|datasets)/([^/]+/[^/]+)/(revision|tree)/([^/]+)/?(.*)')


@dataclasses.dataclass
class Hub:
    """What lies on the stand-in, and what was asked of it."""

    files: dict[str, dict[str, bytes]] = dataclasses.field(default_factory=dict)
    closed: set[str] = dataclasses.field(default_factory=set)  # repositories that ask for a login
    cut: dict[str, int] = dataclasses.field(default_factory=dict)  # file: bytes, once
    asked: list[tuple[str, str, str]] = dataclasses.field(default_factory=list)

    def fetches(self, name):
        """The ranges ('' for all) in which the content of a file was asked for."""
        return [span for method, path, span in self.asked if method == 'GET' and name in path]


def _handler(hub):
    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = 'HTTP/1.1'

        def log_message(self, *_):
            pass

        def reply(self, status, body=b'', **headers):
            self.send_response(status)
            self.send_header('X-Repo-Commit', COMMIT)
            for name, value in headers.items():
                self.send_header(name.replace('_', '-'), value)
            self.send_header('Content-Length', str(len(body)))
            self.end_headers()
            return body if self.command == 'GET' else b''

        def do_GET(self):
            path = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path)
            span = self.headers.get('Range', '')
            hub.asked.append((self.command, path, span))
            match = _FILE.fullmatch(path) or _API.fullmatch(path)
            repo = match[1] if match else ''
            if repo not in hub.files:
                self.wfile.write(self.reply(404, X_Error_Code='RepoNotFound'))
            elif repo in hub.closed:
                self.wfile.write(self.reply(403, X_Error_Code='GatedRepo'))
            elif match[2 if match.re is _FILE else 3] not in ('main', 'v1', COMMIT):
                self.wfile.write(self.reply(404, X_Error_Code='RevisionNotFound'))
            elif match.re is _FILE:
                self.content(hub.files[repo].get(match[3]), match[3], span)
            else:
                self.wfile.write(self.listing(hub.files[repo], match[2], match[4]))

        do_HEAD = do_GET

        def content(self, data, name, span):
            if data is None:
                self.wfile.write(self.reply(404, X_Error_Code='EntryNotFound'))
                return
            tag, start = f'"{hashlib.sha256(data).hexdigest()}"', 0
            headers = {'ETag': tag, 'Accept-Ranges': 'bytes'}
            if span:
                start = int(re.fullmatch(r'bytes=(\d+)-.*', span)[1])
                headers['Content-Range'] = f'bytes {start}-{len(data) - 1}/{len(data)}'
            body = self.reply(206 if span else 200, data[start:], **headers)
            if body and name in hub.cut:
                self.wfile.write(body[: hub.cut.pop(name)])
                self.close_connection = True
                return
            self.wfile.write(body)

        def listing(self, files, what, below):
            if what == 'revision':
                siblings = [{'rfilename': name} for name in files]
                facts = {'id': 'x/y', 'sha': COMMIT, 'siblings': siblings, 'private': False}
                return self.reply(200, json.dumps(facts).encode())
            rows = [
                {'type': 'file', 'path': name, 'size': len(data), 'oid': 'f' * 40}
                for name, data in files.items()
                if name.startswith(f'{below}/' if below else '')
            ]
            if below and not rows:
                return self.reply(404, X_Error_Code='EntryNotFound')
            return self.reply(200, json.dumps(rows).encode())

    return Handler


def forget():
    """The library reads its settings again, when it is next imported, and all is asked anew."""
    from emigm_jax.io import hub as access

    access._copies.clear()
    for name in [n for n in sys.modules if n.partition('.')[0] == 'huggingface_hub']:
        del sys.modules[name]


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A `Hub`; the cache of huggingface_hub, which reads its settings when imported, is new."""
    state = Hub()
    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), _handler(state)) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        monkeypatch.setenv('HF_ENDPOINT', f'http://127.0.0.1:{server.server_address[1]}')
        monkeypatch.setenv('HF_HOME', str(tmp_path / 'hf-home'))
        for name in ('HF_TOKEN', 'HF_HUB_OFFLINE', 'HF_HUB_CACHE', 'HUGGINGFACE_HUB_CACHE'):
            monkeypatch.delenv(name, raising=False)
        forget()
        yield state
        forget()
        server.shutdown()
