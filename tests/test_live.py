"""What watchers are told, by the hub alone: its source and the other workers are the test's."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import orjson
import pytest

from stream import live
from stream.live import KEPT, WAITING, Live, LostError, Watcher


class Source:
    """A worker that knows nobody who is in ``erased``."""

    def __init__(self) -> None:
        self.erased: set[str] = set()
        self.peers: list[str] = []
        self.asked = 0

    def state(self) -> dict[str, Any]:
        self.asked += 1
        return {"worker": "http://here", "number": self.asked}

    def others(self) -> list[str]:
        return self.peers

    def knows(self, user_id: str) -> bool:
        return user_id not in self.erased


class Others:
    """The other workers' events, as a test puts them; None: the connection is lost."""

    def __init__(self) -> None:
        self.queues: dict[str, asyncio.Queue[tuple[str, bytes] | None]] = {}
        self.listened = 0

    @asynccontextmanager
    async def listen(self, url: str) -> AsyncIterator[AsyncIterator[tuple[str, bytes]]]:
        self.listened += 1
        yield self._events(self.queues.setdefault(url, asyncio.Queue()))

    async def _events(
        self, queue: asyncio.Queue[tuple[str, bytes] | None]
    ) -> AsyncIterator[tuple[str, bytes]]:
        while event := await queue.get():
            yield event
        raise LostError("gone")

    def say(self, url: str, *events: tuple[str, bytes] | None) -> None:
        for event in events:
            self.queues.setdefault(url, asyncio.Queue()).put_nowait(event)


def row(number: int, user: str = "anna") -> tuple[bytes, bytes]:
    return user.encode(), orjson.dumps({"user_id": user, "number": number})


async def told(watcher: Watcher) -> list[tuple[str, Any]]:
    """The next message as events."""
    async with asyncio.timeout(30):
        frames = (await watcher.message()).decode().split("\n\n")
    assert frames.pop() == ""
    lines = [frame.split("\n") for frame in frames]
    assert all(len(two) == 2 for two in lines)
    return [
        (kind.removeprefix("event: "), orjson.loads(data.removeprefix("data: ")))
        for kind, data in lines
    ]


async def until_told(watcher: Watcher, kind: str) -> Any:
    """What the next event of a kind says."""
    while True:
        for found, data in await told(watcher):
            if found == kind:
                return data


@pytest.fixture
def others() -> Others:
    return Others()


@pytest.fixture
async def hub(others: Others, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Live]:
    monkeypatch.setattr(live, "EVERY_S", 0.01)
    yield Live(Source(), others.listen)
    assert [task for task in asyncio.all_tasks() if task.get_name().startswith("live")] == []


async def test_with_nobody_watching_nothing_runs(hub, others):
    """No task, no connection, no state computed."""
    hub._source.peers = ["http://b"]
    hub.committed([row(1)], [])
    await asyncio.sleep(0)
    assert hub._ticking is None
    assert (hub._source.asked, others.listened) == (0, 0)


async def test_a_watcher_is_told_how_things_stand_and_what_happened_last(hub):
    """In order, the latest of each kind."""
    hub.committed([row(number) for number in range(KEPT + 5)], [row(99)])
    watcher = hub.join(alone=True)
    events = await told(watcher)
    assert [data["number"] for kind, data in events if kind == "change"] == list(range(5, KEPT + 5))
    assert [data["number"] for kind, data in events if kind == "warning"] == [99]
    await hub.leave(watcher)


async def test_changes_come_in_order_as_they_are_committed(hub):
    """And a state again and again."""
    watcher = hub.join(alone=True)
    assert (await until_told(watcher, "state"))["worker"] == "http://here"
    hub.committed([row(1), row(2)], [])
    hub.committed([row(3)], [row(4)])
    events = await told(watcher)
    assert [data["number"] for kind, data in events if kind == "change"] == [1, 2, 3]
    assert [data["number"] for kind, data in events if kind == "warning"] == [4]
    assert await until_told(watcher, "state")
    await hub.leave(watcher)


