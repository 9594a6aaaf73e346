"""The explorer served: to this machine only, and to no page but its own.

The server listens on the loopback address. A request whose `Host` is another name (a page that has
bound its own name to this address) or whose `Origin` is another page is refused before it is read.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from vlm_lens.errors import VLMLensError

if TYPE_CHECKING:
    from vlm_lens.explorer.service import Service

ADDRESS = "127.0.0.1"
_MOST_BYTES = 40_000_000  # of a request: a large photo in base64


class ServeError(VLMLensError):
    """A server that cannot be started."""


class OwnPagesOnly:
    """Refuses requests of other hosts and origins.

    Args:
        app: What answers the others.
        port: The port that is listened on.
    """

    def __init__(self, app: ASGIApp, port: int):
        self.app = app
        self.hosts = {f"{name}:{port}" for name in (ADDRESS, "localhost")}
        self.origins = {f"http://{host}" for host in self.hosts}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request."""
        if scope["type"] == "http":
            named: dict[str, list[str]] = {}
            for key, value in scope["headers"]:
                named.setdefault(key.decode("latin-1"), []).append(value.decode("latin-1"))
            wrong = self._wrong(named)
            if wrong:
                await _error(wrong, 403)(scope, receive, send)
                return
        await self.app(scope, receive, send)

    def _wrong(self, named: Mapping[str, list[str]]) -> str:
        hosts, origins = named.get("host", []), named.get("origin", [])
        if len(hosts) != 1 or hosts[0] not in self.hosts:
            return f"This explorer answers {' and '.join(sorted(self.hosts))} only."
        if any(origin not in self.origins for origin in origins):
            return "This explorer answers its own page only, and the request is of another."
        return ""


def application(service: Service, port: int) -> ASGIApp:
    """The application that serves a page and what it asks for."""

    async def page(request: Request) -> Response:
        return HTMLResponse(await run_in_threadpool(service.page))

    routes = [Route("/", page)]
    for name in ("scene", "prompt", "written", "position"):
        routes.append(Route(f"/{name}", _answers(getattr(service, name)), methods=["POST"]))
    app = Starlette(
        routes=routes, exception_handlers={HTTPException: _not_served, Exception: _failed}
    )
    return OwnPagesOnly(app, port)


def listen(port: int) -> socket.socket:
    """A socket on the loopback address.

    Args:
        port: The port; 0 for any that is free.

    Raises:
        ServeError: The port is taken, or not allowed.
    """
    listening = socket.socket()
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((ADDRESS, port))
        listening.listen()  # who comes before the server runs waits for it
    except (OSError, OverflowError) as error:
        listening.close()
        raise ServeError(f"Port {port} cannot be listened on ({error}): choose another.") from error
    return listening


def serve(service: Service, listening: socket.socket) -> None:
    """Serves until interrupted."""
    import uvicorn

    app = application(service, listening.getsockname()[1])
    config = uvicorn.Config(app, log_level="warning", access_log=False, server_header=False)
    uvicorn.Server(config).run(sockets=[listening])


def _answers(compute: Callable[[Mapping[str, Any]], dict[str, Any]]) -> Callable:
    async def answer(request: Request) -> Response:
        kind = request.headers.get("content-type", "").partition(";")[0].strip()
        if kind != "application/json":
            return _error("A request is JSON, with the header Content-Type: application/json.", 415)
        body = bytearray()
        async for part in request.stream():
            body += part
            if len(body) > _MOST_BYTES:
                return _error(f"A request has at most {_MOST_BYTES:,} bytes.", 413)
        try:
            asked = json.loads(body)
        except (ValueError, RecursionError) as error:
            return _error(f"This is not JSON: {error}", 400)
        if not isinstance(asked, dict):
            return _error('A request is a JSON object, such as {"scene": "Peru"}.', 400)
        try:
            return JSONResponse(await run_in_threadpool(compute, asked))
        except VLMLensError as error:
            return _error(str(error), 400)

    return answer


async def _not_served(request: Request, error: Exception) -> Response:
    status = getattr(error, "status_code", 500)
    return _error(f"{request.method} {request.url.path} is not served here.", status)


async def _failed(request: Request, error: Exception) -> Response:
    """What went wrong in the model, to the page; the server shows the traceback."""
    return _error(f"The run failed: {type(error).__name__}: {error}", 500)


def _error(text: str, status: int) -> JSONResponse:
    return JSONResponse({"error": text}, status)
