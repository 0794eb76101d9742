"""The real server on a free port, asked by a real client; the worker behind it is a fake."""

import asyncio
import gzip
import io
import logging
import math
import re
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

import aiohttp
import orjson
import pytest
from msgspec.structs import replace
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families
from yarl import URL

from stream import live, web
from stream.audience import Cursor
from stream.errors import SettingError
from stream.metrics import Metrics
from stream.web import HOP, MAX_BODY_BYTES, MAX_EVENTS, Local, Moving, Part, Remote, WebServer

ANNA = {"user_id": "anna", "tags": {"loyal": {"value": True, "since": "2025-04-30T00:00:00.000Z"}}}


@dataclass(frozen=True)
class Refused:
    code: str
    detail: str


@dataclass
class Worker:
    """Answers what the test says."""

    users: dict[str, dict[str, Any]] = field(default_factory=dict)
    owner_of_all: Local | Remote | Moving = field(default_factory=Local)
    owners: dict[int, Local | Remote | Moving] = field(default_factory=dict)
    holders: list[list[str]] = field(default_factory=lambda: [[], []])
    looks_at: int = 10
    leaves: bool = False
    name: str = "http://here"
    peers: list[str] = field(default_factory=list)
    readiness: tuple[bool, str] = (True, "ready")
    liveness: tuple[bool, str] = (True, "alive")
    embedded: bool = True
    submitted: list[bytes] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)

    def ready(self) -> tuple[bool, str]:
        return self.readiness

    def alive(self) -> tuple[bool, str]:
        return self.liveness

    def owner_of(self, user_id: str) -> Local | Remote | Moving:
        self.asked.append(user_id)
        return self.owner_of_all

    def user(self, user_id: str) -> dict[str, Any] | None:
        return self.users.get(user_id)

    @property
    def partition_count(self) -> int:
        return len(self.holders)

    def owner(self, number: int) -> Local | Remote | Moving:
        return self.owners.get(number, self.owner_of_all)

    def values(self, tag: str) -> list[str] | None:
        return {"loyal": ["true"], "tier": ["gold", "basic"]}.get(tag)

    async def audience(self, cursor: Cursor, limit: int) -> Part | None:
        if self.leaves:
            return None
        number, after = cursor.partition, cursor.after.decode()
        held = [user for user in self.holders[number] if user > after]
        some = held[: min(limit, self.looks_at)]
        users = [{"user_id": user, "value": True, "since": "2025"} for user in some]
        if len(held) > len(some):
            return users, replace(cursor, after=some[-1].encode())
        last = number + 1 == self.partition_count
        return users, None if last else replace(cursor, partition=number + 1, after=b"")

    def state(self) -> dict[str, Any]:
        return {"worker": self.name, "at": 1}

    def others(self) -> list[str]:
        return self.peers

    def knows(self, user_id: str) -> bool:
        return user_id in self.users

    def definitions(self) -> dict[str, Any]:
        return {"version": 4, "tags": [{"name": "loyal", "title": "高复购倾向"}]}

    async def submit(self, events: Sequence[bytes]) -> list[Refused | None] | None:
        if not self.embedded:
            return None
        refusals = [Refused("invalid", "amount") if b"-5" in event else None for event in events]
        if not any(refusals):
            self.submitted.extend(events)
        return refusals


@dataclass
class Site:
    """A worker, its server, and a client of it."""

    worker: Worker
    metrics: Metrics
    server: WebServer
    client: aiohttp.ClientSession

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.port}"

    async def ask(self, path: str, method: str = "GET", **options: Any) -> tuple[int, Any, Any]:
        """Status, content and headers."""
        url = URL(self.url + path, encoded=True)
        async with self.client.request(method, url, **options) as answer:
            assert answer.content_type == "application/json"
            return answer.status, orjson.loads(await answer.read()), answer.headers

    async def ask_for(self, user_id: str, **options: Any) -> tuple[int, Any, Any]:
        return await self.ask("/users/" + quote(user_id, safe=""), **options)

    def requests(self) -> dict[tuple[str, str, str], float]:
        """``{(route, method, code): how many}``, those that came."""
        return {
            (sample.labels["route"], sample.labels["method"], sample.labels["code"]): sample.value
            for family in text_string_to_metric_families(self.metrics.text().decode())
            for sample in family.samples
            if sample.name == "tagstream_http_request_seconds_count" and sample.value
        }

    def forwards(self) -> dict[str, float]:
        return {
            sample.labels["outcome"]: sample.value
            for family in text_string_to_metric_families(self.metrics.text().decode())
            for sample in family.samples
            if sample.name == "tagstream_http_forwards_total" and sample.value
        }


