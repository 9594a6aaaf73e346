"""A stand-in of NDIF on the loopback address: its protocol here, the work in another process.

```
client                                 Service (this process)            worker.py (another)
GET /subscribe, upgrade           ->   websocket: {"session_id": ...}
POST /request: envelope, payload  ->   RECEIVED                     ->   deserialize, execute
                                  <-   websocket: RUNNING, COMPLETED <-  the saved values, a file
GET /result/ID                    ->   the file
```

It speaks what the client of nnsight 0.8.1 (`intervention/backends/remote.py`) does; the worker runs
the payload against a model that it loads itself by the key in the envelope, and cannot import
vlm_lens.
"""

from __future__ import annotations

import base64
import email
import hashlib
import json
import queue
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Self

_MAGIC = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # of RFC 6455


class Service:
    """A context in which the service runs.

    Args:
        folder: For requests and results.

    Attributes:
        address: Where it is.
        requests: The envelope of each request so far, and its headers.
    """

    def __init__(self, folder: Path):
        self.folder, self.requests = folder, []
        self.sessions: dict[str, queue.Queue] = {}
        handler = type("Handler", (_Handler,), {"service": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.address = f"http://127.0.0.1:{self._server.server_port}"
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        worker = Path(__file__).with_name("worker.py")
        self._worker = subprocess.Popen(
            [sys.executable, str(worker)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            text=True, cwd=self.folder, env={"PATH": "", "HF_HUB_OFFLINE": "1", "HOME": "/nowhere"},
        )  # fmt: skip
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._worker.stdin.close()
        self._worker.wait(30)

    def work(self, number: int, envelope: dict, blob: bytes) -> None:
        """Has the worker run a request, and tells the session how it goes."""
        say = self.sessions[envelope["session_id"]].put
        job = {"id": f"job-{number}", "meta": None}
        say({**job, "status": "RUNNING", "description": "", "data": None})
        request = self.folder / f"request-{number}"
        request.write_bytes(blob)
        order = {**envelope, "request": str(request), "result": str(self.folder / f"{number}")}
        with self._lock:
            self._worker.stdin.write(json.dumps(order) + "\n")
            self._worker.stdin.flush()
            line = self._worker.stdout.readline()
        error = json.loads(line)["error"] if line else "the worker has died"
        data = None if error else f"{self.address}/result/{number}"
        status = "ERROR" if error else "COMPLETED"
        say({**job, "status": status, "description": error or "", "data": data})


class _Handler(BaseHTTPRequestHandler):
    service: Service
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        if self.path == "/subscribe":
            self._subscribe()
            return
        number = int(self.path.removeprefix("/result/"))
        self._send("application/octet-stream", (self.service.folder / str(number)).read_bytes())

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        head = f"Content-Type: {self.headers['Content-Type']}\r\n\r\n".encode()
        parts = {
            part.get_param("name", header="content-disposition"): part.get_payload(decode=True)
            for part in email.message_from_bytes(head + body).get_payload()
        }
        envelope = json.loads(parts["data"])
        number = len(self.service.requests)
        self.service.requests.append((envelope, dict(self.headers), parts["blob"]))
        work = (number, envelope, parts["blob"])
        threading.Thread(target=self.service.work, args=work, daemon=True).start()
        received = {"id": f"job-{number}", "status": "RECEIVED", "description": ""}
        self._send("application/json", json.dumps(received).encode())

    def _send(self, kind: str, content: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _subscribe(self) -> None:
        accepted = hashlib.sha1((self.headers["Sec-WebSocket-Key"] + _MAGIC).encode()).digest()
        self.send_response(101)
        self.send_header("Upgrade", "websocket")
        self.send_header("Connection", "Upgrade")
        self.send_header("Sec-WebSocket-Accept", base64.b64encode(accepted).decode())
        self.end_headers()
        session = f"session-{len(self.service.sessions)}"
        messages = self.service.sessions[session] = queue.Queue()
        self._frame({"session_id": session})
        while True:
            message = messages.get()
            self._frame(message)
            if message["status"] in ("COMPLETED", "ERROR"):
                break
        self.close_connection = True

    def _frame(self, message: dict) -> None:
        data = json.dumps(message).encode()
        size = (
            bytes([len(data)]) if len(data) < 126 else bytes([126]) + len(data).to_bytes(2, "big")
        )
        self.wfile.write(b"\x81" + size + data)
        self.wfile.flush()
