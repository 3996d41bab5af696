"""A package index on loopback: the simple API of one project, byte ranges, and downloads that break off when told to."""

from __future__ import annotations

import hashlib
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


@dataclass
class Index:
    url: str  #: of the simple API
    wheel_url: str
    break_after: int | None = None  #: bytes of the wheel after which the connection is closed
    ranges: bool = True
    served: list[tuple[int, int]] = field(default_factory=list)  #: (first byte, bytes sent) of each download


def make_wheel(folder: Path, distribution: str, version: str, files: dict[str, bytes]) -> Path:
    """A valid pure-Python wheel; its dependency does not exist anywhere, so that resolving it would fail."""
    name = distribution.replace("-", "_")
    path = folder / f"{name}-{version}-py3-none-any.whl"
    info = f"{name}-{version}.dist-info"
    files = {
        **files,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n"
        "Requires-Dist: there-is-no-such-package-anywhere\n".encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    with zipfile.ZipFile(path, "w") as archive:
        for member, content in files.items():
            archive.writestr(member, content)
        record = "".join(f"{member},,\n" for member in (*files, f"{info}/RECORD"))
        archive.writestr(f"{info}/RECORD", record)
    return path


@contextmanager
def serve_index(wheel: Path, distribution: str) -> Iterator[Index]:
    content = wheel.read_bytes()
    digest = hashlib.sha256(content).hexdigest()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            if self.path.rstrip("/") == f"/simple/{distribution}":
                page = f'<!DOCTYPE html><html><body><a href="/files/{wheel.name}#sha256={digest}">{wheel.name}</a></body></html>'
                self._send(200, page.encode(), {"Content-Type": "text/html"})
            elif self.path == f"/files/{wheel.name}":
                self._send_wheel()
            else:
                self._send(404, b"", {})

        do_HEAD = do_GET

        def _send_wheel(self) -> None:
            wanted = self.headers.get("Range") if index.ranges else None
            start = int(wanted.removeprefix("bytes=").split("-")[0] or 0) if wanted else 0
            end = int(wanted.split("-")[1]) + 1 if wanted and wanted.split("-")[1] else len(content)
            body = content[start:end]
            headers = {"Content-Type": "application/zip", "Accept-Ranges": "bytes" if index.ranges else "none"}
            if wanted:
                headers["Content-Range"] = f"bytes {start}-{end - 1}/{len(content)}"
            if self.command == "GET":
                sent = body if index.break_after is None else body[: index.break_after]
                index.served.append((start, len(sent)))
            self._send(206 if wanted else 200, body, headers)

        def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command == "HEAD":
                return
            if index.break_after is not None and self.path.startswith("/files/"):
                self.wfile.write(body[: index.break_after])
                self.wfile.flush()
                self.close_connection = True
                return
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    base = f"http://127.0.0.1:{server.server_address[1]}"
    index = Index(f"{base}/simple", f"{base}/files/{wheel.name}")
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield index
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