@asynccontextmanager
async def serving(worker: Worker, **options: Any) -> AsyncIterator[Site]:
    metrics = Metrics(CollectorRegistry(), types={"purchases": ["order"]}, partitions=8)
    server = WebServer(worker, metrics, host="127.0.0.1", port=0, **options)
    async with server, aiohttp.ClientSession() as client:
        yield Site(worker, metrics, server, client)


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    async with serving(Worker(users={"anna": ANNA})) as site:
        yield site


@pytest.fixture
async def two() -> AsyncIterator[tuple[Site, Site]]:
    """The first says that the second owns everybody; the second that it does."""
    async with AsyncExitStack() as stack:
        owner = await stack.enter_async_context(serving(Worker(users={"anna": ANNA})))
        asked = await stack.enter_async_context(serving(Worker(owner_of_all=Remote(owner.url))))
        yield asked, owner


# Probes


async def test_probes_answer_during_recovery(site):
    """Alive but not ready, and when to ask again."""
    site.worker.readiness = False, "recovering 3 of 8 partitions"
    status, body, headers = await site.ask("/readyz")
    assert status == 503
    assert body == {"error": "not_ready", "detail": "recovering 3 of 8 partitions"}
    assert int(headers["Retry-After"]) > 0
    assert (await site.ask("/healthz"))[:2] == (200, {"status": "alive"})

    site.worker.readiness = True, "ready"
    assert (await site.ask("/readyz"))[:2] == (200, {"status": "ready"})


async def test_a_worker_that_gets_nowhere_is_not_alive(site):
    """The one cause for which a restart helps."""
    site.worker.liveness = False, "records wait, none applied for 600 s: purchases[3]"
    status, body, _ = await site.ask("/healthz")
    assert (status, body["error"]) == (503, "no_progress")
    assert "purchases[3]" in body["detail"]


# Look-ups


async def test_a_user_of_this_worker(site):
    """What the worker says, as it says it."""
    status, body, headers = await site.ask_for("anna")
    assert (status, body) == (200, ANNA)
    assert headers["Cache-Control"] == "no-store"


async def test_an_unknown_user(site):
    """The answer repeats no id."""
    status, body, _ = await site.ask_for("berta")
    assert (status, body["error"]) == (404, "unknown_user")
    assert "berta" not in str(body)


async def test_features_without_a_value_are_null(site):
    """JSON has no infinity."""
    site.worker.users["anna"] = {"features": {"days_since_order": math.inf}}
    assert (await site.ask_for("anna"))[1] == {"features": {"days_since_order": None}}


@pytest.mark.parametrize("user_id", ["a/b", "100%", "%2F", "张三", "a b", "?q=1#x", "a+b", "\x00"])
async def test_any_text_can_be_an_id(two, user_id):
    """Percent-encoded, here and one hop away."""
    asked, owner = two
    owner.worker.users[user_id] = {"user_id": user_id}
    assert (await owner.ask_for(user_id))[:2] == (200, {"user_id": user_id})
    assert (await asked.ask_for(user_id))[:2] == (200, {"user_id": user_id})


@pytest.mark.parametrize("path", ["/users/%FF", "/users/%ED%A0%80", f"/users/{'x' * 129}"])
async def test_what_cannot_be_an_id_is_an_unknown_user(site, path):
    """Not text, or longer than an id may be."""
    status, body, _ = await site.ask(path)
    assert (status, body["error"]) == (404, "unknown_user")


async def test_a_user_on_the_move_is_unavailable_and_not_unknown(site):
    """An empty answer would say that nobody knows the user."""
    site.worker.owner_of_all = Moving("partition 3 is being recovered")
    status, body, headers = await site.ask_for("anna")
    assert status == 503
    assert body == {"error": "moving", "detail": "partition 3 is being recovered"}
    assert int(headers["Retry-After"]) > 0


# One hop


