"""The page over HTTP, on this machine's loopback address alone, until it is ended; then nothing is left of it."""

from __future__ import annotations

import os
import signal
import socket
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ..report.watch import ADDRESS, no_port

# What a person may drop at most, in bytes and in pixels; and how long it lies while the page is open.
MOST_BYTES, MOST_PIXELS, KEEP_SECONDS = 10_000_000, 20_000_000, 300


@contextmanager
def listener(port: int) -> Iterator[socket.socket]:
    """A port that listens; 0: any free one.

    Raises:
        ConfigError: it can't be had.
    """
    with socket.socket() as door:
        try:
            door.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            door.bind((ADDRESS, port))
            door.listen()
        except OSError as error:
            raise no_port(port, error) from None
        yield door


def serve(run: Path, door: socket.socket, say: Callable[[str], None]) -> None:
    """Serve a run's page until Ctrl-C, or until asked to end.

    Raises:
        MstdistillError: no run that can be tried.
    """
    say(f"{run}: loading its networks")
    from .asking import Asking

    asking = Asking(run)
    with suppress(KeyboardInterrupt), _ended_by_term(), _files():
        server = _server(asking)
        say(f"{run}: http://{ADDRESS}:{door.getsockname()[1]}/  (Ctrl-C ends it)")
        server.run(sockets=[door])


def _server(asking: Any) -> Any:
    import fastapi
    import gradio as gr
    import uvicorn
    from PIL import Image
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    from .page import CSS, build, theme

    Image.MAX_IMAGE_PIXELS = MOST_PIXELS
    app = fastapi.FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    # pages of elsewhere whose name points here get no answer
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=[ADDRESS, "localhost"])
    gr.mount_gradio_app(
        app, build(asking, KEEP_SECONDS), "/", server_name=ADDRESS, max_file_size=MOST_BYTES, run_history=False,
        footer_links=[], show_error=True, ssr_mode=False, mcp_server=False, pwa=False, theme=theme(), css=CSS,
    )  # fmt: skip
    return uvicorn.Server(uvicorn.Config(app, log_level="error", timeout_graceful_shutdown=1))


@contextmanager
def _files() -> Iterator[None]:
    """Within the block Gradio's files lie in a folder that is deleted afterwards; it tells nobody of its use."""
    before = dict(os.environ)
    with tempfile.TemporaryDirectory(prefix="mstdistill-demo-", ignore_cleanup_errors=True) as folder:
        os.environ.update(GRADIO_TEMP_DIR=folder, GRADIO_ANALYTICS_ENABLED="False", GRADIO_SHARE="False")
        try:
            yield
        finally:
            os.environ.clear()
            os.environ.update(before)


@contextmanager
def _ended_by_term() -> Iterator[None]:
    """SIGTERM ends the block as Ctrl-C does."""
    before = signal.signal(signal.SIGTERM, lambda number, frame: signal.default_int_handler(signal.SIGINT, frame))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
