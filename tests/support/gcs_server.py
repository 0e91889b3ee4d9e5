"""A Google Cloud Storage in memory, in a process of its own: `python gcs_server.py BUCKET ...`.

It is gcp-storage-emulator with what it lacks: generations of objects, which TensorStore reads back
and makes its writes depend on; a threaded server (its own answers one connection at a time, and an
idle one makes the others wait), still one request at a time (its dicts are not made for threads);
and no copy of its whole catalogue at every write. Prints its port and ends with its parent.
"""

import functools
import http.server
import logging
import os
import re
import sys
import threading
import time
import urllib.parse

from gcp_storage_emulator import server, storage
from gcp_storage_emulator.handlers import buckets, objects


def serve(names):
    logging.disable()  # the emulator logs every request
    storage.Storage._write_config_to_file = lambda self: None
    memory = storage.Storage(use_memory_fs=True)
    for name in names:
        buckets.create_bucket(name, memory)
    lock = threading.Lock()
    handle = server.Router.handle

    download = objects.download

    def one_at_a_time(self, method):
        with lock:
            status = refusal(memory, method, self._request_handler.path)
            if status:
                answer(self._request_handler, status)
            else:
                handle(self, method)

    def with_generation(request, response, memory, *rest, **more):
        held = generation(memory, request.params['bucket_name'], request.params['object_id'])
        response['x-goog-generation'] = held
        download(request, response, memory, *rest, **more)

    server.Router.handle = one_at_a_time
    objects.download = with_generation
    handler = functools.partial(server.RequestHandler, memory)
    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler) as httpd:
        print(httpd.server_address[1], flush=True)
        threading.Thread(target=end_with, args=(os.getppid(),), daemon=True).start()
        httpd.serve_forever()


def generation(memory, bucket, name):
    """That of an object, as text; '0' if there is none."""
    return memory.objects.get(bucket, {}).get(name, {}).get('generation', '0')


def refusal(memory, method, url):
    """The status that a request's condition asks for instead of an answer, or None."""
    url = urllib.parse.urlparse(url)
    query = dict(urllib.parse.parse_qsl(url.query))
    match = re.search('/b/([^/]+)/o(?:/([^/]+))?$', url.path)
    if not match:
        return None
    name = urllib.parse.unquote(match[2]) if match[2] else query.get('name', '')
    held = generation(memory, match[1], name)
    if query.get('ifGenerationMatch', held) != held:
        return 412
    if method == 'GET' and held != '0' and query.get('ifGenerationNotMatch') == held:
        return 304
    return None


def answer(handler, status):
    handler.rfile.read(int(handler.headers.get('Content-Length') or 0))
    handler.send_response(status)
    handler.send_header('Content-Length', '0')
    handler.end_headers()


def end_with(parent):
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(0)


if __name__ == '__main__':
    serve(sys.argv[1:])