async def test_the_owner_is_asked_for_its_user(two):
    """Whoever was asked, the answer is the owner's: found or not."""
    asked, owner = two
    assert (await asked.ask_for("anna"))[:2] == (200, ANNA)
    status, body, _ = await asked.ask_for("berta")
    assert (status, body["error"]) == (404, "unknown_user")
    assert owner.worker.asked == ["anna", "berta"]
    assert asked.forwards() == {"ok": 2}


async def test_a_look_up_is_sent_on_once(two):
    """Two workers that each believe the other is the owner do not ask each other for ever."""
    asked, owner = two
    owner.worker.owner_of_all = Remote(asked.url)
    status, body, headers = await asked.ask_for("anna")
    assert (status, body["error"]) == (503, "moving")
    assert "Retry-After" in headers
    assert (asked.worker.asked, owner.worker.asked) == (["anna"], ["anna"])
    assert asked.forwards() == {"moved": 1}


async def test_an_owner_that_recovers_is_not_an_owner_that_knows_nobody(two):
    """Its 503 stays one."""
    asked, owner = two
    owner.worker.owner_of_all = Moving("partition 3 is being recovered")
    status, body, headers = await asked.ask_for("anna")
    assert (status, body["error"]) == (503, "moving")
    assert "Retry-After" in headers


