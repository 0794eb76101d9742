"""The document says what there is and what is answered: every route, every status, every schema."""

from collections.abc import AsyncIterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import aiohttp
import orjson
import pytest
from jsonschema import Draft202012Validator
from yarl import URL

from stream import data, live
from stream.audience import Cursor
from stream.describe import describe_tag
from stream.domains import discover
from stream.rules import load
from stream.schemas import OPENAPI
from stream.web import MAX_EVENTS, Moving, Remote
from tests.test_web import Site, Worker, serving

DOCUMENT: dict[str, Any] = orjson.loads(OPENAPI.read_bytes())
ANNA = {
    "user_id": "anna",
    "tags": {"loyal": {"value": True, "since": "2025-04-30T00:00:00.000+08:00"}},
    "features": {"purchases": {"orders_30d": 1, "days_since_order": None, "region": "east"}},
}


class Asked:
    """Asks, holds every answer against the document, and remembers which it saw."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.seen: set[tuple[str, str, str]] = set()

    async def __call__(
        self, route: str, path: str, status: int, method: str = "get", **options: Any
    ) -> None:
        url = URL(self.site.url + path, encoded=True)
        async with self.site.client.request(method, url, **options) as answer:
            assert answer.status == status
            described = DOCUMENT["paths"][route][method]["responses"][str(status)]
            content = described["content"][answer.content_type]
            for name, header in described.get("headers", {}).items():
                schema = DOCUMENT["components"]["headers"][header["$ref"].rpartition("/")[2]]
                holds(int(answer.headers[name]), schema["schema"])
            if answer.content_type == "application/json":
                holds(orjson.loads(await answer.read()), content["schema"])
            self.seen.add((route, method, str(status)))


def holds(content: Any, schema: dict[str, Any]) -> None:
    validator = Draft202012Validator({**schema, "components": DOCUMENT["components"]})
    validator.validate(content)


@pytest.fixture
async def asked() -> AsyncIterator[Asked]:
    async with serving(Worker(users={"anna": ANNA}, holders=[["anna"], ["berta"]])) as site:
        yield Asked(site)


async def test_every_route_is_described_and_nothing_else(asked: Asked):
    """With the methods that it has."""
    served = {
        (route.resource.canonical, route.method.lower())
        for route in asked.site.server._application.router.routes()
        if route.resource is not None and route.method != "HEAD"
    }
    assert served == {
        (path, method) for path, methods in DOCUMENT["paths"].items() for method in methods
    }
    (file,) = DOCUMENT["paths"]["/page/{file}"]["get"]["parameters"]
    assert sorted(file["schema"]["enum"]) == sorted(path.name for path in data.PAGE.iterdir())
    assert DOCUMENT["info"]["version"] == version("tagstream")


async def test_every_status_is_answered_as_described(
    asked: Asked, unused_tcp_port: int, monkeypatch: pytest.MonkeyPatch
):
    """Each at least once, and none that is not there."""
    worker, away = asked.site.worker, Moving("recovering")
    gone = Remote(f"http://127.0.0.1:{unused_tcp_port}")
    tags = [describe_tag(tag) for tag in load(data.TAGS, discover()).tags]
    monkeypatch.setattr(worker, "definitions", lambda: {"version": 1, "tags": tags})

    await asked("/users/{id}", "/users/anna", 200)
    await asked("/users/{id}", "/users/berta", 404)
    for worker.owner_of_all in (away, gone):
        await asked("/users/{id}", "/users/anna", 503)
        await asked("/tags/{name}/users", "/tags/loyal/users", 503)
    worker.owner_of_all = type(worker)().owner_of_all
    await asked("/tags", "/tags", 200)
    await asked("/tags/{name}/users", "/tags/loyal/users?value=true&limit=1", 200)
    await asked("/tags/{name}/users", "/tags/loyal/users?limit=0", 400)
    other = Cursor("tier", None, 0, b"").text()
    for path in ("nothing/users", "loyal/users?value=gold", f"loyal/users?cursor={other}"):
        await asked("/tags/{name}/users", f"/tags/{path}", 404)

    post = ("/events", "/events")
    await asked(*post, 202, "post", data=b"{}")
    await asked(*post, 400, "post", data=b'{"amount": -5}')
    await asked(*post, 400, "post", data=b"[")
    await asked(*post, 400, "post", data=b"{}", headers={"Content-Encoding": "gzip"})
    await asked(*post, 403, "post", data=b"{}", headers={"Origin": "http://elsewhere"})
    await asked(*post, 413, "post", data=b"[" + b"1," * MAX_EVENTS + b"1]")
    worker.embedded = False
    await asked(*post, 404, "post", data=b"{}")

    await asked("/healthz", "/healthz", 200)
    await asked("/readyz", "/readyz", 200)
    worker.liveness = worker.readiness = False, "no"
    await asked("/healthz", "/healthz", 503)
    await asked("/readyz", "/readyz", 503)
    for path in ("/metrics", "/openapi.json", "/"):
        await asked(path, path, 200)
    for file in data.PAGE.iterdir():
        await asked("/page/{file}", f"/page/{file.name}", 200)
    await asked("/page/{file}", "/page/other", 404)
    async with aiohttp.ClientSession() as session, session.get(asked.site.url + "/live") as answer:
        assert (answer.status, answer.content_type) == (200, "text/event-stream")
        asked.seen.add(("/live", "get", "200"))
    monkeypatch.setattr(live, "WATCHERS", 0)
    await asked("/live", "/live", 503)

    assert asked.seen == {
        (path, method, status)
        for path, methods in DOCUMENT["paths"].items()
        for method, operation in methods.items()
        for status in operation["responses"]
    }


def test_events_of_the_readme_are_events_as_described():
    """Whoever copies them has no surprise."""
    text = (Path(__file__).parents[2] / "README.md").read_text("utf-8")
    events = [line for line in text.splitlines() if line.startswith('{"event_id"')]
    assert events
    for event in events:
        holds(orjson.loads(event), {"$ref": "#/components/schemas/Event"})