async def test_what_does_not_fit_is_counted_and_the_latest_stay(hub):
    """However much comes at once, or bit by bit."""
    watcher = hub.join(alone=True)
    hub.committed([row(number) for number in range(3 * WAITING)], [])
    hub.committed([row(number) for number in range(10)], [])
    events = await told(watcher)
    changes = [data["number"] for kind, data in events if kind == "change"]
    assert changes == [*range(2 * WAITING + 10, 3 * WAITING), *range(10)]
    assert ("skipped", 2 * WAITING + 10) in events
    assert ("skipped", 2 * WAITING + 10) not in await told(watcher)
    await hub.leave(watcher)


async def test_a_user_erased_since_is_not_shown_again(hub):
    """What is kept for whoever comes next is asked for anew."""
    hub.committed([row(1, "anna"), row(2, "berta")], [row(3, "anna")])
    hub._source.erased.add("anna")
    watcher = hub.join(alone=True)
    said = [data for kind, data in await told(watcher) if kind != "state"]
    assert said == [{"user_id": "berta", "number": 2}]
    await hub.leave(watcher)


async def test_who_watches_one_worker_hears_all(hub, others):
    """Over one connection to each of the others, however many watch."""
    hub._source.peers = ["http://b"]
    first, second = hub.join(alone=False), hub.join(alone=False)
    others.say("http://b", ("state", b'{"worker":"http://b"}'), ("change", b'{"number":7}'))
    for watcher in (first, second):
        assert (await until_told(watcher, "change"))["number"] == 7
    assert others.listened == 1
    late = hub.join(alone=False)
    states = [data["worker"] for kind, data in await told(late) if kind == "state"]
    assert sorted(states) == ["http://b", "http://here"]
    others.say("http://b", ("skipped", b"12"), ("surprise", b"{}"))
    assert await until_told(first, "skipped") == 12
    for watcher in (first, second, late):
        await hub.leave(watcher)
    assert hub._relays == {}


async def test_another_worker_hears_this_one_alone(hub, others):
    """Or two would tell each other what they said, for ever."""
    hub._source.peers = ["http://b"]
    person, worker = hub.join(alone=False), hub.join(alone=True)
    others.say("http://b", ("change", b'{"number":7}'))
    await until_told(person, "change")
    hub.committed([row(8)], [])
    assert (await until_told(worker, "change"))["number"] == 8
    await hub.leave(person)
    assert hub._relays == {}  # nobody is left who wants to hear them
    await hub.leave(worker)


async def test_a_worker_that_is_lost_is_said_to_be_gone_and_asked_again(hub, others):
    """Its numbers are not to be taken for those of now."""
    hub._source.peers = ["http://b"]
    watcher = hub.join(alone=False)
    others.say("http://b", ("state", b'{"worker":"http://b"}'), None)
    assert await until_told(watcher, "gone") == {"worker": "http://b"}
    others.say("http://b", ("change", b'{"number":9}'))
    assert (await until_told(watcher, "change"))["number"] == 9
    hub._source.peers = []
    assert await until_told(watcher, "gone") == {"worker": "http://b"}
    await hub.leave(watcher)


async def test_the_end_is_told_and_nobody_may_come_any_more(hub):
    """A worker that stops keeps nobody waiting."""
    watcher = hub.join(alone=True)
    await hub.close()
    assert hub.is_full
    await told(watcher)
    assert watcher.closed
    await hub.leave(watcher)


async def test_there_is_room_for_so_many(hub, monkeypatch):
    """Each costs a buffer."""
    monkeypatch.setattr(live, "WATCHERS", 2)
    watchers = [hub.join(alone=True) for _ in range(2)]
    assert hub.is_full
    for watcher in watchers:
        await hub.leave(watcher)
    assert not hub.is_full
