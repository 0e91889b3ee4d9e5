"""Serves the page, to this machine alone unless it is told otherwise."""

import contextlib
import importlib.util
import os
import pathlib
import socket
import sys
import tempfile
import threading
import time
from typing import Any, final

from emigm_jax.api.model import Model
from emigm_jax.errors import UserError, check_range
from emigm_jax.playground.settings import Offer
from emigm_jax.playground.studio import Studio

LOCAL = '127.0.0.1'
HEIGHT = 900  # pixels in a notebook
# Nothing is told to anybody; parts of gradio ask the environment when they are imported.
QUIET = {'GRADIO_ANALYTICS_ENABLED': 'False', 'HF_HUB_DISABLE_TELEMETRY': '1'}
# The browser asks nobody but this server, whatever is on the page.
POLICY = (
    "default-src 'self' data: blob:; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; "
    "style-src 'self' 'unsafe-inline'"
)


def check_installed() -> None:
    """Raises UserError unless what serves pages is installed."""
    if importlib.util.find_spec('gradio') is None:
        raise UserError("the page needs gradio: pip install 'emigm_jax[demo]'")


def listening(host: str, port: int) -> socket.socket:
    """A socket to serve on.

    Args:
      host: an address of this machine; 0.0.0.0: all of them.
      port: 0: any that is free.

    Raises:
      UserError: it is taken, or cannot be had.
    """
    check_range('the port', port, 0, 65535)
    try:
        return socket.create_server((host, port))
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno and error.errno > 0 else error.strerror
        raise UserError(
            f'--host {host} --port {port}: {reason}; --port 0 takes any that is free'
        ) from error


@final
class Server:
    """A page that is served, from a thread of its own if `start` is called.

    Attributes:
      url: its address.
    """

    def __init__(self, offer: Offer, place: socket.socket):
        studio = Studio(offer)
        # Beside what is imported and built; whoever comes earlier waits for his first picture.
        pictures = _behind(studio.warm)
        os.environ.update(QUIET)
        import fastapi  # pyright: ignore[reportMissingImports]
        import gradio as gr  # pyright: ignore[reportMissingImports]
        import uvicorn  # pyright: ignore[reportMissingImports]

        from emigm_jax.playground import page

        self._place, self._folder = place, tempfile.TemporaryDirectory(prefix='emigm-demo-')
        host, port = place.getsockname()[:2]
        self.url = f'http://{f"[{host}]" if ":" in host else host}:{port}/'
        blocks = page.build(studio, pathlib.Path(self._folder.name))
        app = gr.mount_gradio_app(
            fastapi.FastAPI(), blocks, '/', run_history=False, ssr_mode=False, **page.look()
        )
        config = uvicorn.Config(
            _sealed(app), log_level='error', timeout_graceful_shutdown=1, ws='none'
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self.run, daemon=True)
        _behind(pictures.join, studio.warm_edit)

    def run(self) -> None:
        """Serves until it is interrupted or closed."""
        with self._folder, self._place:
            self._server.run(sockets=[self._place])

    def start(self) -> None:
        """Begins to serve, and returns."""
        self._thread.start()
        while not self._server.started and self._thread.is_alive():
            time.sleep(0.01)

    def close(self) -> None:
        """Ends what `start` began."""
        self._server.should_exit = True
        self._thread.join()

    def show(self) -> None:
        """Shows it below the cell of a notebook; elsewhere it prints its address."""
        if 'google.colab' in sys.modules:
            from google.colab import output  # pyright: ignore[reportMissingImports]

            output.serve_kernel_port_as_iframe(self._place.getsockname()[1], height=HEIGHT)
        elif 'ipykernel' in sys.modules:
            from IPython.display import IFrame, display

            display(IFrame(self.url, '100%', HEIGHT))
        else:
            print(self.url)


def demo(
    model: Model, *, most: int = 16, host: str = LOCAL, port: int = 0, preset: str | None = None
) -> Server:
    """Serves a page to play with a model: pictures as they are revealed, masks that are painted.

    In a notebook it shows below the cell, elsewhere its address is printed. It goes on until it is
    closed or Python ends.

    Args:
      model: of `load`.
      most: pictures at a time; fewer are drawn sooner where a model is slow.
      host: an address of this machine that it listens on; 0.0.0.0: others reach it, too.
      port: 0: any that is free.
      preset: published settings that it begins with; None: the checkpoint's own.

    Returns:
      the `Server`: its `url`, and `close()`.

    Raises:
      UserError: gradio is not installed, there is no such preset, or the port is taken.

    Example:
      >>> page = em.demo(model)  # doctest: +SKIP
      >>> page.close()  # doctest: +SKIP
    """
    check_installed()
    model.sampling(preset)
    server = Server(Offer(model, most, preset or ''), listening(host, port))
    server.start()
    server.show()
    return server


def _behind(*parts):
    """A thread that does them one after the other."""

    def work():
        with contextlib.suppress(Exception):  # visitors meet the same, and are told
            for part in parts:
                part()

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


def _sealed(app: Any) -> Any:
    """An ASGI app whose answers carry `POLICY`."""

    async def answer(scope, receive, send):
        async def told(message):
            if message['type'] == 'http.response.start':
                policy = (b'content-security-policy', POLICY.encode())
                message = message | {'headers': [*message['headers'], policy]}
            await send(message)

        await app(scope, receive, told)

    return answer
