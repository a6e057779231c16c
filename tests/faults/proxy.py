"""A proxy before an S3 server that is as bad as the network and the server of a bad day."""

import http.client
import random
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from enum import StrEnum
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Fault(StrEnum):
    """What may happen to a request."""

    SLOW_DOWN = "slow down"  # 503, and the server never sees it
    ERROR = "error"  # 500, and the server never sees it
    CUT = "cut"  # half of the answer's body, and the connection ends
    LOST_REQUEST = "lost request"  # the connection ends before the server sees it
    LOST_ANSWER = "lost answer"  # the server does it, and the connection ends
    DELAY = "delay"  # it takes a while


BAD_DAY = {
    Fault.SLOW_DOWN: 0.20,
    Fault.ERROR: 0.02,
    Fault.CUT: 0.05,
    Fault.LOST_REQUEST: 0.04,
    Fault.LOST_ANSWER: 0.05,
    Fault.DELAY: 0.05,
}
DELAY_S = 0.05
_ERROR = '<?xml version="1.0" encoding="UTF-8"?><Error><Code>{code}</Code><Message>{message}</Message></Error>'

Refuse = Callable[[str, str], tuple[int, str] | None]  # of a method and a path: a status and a code of S3


class FaultProxy:
    """Passes requests on to a server on loopback, or not. The same request has the same faults in each run.

    Attributes:
        shares: of all requests, that have each fault; may be changed at any time.
        script: what happens to the next requests, before chance decides again.
        refuse: what is answered with an error of S3 instead.
        seen: requests so far, by method.
        counts: faults so far.
    """

    def __init__(self, upstream_port: int, *, seed: int = 0, shares: Mapping[Fault, float] = BAD_DAY) -> None:
        self.upstream_port = upstream_port
        self.shares = dict(shares)
        self.script: list[Fault | None] = []
        self.refuse: Refuse = lambda _method, _path: None
        self.seen: Counter[str] = Counter()
        self.counts: Counter[Fault] = Counter()
        self.port = 0
        self._seed = seed
        self._times: Counter[tuple[str, str]] = Counter()
        self._lock = threading.Lock()
        self._server: _Server | None = None

    def __enter__(self) -> "FaultProxy":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Listen, at the same port as before if there was one."""
        self._server = _Server(self)
        self.port = self._server.server_port

    def stop(self) -> None:
        """End every connection, and refuse more."""
        if self._server is not None:
            self._server.stop()
            self._server = None

    def fate(self, method: str, path: str) -> Fault | None:
        """What happens to this request: by chance, but by the same chance each time that it is the n-th of its kind."""
        with self._lock:
            self.seen[method] += 1
            if self.script:
                return self.script.pop(0)
            self._times[method, path] += 1
            drawn = random.Random(f"{self._seed} {method} {path} {self._times[method, path]}").random()
            for fault, share in self.shares.items():
                drawn -= share
                if drawn < 0:
                    self.counts[fault] += 1
                    return fault
        return None


class _Server(ThreadingHTTPServer):
    daemon_threads = False  # `server_close` waits for them: none outlives its test
    block_on_close = True
    request_queue_size = 128

    def __init__(self, proxy: FaultProxy) -> None:
        self.proxy = proxy
        self.connections: set[socket.socket] = set()
        super().__init__(("127.0.0.1", proxy.port), _Handler)
        self._thread = threading.Thread(target=self.serve_forever, args=(0.02,), name="fault proxy")
        self._thread.start()

    def stop(self) -> None:
        self.shutdown()
        self._thread.join()
        for connection in list(self.connections):
            _end(connection)
        self.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server

    def setup(self) -> None:
        super().setup()
        self.server.connections.add(self.connection)
        self._upstream = http.client.HTTPConnection("127.0.0.1", self.server.proxy.upstream_port, timeout=60)

    def finish(self) -> None:
        self._upstream.close()
        self.server.connections.discard(self.connection)
        try:
            super().finish()
        except OSError:  # the connection has ended meanwhile
            self.rfile.close()

    def handle(self) -> None:
        try:
            super().handle()
        except OSError:
            self.close_connection = True

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        proxy = self.server.proxy
        if (refused := proxy.refuse(self.command, self.path)) is not None:
            self._say(*refused)
            return
        match proxy.fate(self.command, self.path):
            case Fault.SLOW_DOWN:
                self._say(503, "SlowDown")
            case Fault.ERROR:
                self._say(500, "InternalError")
            case Fault.LOST_REQUEST:
                self._reset()
            case Fault.LOST_ANSWER:
                self._ask(body)
                self._reset()
            case Fault.CUT:
                self._pass_on(*self._ask(body), is_cut=True)
            case Fault.DELAY:
                time.sleep(DELAY_S)
                self._pass_on(*self._ask(body))
            case None:
                self._pass_on(*self._ask(body))

    do_PUT = do_POST = do_DELETE = do_HEAD = do_GET

    def log_message(self, *_: object) -> None: ...

    def _ask(self, body: bytes) -> tuple[http.client.HTTPResponse, bytes]:
        """What the server answers, by a new connection: an idle one may have ended, and that is no fault of ours."""
        self._upstream.close()
        self._upstream.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
        for name, value in self.headers.items():
            if name.lower() not in ("connection", "expect"):
                self._upstream.putheader(name, value)
        self._upstream.endheaders(body)
        answer = self._upstream.getresponse()
        return answer, answer.read()

    def _pass_on(self, answer: http.client.HTTPResponse, body: bytes, *, is_cut: bool = False) -> None:
        self.send_response_only(answer.status, answer.reason)
        for name, value in answer.getheaders():
            if name.lower() not in ("connection", "transfer-encoding", "content-length"):
                self.send_header(name, value)
        length = answer.getheader("Content-Length") if self.command == "HEAD" else str(len(body))
        if length is not None:
            self.send_header("Content-Length", length)
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if is_cut else body)
        if is_cut:
            self._end()

    def _say(self, status: int, code: str) -> None:
        body = _ERROR.format(code=code, message="Said by the proxy.").encode()
        self.send_response_only(status)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _reset(self) -> None:
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._end()

    def _end(self) -> None:
        self.close_connection = True
        _end(self.connection)


def _end(connection: socket.socket) -> None:
    try:
        connection.shutdown(socket.SHUT_RDWR)
    except OSError:
        return
