"""A server that writes what a test says, byte by byte, and remembers what it was sent."""

import json
import socket
import threading
import time
from collections.abc import Callable, Sequence

Response = bytes | Callable[[bytes], bytes]
"""what is written, or what makes it of the request"""


def answer(
    body: bytes | str | dict,
    *,
    status: str = "200 OK",
    headers: Sequence[str] = (),
    kind: str = "application/json",
) -> bytes:
    """A whole response of HTTP/1.1."""
    if isinstance(body, dict):
        body = json.dumps(body)
    data = body.encode() if isinstance(body, str) else body
    lines = [
        f"HTTP/1.1 {status}",
        f"content-type: {kind}",
        f"content-length: {len(data)}",
        "connection: close",
        *headers,
    ]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + data


class RawServer:
    """Answers the first request with the first response, and so on; the last one goes on for ever. A context.

    Args:
        responses: what is written.
        drip: seconds between two bytes; 0 writes all at once.
    """

    def __init__(self, *responses: Response, drip: float = 0.0):
        self.responses, self.drip = responses, drip
        self.requests: list[bytes] = []
        self._closing = threading.Event()
        self._socket = socket.create_server(("127.0.0.1", 0))
        self._thread = threading.Thread(target=self._serve, daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._socket.getsockname()[1]}"

    def __enter__(self) -> "RawServer":
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._closing.set()
        socket.create_connection(self._socket.getsockname()).close()
        self._thread.join()
        self._socket.close()

    def _serve(self) -> None:
        while True:
            connection, _ = self._socket.accept()
            if self._closing.is_set():
                connection.close()
                return
            threading.Thread(target=self._one, args=(connection,), daemon=True).start()

    def _one(self, connection: socket.socket) -> None:
        with connection:
            request = _read(connection)
            response = self.responses[min(len(self.requests), len(self.responses) - 1)]
            self.requests.append(request)
            data = response(request) if callable(response) else response
            try:
                for start in range(0, len(data), 1 if self.drip else max(1, len(data))):
                    connection.sendall(data[start : start + (1 if self.drip else len(data))])
                    if self.drip and self._closing.wait(self.drip):
                        return
            except OSError:
                return


def _read(connection: socket.socket) -> bytes:
    """One request, whole."""
    connection.settimeout(10)
    found = b""
    while b"\r\n\r\n" not in found and not found.startswith(b"\x16"):  # of TLS, no more comes
        found += connection.recv(1 << 16)
    head, _, body = found.partition(b"\r\n\r\n")
    length = next(
        (
            int(line.split(b":")[1])
            for line in head.lower().split(b"\r\n")
            if line.startswith(b"content-length")
        ),
        0,
    )
    until = time.monotonic() + 10
    while len(body) < length and time.monotonic() < until:
        body += connection.recv(1 << 16)
    return head + b"\r\n\r\n" + body
