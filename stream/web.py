"""HTTP on every worker: probes, metrics, look-ups, audiences, a page and, embedded, events.

Promise: the probes answer from the first moment, also during recovery. A look-up is answered by the
user's owner, here or one hop away, or refused with 503 and Retry-After; never with stale state and
never with an empty answer for a user owned elsewhere. An audience is gathered from all owners in
the same way, page by page; a page that one of them cannot give now is refused whole. Errors are
JSON, ``{error, detail}``. Nothing that is logged or counted holds a path, a body or a user id.

`stream/schemas/openapi.json` describes every route and answer.

Boundary: everything it says comes from a `Worker` and the metrics. It knows no Faust or Kafka and
stores nothing.
"""

import asyncio
import errno
import logging
import time
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from contextlib import asynccontextmanager
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

from stream import data, live, schemas
from stream.audience import MOST, PAGE, Cursor, UnknownCursorError, cursor_of
from stream.errors import SettingError
from stream.live import Live, LostError
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

# After so long a page of an audience ends where it is, with a cursor.
_PAGE_S = 2.0
_MAX_USER_ID = 128

# A watcher that takes nothing for so long is dropped; a worker that says nothing, given up.
_SLOW_S = 10.0
_SILENCE_S = 5.0
_LINE_BYTES = 1 << 20  # of another worker's events: a state with hundreds of partitions