async def test_a_404_of_something_else_at_the_owners_address_is_no_answer():
    """Whatever listens there now, only an owner says that a user is unknown."""

    async def other_program(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
        writer.close()

    async with await asyncio.start_server(other_program, "127.0.0.1", 0) as other:
        port = other.sockets[0].getsockname()[1]
        async with serving(Worker(owner_of_all=Remote(f"http://127.0.0.1:{port}"))) as site:
            status, body, _ = await site.ask_for("anna")
            assert (status, body["error"]) == (503, "moving")


async def test_an_owner_that_is_silent_costs_a_bounded_time():
    """It accepts and says nothing."""
    done = asyncio.Event()

    async def silence(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await done.wait()
        writer.close()

    async with await asyncio.start_server(silence, "127.0.0.1", 0) as owner:
        port = owner.sockets[0].getsockname()[1]
        worker = Worker(owner_of_all=Remote(f"http://127.0.0.1:{port}"))
        async with serving(worker, hop_timeout_s=0.05) as site:
            status, body, headers = await site.ask_for("anna")
        done.set()
    assert (status, body["error"]) == (503, "owner_unreachable")
    assert "Retry-After" in headers
    assert site.forwards() == {"failed": 1}


async def test_an_owner_that_is_gone_is_unavailable(unused_tcp_port):
    """Nothing listens there."""
    async with serving(Worker(owner_of_all=Remote(f"http://127.0.0.1:{unused_tcp_port}"))) as site:
        status, body, _ = await site.ask_for("anna")
        assert (status, body["error"]) == (503, "owner_unreachable")


# Audiences


async def everybody(site: Site, tag: str = "loyal", **query: str) -> list[str]:
    """Who has a tag, page after page."""
    users: list[str] = []
    cursor: str | None = ""
    while cursor is not None:
        path = URL(f"/tags/{tag}/users").with_query(cursor=cursor, **query)
        status, page, _ = await site.ask(str(path))
        assert status == 200
        users += [user["user_id"] for user in page["users"]]
        cursor = page["cursor"]
    return users


@pytest.fixture
async def three() -> AsyncIterator[list[Site]]:
    """Three workers that own two of six partitions each, and agree on it."""
    async with AsyncExitStack() as stack:
        workers = [Worker(holders=[[] for _ in range(6)]) for _ in range(3)]
        sites = [await stack.enter_async_context(serving(worker)) for worker in workers]
        for number in range(6):
            owner = sites[number // 2]
            owner.worker.holders[number] = [f"u{number}{letter}" for letter in "abcde"]
            for site in sites:
                site.worker.owners[number] = Local() if site is owner else Remote(owner.url)
        yield sites


@pytest.mark.parametrize("limit", ["1", "2", "3", "7", "1000"])
async def test_an_audience_is_gathered_from_all_workers(three, limit):
    """Everybody once, in whatever pages, whoever is asked."""
    expected = [f"u{number}{letter}" for number in range(6) for letter in "abcde"]
    for site in three:
        site.worker.looks_at = 3
        assert await everybody(site, limit=limit) == expected


async def test_a_page_has_what_was_asked_for(three):
    """Values are echoed; one hop gives the owner's consecutive partitions."""
    status, page, _ = await three[0].ask("/tags/loyal/users?value=true&cursor=")
    assert (status, page["tag"], page["value"], page["cursor"]) == (200, "loyal", "true", None)
    assert page["users"][0] == {"user_id": "u0a", "value": True, "since": "2025"}
    assert three[0].forwards() == {"ok": 2}


async def test_a_page_that_an_owner_cannot_give_is_refused_whole(three):
    """Never a part of an audience as the whole."""
    three[1].worker.owners[3] = Moving("the partition is being recovered")
    status, body, headers = await three[0].ask("/tags/loyal/users")
    assert (status, body["error"]) == (503, "moving")
    assert int(headers["Retry-After"]) > 0
    del three[1].worker.owners[3]
    three[1].worker.leaves = True
    assert (await three[1].ask("/tags/loyal/users"))[0] == 503
    assert (await three[0].ask("/tags/loyal/users"))[0] == 503
    await three[2].server.stop()
    three[1].worker.leaves = False
    status, body, _ = await three[0].ask("/tags/loyal/users")
    assert (status, body["error"]) == (503, "owner_unreachable")


async def test_an_owner_that_sends_on_what_it_is_asked_is_no_owner(three):
    """Two workers that each believe the other has it."""
    three[1].worker.owners[2] = Remote(three[0].url)
    status, body, _ = await three[0].ask("/tags/loyal/users")
    assert (status, body["error"]) == (503, "moving")


async def test_an_owner_with_other_definitions_gives_no_page(three, monkeypatch):
    """It does not know the tag: that nobody has it would be wrong."""
    monkeypatch.setattr(three[1].worker, "values", lambda tag: None)
    status, body, _ = await three[0].ask("/tags/loyal/users")
    assert (status, body["error"]) == (503, "moving")


@pytest.mark.parametrize(
    ("query", "error"),
    [
        ("value=no", "unknown_value"),
        ("limit=0", "bad_limit"),
        ("limit=1001", "bad_limit"),
        ("limit=ten", "bad_limit"),
        ("limit=%C2%B2", "bad_limit"),
        ("cursor=x", "unknown_cursor"),
        ("cursor=%E4%B8%AD", "unknown_cursor"),
        ("cursor=" + Cursor("tier", None, 0, b"").text(), "unknown_cursor"),
        ("cursor=" + Cursor("loyal", "true", 0, b"").text(), "unknown_cursor"),
        ("cursor=" + Cursor("loyal", None, 2, b"").text(), "unknown_cursor"),
        ("cursor=" + Cursor("loyal", None, -1, b"").text(), "unknown_cursor"),
    ],
)
async def test_a_parameter_that_cannot_be_used_is_named(site, query, error):
    """A cursor of another audience too."""
    status, body, _ = await site.ask(f"/tags/loyal/users?{query}")
    assert (status, body["error"]) == (400 if error == "bad_limit" else 404, error)
    assert body["detail"].startswith(query.partition("=")[0])


async def test_the_audience_of_no_tag(site):
    """Not an empty one."""
    status, body, _ = await site.ask("/tags/nothing/users")
    assert (status, body["error"]) == (404, "unknown_tag")


# The page and its events


async def test_the_page_and_its_files(site):
    """From this worker and no other place, and never from an old cache."""
    async with site.client.get(site.url + "/") as answer:
        page = await answer.text()
        assert (answer.status, answer.content_type) == (200, "text/html")
        assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
        assert answer.headers["Cache-Control"] == "no-cache"
    named = set(re.findall(r'(?:href|src)="(page/[^"]+)"', page))
    assert named == {"page/page.css", "page/page.js"}
    for name in [*named, "page/model.js", "page/text.js"]:
        async with site.client.get(f"{site.url}/{name}") as answer:
            text = await answer.text()
            assert (answer.status, answer.charset) == (200, "utf-8")
            assert answer.content_type in ("text/css", "text/javascript")
            assert "http://" not in text.replace("http://www.w3.org", "")
    status, body, _ = await site.ask("/page/..%2F__init__.py")
    assert (status, body["error"]) == (404, "not_found")


@asynccontextmanager
async def watching(site: Site) -> AsyncIterator[AsyncIterator[tuple[str, Any]]]:
    """Its events, as a browser hears them."""

    async def events(answer: aiohttp.ClientResponse) -> AsyncIterator[tuple[str, Any]]:
        kind = ""
        async for line in answer.content:
            field, _, value = line.decode().rstrip("\n").partition(": ")
            if field == "event":
                kind = value
            elif field == "data":
                yield kind, orjson.loads(value)

    async with asyncio.timeout(30), site.client.get(site.url + "/live") as answer:
        assert (answer.status, answer.content_type) == (200, "text/event-stream")
        assert answer.headers["Cache-Control"] == "no-store"
        yield events(answer)


async def heard(events: AsyncIterator[tuple[str, Any]], kind: str) -> Any:
    async for found, data in events:
        if found == kind:
            return data
    raise AssertionError(f"ended without {kind}")


async def test_a_watcher_hears_what_is_committed(site):
    """As it was said, and how the worker stands."""
    async with watching(site) as events:
        assert await heard(events, "state") == {"worker": "http://here", "at": 1}
        site.server.live.committed([(b"anna", b'{"tag":"loyal"}')], [(b"anna", b'{"at":2}')])
        assert await heard(events, "change") == {"tag": "loyal"}
        assert await heard(events, "warning") == {"at": 2}


async def test_a_watcher_hears_all_workers(two):
    """What one hears of the other goes no further."""
    asked, owner = two
    asked.worker.peers, owner.worker.peers = [owner.url], [asked.url]
    async with watching(asked) as here, watching(owner) as there:
        await heard(here, "state")
        await heard(there, "state")
        while not (asked.server.live._heard and owner.server.live._heard):
            await heard(here, "state")
        owner.server.live.committed([(b"anna", b'{"n":1}')], [])
        assert await heard(here, "change") == {"n": 1}
        assert await heard(there, "change") == {"n": 1}
        owner.server.live.committed([(b"anna", b'{"n":2}')], [])
        assert await heard(there, "change") == {"n": 2}
    async with asyncio.timeout(30):
        while asked.server.live._watchers or owner.server.live._watchers:
            await asyncio.sleep(0)


async def test_a_watcher_that_does_not_read_is_dropped(site, monkeypatch):
    """It costs its buffer and no more, and not for long."""
    monkeypatch.setattr(web, "_SLOW_S", 0.05)
    monkeypatch.setattr(live, "PACE_S", 0.0)
    reader, writer = await asyncio.open_connection("127.0.0.1", site.server.port, limit=1)
    writer.write(b"GET /live HTTP/1.1\r\nHost: x\r\n\r\n")
    async with asyncio.timeout(30):
        while not site.server.live._watchers:
            await asyncio.sleep(0)
        while site.server.live._watchers:
            rows = [(b"anna", b'"%s"' % (b"x" * 50_000))] * live.WAITING
            site.server.live.committed(rows, [])
            await asyncio.sleep(0.001)  # the socket's buffers fill
        while ("/live", "GET", "2xx") not in site.requests():
            await asyncio.sleep(0)
    writer.close()


async def test_there_is_no_room_for_any_number_of_watchers(site, monkeypatch):
    """Come again later."""
    monkeypatch.setattr(live, "WATCHERS", 0)
    status, body, headers = await site.ask("/live")
    assert (status, body["error"]) == (503, "crowded")
    assert "Retry-After" in headers


async def test_a_worker_that_stops_ends_what_goes_on():
    """At once: nobody waits for a watcher."""
    async with serving(Worker()) as site, watching(site) as events:
        await heard(events, "state")
        await site.server.stop()
        assert [event async for event in events if event[0] != "state"] == []


# Definitions and metrics


async def test_definitions(site):
    """As the worker has them."""
    assert (await site.ask("/tags"))[:2] == (
        200,
        {"version": 4, "tags": [{"name": "loyal", "title": "高复购倾向"}]},
    )


async def test_metrics_are_prometheus_text_and_count_by_template(site):
    """A path that is no route, like a method that nobody uses here, becomes no label."""
    await site.ask_for("anna")
    await site.ask_for("berta")
    await site.ask("/users/anna/secret")
    await site.ask("/tags", method="PROPFIND")
    async with site.client.get(site.url + "/metrics") as answer:
        assert answer.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
        text = await answer.text()
    assert list(text_string_to_metric_families(text))
    assert "anna" not in text
    assert site.requests() == {
        ("/users/{id}", "GET", "2xx"): 1,
        ("/users/{id}", "GET", "4xx"): 1,
        ("other", "GET", "4xx"): 1,
        ("other", "other", "4xx"): 1,
        ("/metrics", "GET", "2xx"): 1,
    }


# Events


async def test_one_event_or_an_array_is_taken_byte_for_byte(site):
    """What the worker decodes is what was sent: no number is read and written again."""
    one = b' {"amount": 12.50, "ts": 1}'
    assert (await site.ask("/events", "POST", data=one))[:2] == (202, {"accepted": 1})
    many = b'[{"amount": 12.50}, {"ts":1E3} ]'
    assert (await site.ask("/events", "POST", data=many))[:2] == (202, {"accepted": 2})
    assert site.worker.submitted == [one, b'{"amount": 12.50}', b'{"ts":1E3}']


async def test_each_bad_event_is_named_and_none_is_taken(site):
    """Correct and send all again: no half of a request was applied."""
    body = b'[{"amount": 1}, {"amount": -5}, {"amount": -50}]'
    status, answer, _ = await site.ask("/events", "POST", data=body)
    assert status == 400
    assert answer == {
        "error": "refused",
        "detail": "2 of 3 events cannot be used; none was taken",
        "events": [
            {"index": 1, "code": "invalid", "detail": "amount"},
            {"index": 2, "code": "invalid", "detail": "amount"},
        ],
    }
    assert site.worker.submitted == []


@pytest.mark.parametrize("body", [b"[", b"[1,]", b"[" * 100_000, b"[1] 2"])
async def test_an_array_that_is_no_json_is_malformed(site, body):
    """However deep it goes."""
    status, answer, _ = await site.ask("/events", "POST", data=body)
    assert (status, answer["error"]) == (400, "malformed")


async def test_bodies_and_arrays_have_a_bound(site):
    """A compressed one is measured as what it holds."""
    large = b" " * (MAX_BODY_BYTES + 1)
    status, answer, _ = await site.ask("/events", "POST", data=io.BytesIO(large))
    assert (status, answer["error"]) == (413, "request_entity_too_large")
    status, answer, _ = await site.ask(
        "/events", "POST", data=gzip.compress(large), headers={"Content-Encoding": "gzip"}
    )
    assert (status, answer["error"]) == (413, "request_entity_too_large")
    many = b"[" + b"1," * MAX_EVENTS + b"1]"
    status, answer, _ = await site.ask("/events", "POST", data=many)
    assert (status, answer["error"]) == (413, "too_many")


async def test_a_body_that_is_not_in_its_encoding_is_the_clients_fault(site):
    """It says gzip and is not."""
    status, answer, _ = await site.ask(
        "/events", "POST", data=b"{}", headers={"Content-Encoding": "gzip"}
    )
    assert (status, answer["error"]) == (400, "bad_request")


async def test_only_the_embedded_broker_takes_events(site):
    """The remedy is in the answer."""
    site.worker.embedded = False
    status, answer, _ = await site.ask("/events", "POST", data=b"{}")
    assert (status, answer["error"]) == (404, "not_embedded")
    assert "topics" in answer["detail"]


async def test_a_page_of_another_site_cannot_post_through_a_browser(site):
    """A browser says where a page is from; ours may."""
    for origin in ("https://evil.example", "null", "http://["):
        status, answer, _ = await site.ask(
            "/events", "POST", data=b"{}", headers={"Origin": origin}
        )
        assert (status, answer["error"]) == (403, "forbidden")
    assert site.worker.submitted == []
    status, _, _ = await site.ask("/events", "POST", data=b"{}", headers={"Origin": site.url})
    assert status == 202


async def test_a_client_that_leaves_in_the_middle_of_its_body_leaves_no_trace(site, caplog):
    """Nothing of it is taken, nothing is an error of ours."""
    _, writer = await asyncio.open_connection("127.0.0.1", site.server.port)
    writer.write(b"POST /events HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
    await writer.drain()
    writer.close()
    async with asyncio.timeout(30):
        while ("/events", "POST", "4xx") not in site.requests():
            await site.ask("/healthz")
    assert site.worker.submitted == []
    assert not caplog.records


# Errors


async def test_no_page_and_no_method_are_json_too(site):
    """With what is allowed."""
    status, body, _ = await site.ask("/nothing")
    assert (status, body) == (404, {"error": "not_found", "detail": "no such page"})
    status, body, headers = await site.ask("/tags", method="POST")
    assert (status, body["error"]) == (405, "method_not_allowed")
    assert headers["Allow"] == "GET,HEAD"


async def test_a_failing_answer_is_a_500_that_logs_where_and_not_who(site, caplog, monkeypatch):
    """An exception's message may hold the id that was asked for."""

    def user(user_id: str) -> None:
        raise KeyError(user_id)

    monkeypatch.setattr(site.worker, "user", user)
    status, body, _ = await site.ask_for("anna")
    assert (status, body["error"]) == (500, "internal")
    assert "anna" not in str(body)
    (record,) = caplog.records
    assert "/users/{id}: KeyError" in record.getMessage()
    assert "in user" in record.getMessage()
    assert "anna" not in caplog.text
    assert (await site.ask("/healthz"))[0] == 200


async def test_nothing_is_logged_of_what_was_asked(site, caplog):
    """Not even where the request cannot be parsed, which aiohttp quotes."""
    caplog.set_level(logging.DEBUG)
    await site.ask_for("anna")
    await site.ask_for("anna", headers={HOP: "asked"})
    reader, writer = await asyncio.open_connection("127.0.0.1", site.server.port)
    writer.write(b"GET /users/anna HTTP/x.y\r\n\r\n")
    assert b"400" in await reader.readline()
    writer.close()
    assert "anna" not in caplog.text


# Life cycle


async def test_a_port_that_is_taken_is_one_line_that_names_the_setting(site):
    """And nothing is left open."""
    server = WebServer(Worker(), site.metrics, host="127.0.0.1", port=site.server.port)
    with pytest.raises(SettingError) as raised:
        await server.start()
    message = str(raised.value)
    assert "TAGSTREAM_WEB_PORT" in message
    assert str(site.server.port) in message
    assert "\n" not in message


async def test_a_port_for_metrics_has_metrics_and_nothing_else():
    """Who may scrape it cannot ask it for a user; the other port goes on having them too."""
    async with serving(Worker(users={"anna": ANNA}), metrics_port=0) as site:
        assert site.server.metrics_port not in (0, site.server.port)
        scraped = f"http://127.0.0.1:{site.server.metrics_port}"
        async with site.client.get(f"{scraped}/metrics") as answer:
            assert answer.status == 200
            assert "tagstream_http_request_seconds_count" in await answer.text()
        for path in ("/users/anna", "/tags", "/healthz", "/events"):
            async with site.client.get(scraped + path) as answer:
                assert (answer.status, answer.content_type) == (404, "application/json")
        assert (await site.ask_for("anna"))[0] == 200
        assert site.worker.asked == ["anna"]


async def test_a_port_for_metrics_that_is_taken_is_one_line_that_names_the_setting(site):
    """Not the other port's."""
    taken = site.server.port
    server = WebServer(Worker(), site.metrics, host="127.0.0.1", port=0, metrics_port=taken)
    with pytest.raises(SettingError, match=f"TAGSTREAM_METRICS_PORT holds '{taken}'"):
        await server.start()


async def test_a_host_that_is_not_ours_is_one_line_that_names_the_setting(site):
    """An address of the documentation's network is nobody's."""
    server = WebServer(Worker(), site.metrics, host="192.0.2.1", port=0)
    with pytest.raises(SettingError, match=r"TAGSTREAM_WEB_HOST holds '192\.0\.2\.1'"):
        await server.start()


async def test_after_its_stop_the_port_is_free():
    """Also with a client that keeps its connection."""
    async with serving(Worker()) as site:
        await site.ask("/healthz")
        port = site.server.port
        await site.server.stop()
        again = WebServer(Worker(), site.metrics, host="127.0.0.1", port=port)
        async with again:
            assert again.port == port
