"""As much of Google Cloud Storage as a store needs, in memory, on loopback: its JSON API, as its reference tells it."""

import base64
import contextlib
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

BUCKET = "photos"


@contextlib.contextmanager
def google() -> Iterator[str]:
    """Address of a server with one empty bucket."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    objects: dict[str, tuple[bytes, dict[str, Any]]] = {}  # noqa: RUF012 - of the one server of a session
    lock = threading.Lock()

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        _, told, content, _ = re.split(rb"(?:\A|\n)--==0==(?:--)?", body, maxsplit=3, flags=re.DOTALL)
        described = json.loads(told.partition(b"\n\n")[2])
        header, _, data = content.partition(b"\n\n")
        described["contentType"] = header.decode().partition(": ")[2]
        with self.lock:
            if self._asked.get("ifGenerationMatch") == "0" and described["name"] in self.objects:
                self._answer(412, {"error": {"code": 412, "message": "conditionNotMet"}})
                return
            digest = base64.b64encode(hashlib.md5(data).digest()).decode()
            item = {**described, "bucket": BUCKET, "size": str(len(data)), "md5Hash": digest, "etag": "of-this-version"}
            self.objects[described["name"]] = data, item
        self._answer(200, item)

    def do_GET(self) -> None:
        if not self._path.startswith(f"/storage/v1/b/{BUCKET}/o") and not self._path.startswith("/download/"):
            self._answer(404, {"error": {"code": 404, "message": "The specified bucket does not exist."}})
        elif self._name is None:
            self._list()
        elif self._name not in self.objects:
            self._answer(404, {"error": {"code": 404, "message": "No such object"}})
        elif self._asked.get("alt") == "media":
            self._send(*self.objects[self._name])
        else:
            self._answer(200, self.objects[self._name][1])

    def do_DELETE(self) -> None:
        assert self._name is not None
        was_there = self.objects.pop(self._name, None) is not None
        self._answer(204 if was_there else 404, {"error": {"code": 404, "message": "No such object"}})

    def log_message(self, *_: object) -> None: ...

    @property
    def _path(self) -> str:
        return urlsplit(self.path).path

    @property
    def _asked(self) -> dict[str, str]:
        return {name: values[-1] for name, values in parse_qs(urlsplit(self.path).query).items()}

    @property
    def _name(self) -> str | None:
        name = self._path.partition(f"/b/{BUCKET}/o/")[2]
        return unquote(name) if name else None

    def _list(self) -> None:
        prefix, delimiter = self._asked.get("prefix", ""), self._asked.get("delimiter")
        names = sorted(name for name in self.objects if name.startswith(prefix))
        folders = {
            prefix + name[len(prefix) :].partition("/")[0] + "/"
            for name in names
            if delimiter and delimiter in name[len(prefix) :]
        }
        names = [name for name in names if not any(name.startswith(folder) for folder in folders)]
        start, most = int(self._asked.get("pageToken", 0)), int(self._asked.get("maxResults", 1000))
        page: dict[str, Any] = {"kind": "storage#objects", "prefixes": sorted(folders)}
        page["items"] = [self.objects[name][1] for name in names[start : start + most]]
        if start + most < len(names):
            page["nextPageToken"] = str(start + most)
        self._answer(200, page)

    def _send(self, data: bytes, _: dict[str, Any]) -> None:
        if (asked := re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))) is None:
            self._answer(200, data)
        elif int(asked[1]) >= len(data):
            self._answer(416, {"error": {"code": 416, "message": "Request range not satisfiable"}})
        else:
            self._answer(206, data[int(asked[1]) : int(asked[2]) + 1])

    def _answer(self, status: int, content: bytes | dict[str, Any]) -> None:
        body = b"" if status == 204 else content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        with contextlib.suppress(BrokenPipeError):  # who asked has the answer from elsewhere
            self.wfile.write(body)