_PAGE_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}
_PAGE_HEADERS = {
    "Cache-Control": "no-cache",
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self';"
        " img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


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


Part = tuple[list[dict[str, Any]], Cursor | None]
"""Users of an audience, ready for JSON, and where to go on; None: nowhere."""


class Worker(live.Source, Protocol):
    """What HTTP needs of the worker. Only ``audience`` and ``submit`` may take their time."""

    def ready(self) -> tuple[bool, str]:
        """Partitions are assigned and recovered; else why not."""

    def alive(self) -> tuple[bool, str]:
        """It gets anywhere; else why not."""

    def owner_of(self, user_id: str) -> Local | Remote | Moving:
        """Who answers for the user now."""

    @property
    def partition_count(self) -> int:
        """How many partitions there are, everybody's."""

    def owner(self, number: int) -> Local | Remote | Moving:
        """Who answers for the users of a partition now."""

    def values(self, tag: str) -> Collection[str] | None:
        """What somebody who has the tag can have, as text; None where there is no such tag."""

    async def audience(self, cursor: Cursor, limit: int) -> Part | None:
        """Some who have a tag, of one partition, right after ``owner`` said `Local`.

        None: the partition left us meanwhile.
        """

    def user(self, user_id: str) -> dict[str, Any] | None:
        """The user's tags and features, ready for JSON; None where no event was ever applied.

        Called right after ``owner_of`` said `Local`, with nothing in between.
        """

    def definitions(self) -> dict[str, Any]:
        """The tags in force and the version of their file, ready for JSON."""

    async def submit(self, events: Sequence[bytes]) -> Sequence[Refusal | None] | None:
        """Appends events, each one JSON text as received, durably: all of them or none.

        None: they are not taken here, the broker is not embedded. Otherwise one entry per event;
        where any is a refusal, nothing was appended.
        """


Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Stream(web.StreamResponse):
    """An answer that goes on; ``began`` is when it did."""

    began: float | None = None


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
        self.live = Live(worker, self._hear)
        self._files = {
            path.name: (path.read_bytes(), _PAGE_TYPES[path.suffix])
            for path in data.PAGE.iterdir()
            if path.suffix in _PAGE_TYPES
        }
        self._application = web.Application(
            middlewares=[self._measured], client_max_size=MAX_BODY_BYTES
        )
        for route, codes in (  # a GET answers HEAD too
            (web.get("/healthz", self._healthz), "2xx 5xx"),
            (web.get("/readyz", self._readyz), "2xx 5xx"),
            (web.get("/metrics", self._prometheus), "2xx"),
            (web.get("/users/{id}", self._user), "2xx 4xx 5xx"),
            (web.get("/tags", self._tags), "2xx"),
            (web.get("/tags/{name}/users", self._audience), "2xx 4xx 5xx"),
            (web.post("/events", self._events), "2xx 4xx"),
            (web.get("/openapi.json", self._openapi), "2xx"),
            (web.get("/", self._page), "2xx"),
            (web.get("/page/{file}", self._page), "2xx"),
            (web.get("/live", self._live, allow_head=False), "2xx"),
        ):
            self._application.router.add_routes([route])
            metrics.route(route.path, route.method, *codes.split())
        self._application.on_shutdown.append(self._end_live)
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
        answered = time.perf_counter()
        if isinstance(response, Stream) and response.began is not None:
            answered = response.began
        self._metrics.request(route, request.method, response.status, answered - began)
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
        return _json(self._worker.definitions())

    async def _openapi(self, request: web.Request) -> web.Response:
        return _raw_json(schemas.OPENAPI.read_bytes(), 200)

    # The page, and what it lives on

    async def _page(self, request: web.Request) -> web.Response:
        file = self._files.get(request.match_info.get("file", "page.html"))
        if file is None:
            raise web.HTTPNotFound
        body, kind = file
        return web.Response(body=body, content_type=kind, charset="utf-8", headers=_PAGE_HEADERS)

    async def _live(self, request: web.Request) -> web.StreamResponse:
        """Events until the watcher leaves, is too slow, or the worker stops."""
        if self.live.is_full:
            return _unavailable("crowded", f"{live.WATCHERS} watch already, or the worker stops")
        alone = HOP in request.headers
        response = Stream(headers={"Cache-Control": "no-store"})
        if alone:
            response.headers[HOP] = "owner"
        response.content_type, response.charset = "text/event-stream", "utf-8"
        watcher = self.live.join(alone=alone)
        try:
            await response.prepare(request)
            response.began = time.perf_counter()
            while not watcher.closed:
                message = await watcher.message()
                async with asyncio.timeout(_SLOW_S):
                    await response.write(message)
                await asyncio.sleep(live.PACE_S)
        except TimeoutError:
            if request.transport is not None:
                request.transport.abort()
        except ConnectionError:
            pass  # it left
        finally:
            await self.live.leave(watcher)
        return response

    async def _end_live(self, _: web.Application) -> None:
        await self.live.close()

    @asynccontextmanager
    async def _hear(self, url: str) -> AsyncIterator[AsyncIterator[tuple[str, bytes]]]:
        """Another worker's own events, for those who watch here."""
        timeout = aiohttp.ClientTimeout(sock_connect=HOP_TIMEOUT_S, sock_read=_SILENCE_S)
        try:
            async with self._session.get(
                URL(f"{url}/live", encoded=True),
                headers={HOP: "asked"},
                timeout=timeout,
                read_bufsize=_LINE_BYTES,
                allow_redirects=False,
            ) as answer:
                if answer.status != 200 or HOP not in answer.headers:
                    raise LostError(f"status {answer.status}")
                yield _events(answer.content)
        except (aiohttp.ClientError, TimeoutError) as error:
            raise LostError(type(error).__name__) from error

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
        answer = await self._ask(target)
        if isinstance(answer, web.Response):
            return answer
        status, body = answer
        return _raw_json(body, status)

    async def _ask(self, target: URL) -> tuple[int, bytes] | web.Response:
        """An owner's own answer, which is 200 or 404; the refusal where there is none."""
        try:
            async with self._session.get(
                target, headers={HOP: "asked"}, allow_redirects=False
            ) as answer:
                body = await answer.read()
        except (aiohttp.ClientError, TimeoutError):
            self._metrics.forward("failed")
            return _unavailable("owner_unreachable", "the owner did not answer in time")
        if answer.status not in (200, 404) or HOP not in answer.headers:
            self._metrics.forward("moved")
            return _unavailable("moving", "the partition is changing hands")
        self._metrics.forward("ok")
        return answer.status, body

    async def _audience(self, request: web.Request) -> web.Response:
        """A page of those who have a tag: of all owners one after the other, or refused whole."""
        tag, asked = request.match_info["name"], HOP in request.headers
        values = self._worker.values(tag)
        if values is None:
            return _error(404, "unknown_tag", "no such tag is defined")
        value, limit = request.query.get("value") or None, request.query.get("limit") or str(PAGE)
        if value is not None and value not in values:
            return _error(404, "unknown_value", f"value: allowed: {', '.join(values)}")
        if not (
            limit.isascii() and limit.isdigit() and len(limit) <= 4 and 1 <= int(limit) <= MOST
        ):
            return _error(400, "bad_limit", f"limit: allowed: 1 to {MOST}")
        try:
            cursor: Cursor | None = cursor_of(
                request.query.get("cursor", ""),
                tag=tag,
                value=value,
                partitions=self._worker.partition_count,
            )
        except UnknownCursorError:
            return _error(404, "unknown_cursor", "cursor: no page of this audience begins there")
        users: list[dict[str, Any]] = []
        until, first = time.monotonic() + _PAGE_S, cursor
        while cursor is not None and len(users) < int(limit):
            if cursor is not first and time.monotonic() > until:
                break
            part = await self._part(cursor, int(limit) - len(users), asked=asked)
            if isinstance(part, web.Response):
                if asked and cursor is not first:
                    break  # whoever asks goes on by himself
                return part
            users += part[0]
            cursor = part[1]
        page = {"tag": tag, "value": value, "users": users}
        answer = _json({**page, "cursor": None if cursor is None else cursor.text()})
        if asked:
            answer.headers[HOP] = "owner"
        return answer

    async def _part(self, cursor: Cursor, limit: int, *, asked: bool) -> Part | web.Response:
        """What an owner says, here or one hop away; the refusal where none does."""
        match self._worker.owner(cursor.partition):
            case Local():
                part = await self._worker.audience(cursor, limit)
                return part or _unavailable("moving", "a partition has just changed hands")
            case Remote(url) if not asked:
                return await self._forward_audience(url, cursor, limit)
            case Remote():
                return _unavailable("moving", "a partition belongs to another worker")
            case Moving(reason):
                return _unavailable("moving", reason)

    async def _forward_audience(self, url: str, cursor: Cursor, limit: int) -> Part | web.Response:
        query = {"value": cursor.value or "", "limit": str(limit), "cursor": cursor.text()}
        target = URL(f"{url}/tags/{quote(cursor.tag, safe='')}/users", encoded=True)
        answer = await self._ask(target.with_query(query))
        if isinstance(answer, web.Response):
            return answer
        status, body = answer
        try:
            page = _decode_page(body)
            following = page.cursor and cursor_of(
                page.cursor,
                tag=cursor.tag,
                value=cursor.value,
                partitions=self._worker.partition_count,
            )
        except ValueError:  # another version's, or of other definitions
            return _unavailable("moving", "a partition's owner answers in another way")
        return page.users, following or None

    async def _events(self, request: web.Request) -> web.Response:
        # A page of another site may make a browser post here; tools send no Origin.
        origin = request.headers.get("Origin")
        if origin is not None and origin.partition("://")[2] != request.host:
            return _error(403, "forbidden", "Origin: another site's")
        try:
            events = _split(await request.read())
        except (web.RequestPayloadError, ConnectionResetError):
            answer = _error(400, "bad_request", "not in its Content-Encoding, or cut off")
            answer.force_close()  # what follows on the connection cannot be read either
            return answer
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


async def _events(content: aiohttp.StreamReader) -> AsyncIterator[tuple[str, bytes]]:
    """Server-sent events of ours: one line of kind, one of data, an empty one."""
    kind = ""
    async for line in content:
        field, _, value = line.rstrip(b"\n").partition(b": ")
        if field == b"event":
            kind = value.decode()
        elif field == b"data":
            yield kind, value


class _Page(msgspec.Struct):
    """A page of an audience, as another worker gives it."""

    users: list[dict[str, Any]]
    cursor: str | None


_decode_page = msgspec.json.Decoder(_Page).decode


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
