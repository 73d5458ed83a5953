"""A local HTTP server that knows ranges and misbehaves on request, as the fixture `server`."""

import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from amed_env.datasets.download import Patience


@dataclass
class FileServer:
    """What is served and how, and what was asked for.

    `cut_after` says for each of the next requests how many bytes are sent before the connection is closed,
    `statuses` which status is answered in place of the file; None stands for all is well.
    """

    files: dict[str, bytes] = field(default_factory=dict)
    cut_after: list[int | None] = field(default_factory=list)
    statuses: list[int | None] = field(default_factory=list)
    ignores_ranges: bool = False
    tells_length: bool = True
    ranges: list[str | None] = field(default_factory=list)
    sent: list[int] = field(default_factory=list)
    url: str = ""

    def answer(self, handler):
        body = self.files.get(handler.path.lstrip("/"))
        asked = handler.headers.get("Range")
        self.ranges.append(asked)
        status = self.statuses.pop(0) if self.statuses else None
        cut = self.cut_after.pop(0) if self.cut_after else None
        if status is not None or body is None:
            self.sent.append(0)
            handler.send_error(status or 404)
            return
        start = 0
        if asked and not self.ignores_ranges:
            start = int(re.fullmatch(r"bytes=(\d+)-", asked)[1])
            if start >= len(body):
                self.sent.append(0)
                handler.send_response(416)
                handler.send_header("Content-Range", f"bytes */{len(body)}")
                handler.send_header("Content-Length", "0")
                handler.end_headers()
                return
            handler.send_response(206)
            handler.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        else:
            handler.send_response(200)
        part = body[start:]
        if self.tells_length:
            handler.send_header("Content-Length", str(len(part)))
        handler.end_headers()
        part = part if cut is None else part[:cut]
        self.sent.append(len(part))
        handler.wfile.write(part)
        handler.close_connection = True


@pytest.fixture
def server():
    state = FileServer()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            state.answer(self)

        def log_message(self, *_):
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    state.url = f"http://127.0.0.1:{http.server_port}"
    try:
        yield state
    finally:
        http.shutdown()
        http.server_close()
        thread.join()


@pytest.fixture
def patience():
    """Three attempts without waiting."""
    return Patience(attempts=3, pause_s=0.0, connect_timeout_s=5.0, read_timeout_s=5.0)
