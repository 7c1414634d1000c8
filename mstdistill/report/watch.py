"""A folder's page over HTTP, on this machine's loopback address alone: to watch a run in a browser, through a tunnel
where the run is on another machine. That page and nothing else is served."""

from __future__ import annotations

import errno
from collections.abc import Callable
from contextlib import suppress
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from ..errors import ConfigError, DataError
from .page import PAGE, Page

ADDRESS = "127.0.0.1"
# What a run's or a suite's folder holds before it has a page.
_MARKS = (PAGE, "config.yaml", "binding.json", "cells")


def server(folder: Path, port: int) -> ThreadingHTTPServer:
    """A server of the folder's page; 0: any free port.

    Raises:
        DataError: the folder holds neither a run nor a suite.
        ConfigError: the port can't be had.
    """
    if not any((folder / mark).exists() for mark in _MARKS):
        raise DataError(f"{folder} holds neither a run nor a suite; start one, then watch it")
    path = folder / PAGE

    class Handler(BaseHTTPRequestHandler):
        """Answers with the page as it is now."""

        server_version, sys_version = "mstdistill", ""

        def do_GET(self) -> None:
            self._answer(body=True)

        def do_HEAD(self) -> None:
            self._answer(body=False)

        def _answer(self, body: bool) -> None:
            if self.path not in ("/", f"/{PAGE}"):
                self.send_error(HTTPStatus.NOT_FOUND)
                return
            try:
                content = path.read_bytes()
            except OSError:
                content = _waiting(folder)
            self.send_response(HTTPStatus.OK)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.send_header("Content-Length", str(len(content)))
            self.send_header("Cache-Control", "no-store")
            self.end_headers()
            if body:
                self.wfile.write(content)

        def log_message(self, format: str, *args: Any) -> None:
            """Nobody wants to read of each renewal."""

    try:
        return ThreadingHTTPServer((ADDRESS, port), Handler)
    except OSError as error:
        raise no_port(port, error) from None


def no_port(port: int, error: OSError) -> ConfigError:
    """Why a port can't be had, in a line."""
    why = "in use" if error.errno == errno.EADDRINUSE else (error.strerror or str(error)).lower()
    return ConfigError(f"--port {port}: {why}; give another one, or 0 for any that is free")


def serve(folder: Path, port: int, say: Callable[[str], None]) -> None:
    """Serve until Ctrl-C.

    Raises:
        DataError: the folder holds neither a run nor a suite.
        ConfigError: the port can't be had.
    """
    with server(folder, port) as http, suppress(KeyboardInterrupt):
        say(f"{folder}: http://{ADDRESS}:{http.server_port}/  (Ctrl-C ends it)")
        http.serve_forever()


def _waiting(folder: Path) -> bytes:
    page = Page(f"{folder}: no page yet", "It comes with the run's first seconds of training.", reload=3)
    return page.render().encode()
