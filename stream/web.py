"""HTTP on every worker: probes, metrics, look-ups, definitions and, embedded, events.

Promise: the probes answer from the first moment, also during recovery. A look-up is answered by the
user's owner, here or one hop away, or refused with 503 and Retry-After; never with stale state and
never with an empty answer for a user owned elsewhere. Errors are JSON, ``{error, detail}``. Nothing
that is logged or counted holds a path, a body or a user id.

Boundary: everything it says comes from a `Worker` and the metrics. It knows no Faust or Kafka and
stores nothing.
"""

import errno
import logging
import time
import traceback
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Protocol
from urllib.parse import quote

import aiohttp
import msgspec
import orjson
from aiohttp import web
from mode import Service
from yarl import URL

from stream.errors import SettingError
from stream.metrics import OTHER, Metrics

log = logging.getLogger(__name__)

MAX_BODY_BYTES = 4 * 2**20
MAX_EVENTS = 10_000
RETRY_AFTER_S = 2
HOP = "X-Tagstream-Hop"
"""On a request: it was sent on and must not be again. On its answer: the owner gave it."""

# A hop is for one record in memory or on the owner's disk: what takes longer will not come.
HOP_TIMEOUT_S = 2.0
_SHUTDOWN_TIMEOUT_S = 3.0
_MAX_USER_ID = 128


@dataclass(frozen=True, slots=True)
class Local:
    """This worker owns the user, and the partition is open."""


@dataclass(frozen=True, slots=True)
class Remote:
    """Another worker does; ``url`` is where it listens, ``http://host:port``."""

    url: str


@dataclass(frozen=True, slots=True)
class Moving:
    """Nobody can answer for now; ``reason`` says why, without a user id."""

    reason: str


class Refusal(Protocol):
    """Why an event is not taken: README's code, and a detail that names the field."""

    @property
    def code(self) -> str: ...
    @property
    def detail(self) -> str: ...


