"""A real S3 server on this machine, and a proxy in front of it that fails, cuts and counts.

The server is moto's; it checks no checksums of what it is sent. The proxy does that as S3 does.
"""

import hashlib
import http.client
import logging
import threading
import time
from base64 import b64decode
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from moto.server import ThreadedMotoServer

BUCKET = "hospital"


@dataclass
class Faults:
    """What the proxy does to requests, and what it has seen.

    Attributes:
        every: each so many-th request fails: one is refused, the next one's answer is cut half way; 0 for none.
        down: no request is answered.
        flipped: parts of keys whose bytes arrive changed at the reader.
        spoilt: parts of keys of which the first writing arrives changed at the store.
        pause: seconds before each writing.
        sent: keys and bytes of what was written.
        read: keys of what was read.
    """

    every: int = 0
    down: bool = False
    flipped: tuple[str, ...] = ()
    spoilt: set[str] = field(default_factory=set)
    pause: float = 0.0
    sent: list[tuple[str, int]] = field(default_factory=list)
    read: list[str] = field(default_factory=list)
    requests: int = 0
    guard: threading.Lock = field(default_factory=threading.Lock)

    def reset(self) -> None:
        """No faults from now on, and nothing seen."""
        self.__dict__.update(Faults().__dict__)

    def next_fault(self) -> str:
        with self.guard:
            self.requests += 1
            if self.down:
                return "refuse"
            if not self.every or self.requests % self.every:
                return ""
            return "cut" if (self.requests // self.every) % 2 else "refuse"

    @property
    def objects_sent(self) -> list[str]:
        """Hashes of the objects written, as often as they were."""
        return [key.rsplit("/", 1)[1] for key, _ in self.sent if "/objects/" in key]


class _Proxy(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    faults: Faults
    behind: tuple[str, int]

    def log_message(self, format: str, *args: object) -> None: ...

    def _serve(self) -> None:
        faults = self.faults
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        fault = faults.next_fault()
        if fault == "refuse":
            self.close_connection = True
            if faults.down or faults.requests % 4 == 0:
                return  # the connection breaks
            self._answer(503, {}, b"<Error><Code>InternalError</Code></Error>")
            return
        key = self.path.partition("?")[0]
        writes = self.command in ("PUT", "POST") and "/" in key.strip("/")
        if writes:
            time.sleep(faults.pause)
            spoilt = [part for part in faults.spoilt if part in key]
            if spoilt:
                faults.spoilt -= set(spoilt)
                body = bytes([body[0] ^ 1]) + body[1:]
            given = self.headers.get("x-amz-checksum-sha256")
            if given and b64decode(given) != hashlib.sha256(body).digest():
                self._answer(400, {}, b"<Error><Code>BadDigest</Code></Error>")
                return
        connection = http.client.HTTPConnection(*self.behind)
        connection.request(self.command, self.path, body=body, headers=dict(self.headers))
        answer = connection.getresponse()
        data = answer.read()
        connection.close()
        if writes and answer.status == 200:
            faults.sent.append((key, len(body)))
        if self.command == "GET" and "/objects/" in key:
            faults.read.append(key)
        if self.command == "GET" and any(part in key for part in faults.flipped) and data:
            data = data[:-1] + bytes([data[-1] ^ 1])
        headers = {name: value for name, value in answer.getheaders() if name.lower() != "transfer-encoding"}
        self._answer(answer.status, headers, data, cut=fault == "cut")

    def _answer(self, status: int, headers: dict[str, str], data: bytes, *, cut: bool = False) -> None:
        self.send_response_only(status)
        length = str(len(data))
        for name, value in headers.items():
            if name.lower() != "content-length":
                self.send_header(name, value)
            else:
                length = value
        self.send_header("Content-Length", length)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data[: len(data) // 2] if cut else data)
        if cut:
            self.close_connection = True

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _serve  # noqa: N815


@dataclass
class Store:
    """The server, as the environment's variables name it to clients.

    Attributes:
        endpoint: of the proxy.
        faults: what the proxy does.
    """

    endpoint: str
    faults: Faults

    def address(self, prefix: str) -> str:
        return f"s3://{BUCKET}/{prefix}"


def environment(endpoint: str) -> dict[str, str]:
    """What tells a client of S3 where the server is."""
    return {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "eu-central-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_MAX_ATTEMPTS": "1",
    }


@contextmanager
def serving() -> Iterator[Store]:
    """A server with one empty bucket, and the proxy in front."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    connection = http.client.HTTPConnection(host, port)
    signed = {"Authorization": "AWS4-HMAC-SHA256 Credential=test/x/us-east-1/s3/x"}
    connection.request("PUT", f"/{BUCKET}", headers=signed)
    assert connection.getresponse().status == 200
    faults = Faults()
    handler = type("Proxy", (_Proxy,), {"faults": faults, "behind": (host, port)})
    proxy = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    proxy.daemon_threads = True
    threading.Thread(target=proxy.serve_forever, daemon=True).start()
    try:
        yield Store(f"http://127.0.0.1:{proxy.server_port}", faults)
    finally:
        proxy.shutdown()
        server.stop()
