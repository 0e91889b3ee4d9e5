"""A Google Cloud Storage in memory, in a process of its own: `python gcs_server.py BUCKET ...`.

It is gcp-storage-emulator behind a threaded server (the emulator's own answers one connection at a
time, and an idle one makes the others wait), one request at a time (its dicts are not made for
threads), and without the copy of its whole catalogue that it keeps even in memory. Prints its port
and ends with its parent.
"""

import functools
import http.server
import logging
import os
import sys
import threading
import time

from gcp_storage_emulator import server, storage
from gcp_storage_emulator.handlers import buckets


def serve(names):
    logging.disable()  # the emulator logs every request
    storage.Storage._write_config_to_file = lambda self: None
    memory = storage.Storage(use_memory_fs=True)
    for name in names:
        buckets.create_bucket(name, memory)
    lock = threading.Lock()
    handle = server.Router.handle

    def one_at_a_time(self, method):
        with lock:
            handle(self, method)

    server.Router.handle = one_at_a_time
    handler = functools.partial(server.RequestHandler, memory)
    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler) as httpd:
        print(httpd.server_address[1], flush=True)
        threading.Thread(target=end_with, args=(os.getppid(),), daemon=True).start()
        httpd.serve_forever()


def end_with(parent):
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(0)


if __name__ == '__main__':
    serve(sys.argv[1:])