class Worker(Protocol):
    """What HTTP needs of the worker. Only ``submit`` may take its time."""

    def ready(self) -> tuple[bool, str]:
        """Partitions are assigned and recovered; else why not."""

    def alive(self) -> tuple[bool, str]:
        """It gets anywhere; else why not."""

    def owner_of(self, user_id: str) -> Local | Remote | Moving:
        """Who answers for the user now."""

    def user(self, user_id: str) -> dict[str, Any] | None:
        """The user's tags and features, ready for JSON; None where no event was ever applied.

        Called right after ``owner_of`` said `Local`, with nothing in between.
        """

    def definitions(self) -> list[dict[str, Any]]:
        """The tags in force, ready for JSON."""

    async def submit(self, events: Sequence[bytes]) -> Sequence[Refusal | None] | None:
        """Appends events, each one JSON text as received, durably: all of them or none.

        None: they are not taken here, the broker is not embedded. Otherwise one entry per event;
        where any is a refusal, nothing was appended.
        """


Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class WebServer(Service):
    """Serves HTTP from ``start`` to ``stop``: to be started first and stopped last.

    ``port`` 0 takes any free one; the attribute then says which. With ``metrics_port`` the
    metrics are served there too, and nothing else: network policies know ports, not paths.
    Another worker has ``hop_timeout_s`` to answer.

    Raises:
        SettingError: (on start) host and port cannot be listened on.
    """

    def __init__(
        self,
        worker: Worker,
        metrics: Metrics,
        *,
        host: str,
        port: int,
        metrics_port: int | None = None,
        hop_timeout_s: float = HOP_TIMEOUT_S,
    ) -> None:
        super().__init__()
        self.host = host
        self.port = port
        self.metrics_port = metrics_port
        self._worker = worker
        self._metrics = metrics
        self._hop_timeout = aiohttp.ClientTimeout(total=hop_timeout_s)
        self._application = web.Application(
            middlewares=[self._measured], client_max_size=MAX_BODY_BYTES
        )
        for route, codes in (  # a GET answers HEAD too
            (web.get("/healthz", self._healthz), "2xx 5xx"),
            (web.get("/readyz", self._readyz), "2xx 5xx"),
            (web.get("/metrics", self._prometheus), "2xx"),
            (web.get("/users/{id}", self._user), "2xx 4xx 5xx"),
            (web.get("/tags", self._tags), "2xx"),
            (web.post("/events", self._events), "2xx 4xx"),
        ):
            self._application.router.add_routes([route])
            metrics.route(route.path, route.method, *codes.split())
        self._scraped = web.Application(middlewares=[self._measured])
        self._scraped.router.add_get("/metrics", self._prometheus)

    async def on_start(self) -> None:
        """Listens."""
        self._session = await self.add_async_context(
            aiohttp.ClientSession(timeout=self._hop_timeout, cookie_jar=aiohttp.DummyCookieJar())
        )
        self.port = await self._listen(self._application, self.port, "TAGSTREAM_WEB_PORT")
        if self.metrics_port is not None:
            self.metrics_port = await self._listen(
                self._scraped, self.metrics_port, "TAGSTREAM_METRICS_PORT"
            )

    async def _listen(self, application: web.Application, port: int, variable: str) -> int:
        """Serve ``application``; returns the port, which ``variable`` holds."""
        runner = web.AppRunner(
            application,
            access_log=None,
            logger=_protocol_log,
            shutdown_timeout=_SHUTDOWN_TIMEOUT_S,
        )
        self.async_exit_stack.push_async_callback(runner.cleanup)
        await runner.setup()
        try:
            await web.TCPSite(runner, self.host, port).start()
        except OSError as error:
            raise self._cannot_listen(error, port, variable) from error
        taken: int = runner.addresses[0][1]
        return taken

    def _cannot_listen(self, error: OSError, port: int, variable: str) -> SettingError:
        if error.errno == errno.EADDRINUSE:
            return SettingError(
                f"{variable} holds '{port}', a port that is taken on {self.host}; "
                "allowed: a free one, or 0 for any"
            )
        if error.errno == errno.EACCES:
            return SettingError(
                f"{variable} holds '{port}', a port that this user may not open; "
                "allowed: 1024 to 65535, or 0 for any"
            )
        return SettingError(
            f"TAGSTREAM_WEB_HOST holds '{self.host}', which cannot be listened on; "
            "allowed: an address of this machine, or 0.0.0.0 for all"
        )

    @web.middleware
    async def _measured(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Times every request under its route's template and makes every error JSON."""
        began = time.perf_counter()
        resource = request.match_info.route.resource
        route = OTHER if resource is None else resource.canonical
        try:
            response = await handler(request)
        except web.HTTPException as error:
            response = _http_error(error)
        except Exception as error:  # noqa: BLE001  # a failed answer is the client's, not the worker's end
            # The message of an exception may quote what was asked for: type and place do not.
            place = "".join(traceback.format_tb(error.__traceback__))
            log.error("%s %s: %s\n%s", request.method, route, type(error).__name__, place)
            response = _error(500, "internal", "the answer failed; the worker's log says where")
        self._metrics.request(route, request.method, response.status, time.perf_counter() - began)
        return response

    async def _healthz(self, request: web.Request) -> web.Response:
        alive, reason = self._worker.alive()
        return _json({"status": "alive"}) if alive else _error(503, "no_progress", reason)

    async def _readyz(self, request: web.Request) -> web.Response:
        ready, reason = self._worker.ready()
        return _json({"status": "ready"}) if ready else _unavailable("not_ready", reason)

    async def _prometheus(self, request: web.Request) -> web.Response:
        return web.Response(
            body=self._metrics.text(),
            headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"},
        )

    async def _tags(self, request: web.Request) -> web.Response:
        return _json({"tags": self._worker.definitions()})

    async def _user(self, request: web.Request) -> web.Response:
        user_id = request.match_info["id"]
        if len(user_id) > _MAX_USER_ID or not _encodable(user_id):
            return _unknown_user()
        match self._worker.owner_of(user_id):
            case Local():
                user = self._worker.user(user_id)
                answer = _unknown_user() if user is None else _json(user)
                if HOP in request.headers:
                    answer.headers[HOP] = "owner"
                return answer
            case Remote(url) if HOP not in request.headers:
                return await self._forward(url, user_id)
            case Remote():
                return _unavailable("moving", "the user's partition belongs to another worker")
            case Moving(reason):
                return _unavailable("moving", reason)

    async def _forward(self, url: str, user_id: str) -> web.Response:
        """Asks the owner once; an answer that is not the owner's own is none."""
        target = URL(f"{url}/users/{quote(user_id, safe='')}", encoded=True)
        try:
            async with self._session.get(
                target, headers={HOP: "asked"}, allow_redirects=False
            ) as answer:
                body = await answer.read()
        except (aiohttp.ClientError, TimeoutError):
            self._metrics.forward("failed")
            return _unavailable("owner_unreachable", "the user's owner did not answer in time")
        if answer.status not in (200, 404) or HOP not in answer.headers:
            self._metrics.forward("moved")
            return _unavailable("moving", "the user's partition is changing hands")
        self._metrics.forward("ok")
        return _raw_json(body, answer.status)

    async def _events(self, request: web.Request) -> web.Response:
        # A page of another site may make a browser post here; tools send no Origin.
        origin = request.headers.get("Origin")
        if origin is not None and origin.partition("://")[2] != request.host:
            return _error(403, "forbidden", "Origin: another site's")
        try:
            events = _split(await request.read())
        except (web.RequestPayloadError, ConnectionResetError):
            return _error(400, "bad_request", "the body is not in its Content-Encoding, or cut off")
        except (msgspec.DecodeError, RecursionError):
            return _error(400, "malformed", "the body is neither a JSON object nor an array")
        if len(events) > MAX_EVENTS:
            return _error(413, "too_many", f"{len(events)} events, at most {MAX_EVENTS} at once")
        refusals = await self._worker.submit(events)
        if refusals is None:
            return _error(
                404, "not_embedded", "only the embedded broker takes events here; use its topics"
            )
        bad = [
            {"index": index, "code": refusal.code, "detail": refusal.detail}
            for index, refusal in enumerate(refusals)
            if refusal is not None
        ]
        if bad:
            detail = f"{len(bad)} of {len(events)} events cannot be used; none was taken"
            return _error(400, "refused", detail, events=bad)
        return _json({"accepted": len(events)}, 202)


def _split(body: bytes) -> list[bytes]:
    """The JSON texts of an array's items, or the body itself where it is none."""
    if body.lstrip()[:1] != b"[":
        return [body]
    return [bytes(item) for item in msgspec.json.decode(body, type=list[msgspec.Raw])]


def _encodable(user_id: str) -> bool:
    """Half a surrogate pair is no text, so nobody has it for an id."""
    try:
        user_id.encode()
    except UnicodeEncodeError:
        return False
    return True


def _raw_json(body: bytes, status: int) -> web.Response:
    headers = {"Cache-Control": "no-store"}
    return web.Response(body=body, status=status, content_type="application/json", headers=headers)


def _json(content: dict[str, Any], status: int = 200) -> web.Response:
    return _raw_json(orjson.dumps(content), status)


def _error(status: int, error: str, detail: str, **more: Any) -> web.Response:
    return _json({"error": error, "detail": detail, **more}, status)


def _unavailable(error: str, detail: str) -> web.Response:
    response = _error(503, error, detail)
    response.headers["Retry-After"] = str(RETRY_AFTER_S)
    return response


def _unknown_user() -> web.Response:
    return _error(404, "unknown_user", "no event of this user was ever applied")


def _http_error(error: web.HTTPException) -> web.Response:
    """What aiohttp raises: no route, a method that is not allowed, a body that is too large."""
    details = {
        404: "no such page",
        405: f"allowed: {error.headers.get('Allow')}",
        413: f"the body may have {MAX_BODY_BYTES} bytes",
    }
    name = HTTPStatus(error.status).name.lower()
    response = _error(error.status, name, details.get(error.status, error.reason))
    if "Allow" in error.headers:
        response.headers["Allow"] = error.headers["Allow"]
    return response


def _without_cause(record: logging.LogRecord) -> bool:
    """aiohttp logs a request it cannot parse with the exception, which quotes it."""
    record.exc_info = None
    return True


_protocol_log = logging.getLogger(f"{__name__}.protocol")
_protocol_log.addFilter(_without_cause)
