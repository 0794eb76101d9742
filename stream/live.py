"""What happens, as it happens, for those who watch: server-sent events.

Promise: only what was committed, in order per partition, and how things stand once a second.
Nobody waits for a watcher: each has a bounded buffer of which the oldest falls out, and is told
how many did; one that does not read is dropped. Who watches one worker sees all: it watches
the others on their behalf, over one connection each, which tells of its own worker alone.
With nobody watching there is no task and no connection; a flush costs two slices of a list,
since the last few of each kind are kept for whoever comes next.

Events: ``change`` and ``warning`` hold a record as the topic has it; ``state`` how one worker
stands; ``skipped`` how many records were left out; ``gone`` a worker that is not heard any more.

Boundary: bytes in, bytes out. HTTP is `stream/web.py`'s; what a state holds is the worker's.
"""

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, Final, Protocol

import orjson

from stream.journal import Said

log = logging.getLogger(__name__)

EVERY_S = 1.0  # how often a state is told
PACE_S = 0.2  # the least between two messages to a watcher
WAITING = 100  # records of a kind that wait for a watcher: five hundred a second get through
KEPT = 40  # records of a kind kept for whoever comes next
WATCHERS = 100

CHANGE: Final = "change"
WARNING: Final = "warning"
STATE: Final = "state"
SKIPPED: Final = "skipped"
GONE: Final = "gone"
_RELAYED: Final = frozenset({CHANGE, WARNING, STATE, SKIPPED})


class Source(Protocol):
    """What is told of."""

    def state(self) -> Mapping[str, Any]:
        """How this worker stands, ready for JSON; ``worker`` names it."""

    def others(self) -> Iterable[str]:
        """Where the other workers are reached."""

    def knows(self, user_id: str) -> bool:
        """Whether this worker has the user: one erased since is not shown again."""


Listen = Callable[[str], AbstractAsyncContextManager[AsyncIterator[tuple[str, bytes]]]]
"""Opens another worker's own events: kind and data of each, until it is lost.

Raises `LostError`.
"""


class LostError(Exception):
    """Another worker is not heard any more."""


class Watcher:
    """One who watches. ``alone``: another worker, which wants to hear of this one only."""

    def __init__(self, *, alone: bool) -> None:
        self.alone = alone
        self.closed = False
        self._records: dict[str, deque[bytes]] = {
            kind: deque(maxlen=WAITING) for kind in (CHANGE, WARNING)
        }
        self._skipped = 0
        self._states: dict[str, tuple[str, bytes]] = {}  # by worker: the latest, or that it is gone
        self._something = asyncio.Event()

    def tell(self, kind: str, items: Sequence[bytes]) -> None:
        """Records of a kind, the oldest first."""
        if not items:
            return
        waiting = self._records[kind]
        self._skipped += max(0, len(waiting) + len(items) - WAITING)
        waiting.extend(items[-WAITING:])
        self._something.set()

    def skip(self, number: int) -> None:
        """So many were left out on their way here."""
        if number:
            self._skipped += number
            self._something.set()

    def stand(self, worker: str, kind: str, data: bytes) -> None:
        """How a worker stands now; what it said before is of no use any more."""
        self._states[worker] = kind, data
        self._something.set()

    def close(self) -> None:
        """The end: `message` returns at once, for the last time."""
        self.closed = True
        self._something.set()

    async def message(self) -> bytes:
        """All that waits, as soon as something does."""
        await self._something.wait()
        self._something.clear()
        events = list(self._states.values())
        self._states.clear()
        for kind, waiting in self._records.items():
            events += [(kind, item) for item in waiting]
            waiting.clear()
        if self._skipped:
            events.append((SKIPPED, b"%d" % self._skipped))
            self._skipped = 0
        return b"".join(b"event: %s\ndata: %s\n\n" % (kind.encode(), data) for kind, data in events)


class Live:
    """The watchers of one worker, and what they are told.

    ``listen`` opens another worker's events.
    """

    def __init__(self, source: Source, listen: Listen) -> None:
        self._source = source
        self._listen = listen
        self._watchers: set[Watcher] = set()
        self._recent: dict[str, deque[tuple[bytes, bytes]]] = {
            kind: deque(maxlen=KEPT) for kind in (CHANGE, WARNING)
        }
        self._ticking: asyncio.Task[None] | None = None
        self._relays: dict[str, asyncio.Task[None]] = {}
        self._heard: dict[str, bytes] = {}  # the last state of each of the others
        self._closed = False

    def committed(self, changes: Said, warnings: Said) -> None:
        """A transaction of a partition of ours was committed: what it said, in order."""
        for kind, rows in ((CHANGE, changes), (WARNING, warnings)):
            if rows:
                last = [(key or b"", value or b"") for key, value in rows[-KEPT:]]
                self._recent[kind].extend(last)
                for watcher in self._watchers:
                    watcher.skip(max(0, len(rows) - WAITING))
                    watcher.tell(kind, [value or b"" for _, value in rows[-WAITING:]])

    @property
    def is_full(self) -> bool:
        """Whether there is no room for another watcher."""
        return self._closed or len(self._watchers) >= WATCHERS

    def join(self, *, alone: bool) -> Watcher:
        """A new watcher, who is told at once how things stand and what happened last."""
        watcher = Watcher(alone=alone)
        self._watchers.add(watcher)
        if self._ticking is None:
            self._ticking = asyncio.create_task(self._tick(), name="live")
        self._tell_state([watcher])
        for worker, state in self._heard.items():
            if not alone:
                watcher.stand(worker, STATE, state)
        known: dict[bytes, bool] = {}
        for kind, rows in self._recent.items():
            for key, _ in rows:
                if key not in known:
                    known[key] = self._source.knows(key.decode())
            watcher.tell(kind, [value for key, value in rows if known[key]])
        return watcher

    async def leave(self, watcher: Watcher) -> None:
        """Let a watcher go; the last one ends all work."""
        self._watchers.discard(watcher)
        if not any(not other.alone for other in self._watchers):
            await self._end(self._relays.values())
            self._relays.clear()
            self._heard.clear()
        if not self._watchers and self._ticking is not None:
            ticking, self._ticking = self._ticking, None
            await self._end([ticking])

    async def close(self) -> None:
        """Tell all that this is the end."""
        self._closed = True
        for watcher in self._watchers:
            watcher.close()

    async def _end(self, tasks: Iterable[asyncio.Task[None]]) -> None:
        tasks = list(tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # -- while somebody watches

    async def _tick(self) -> None:
        while True:
            self._follow_others()
            await asyncio.sleep(EVERY_S)
            self._tell_state(self._watchers)

    def _tell_state(self, watchers: Iterable[Watcher]) -> None:
        state = self._source.state()
        data = orjson.dumps(state)
        for watcher in watchers:
            watcher.stand(state["worker"], STATE, data)

    def _follow_others(self) -> None:
        """Have one connection to each of the others, as long as a person watches."""
        wanted = (
            set(self._source.others())
            if any(not watcher.alone for watcher in self._watchers)
            else set()
        )
        for url in self._relays.keys() - wanted:
            self._relays.pop(url).cancel()
            self._lose(url)
        for url in wanted - self._relays.keys():
            self._relays[url] = asyncio.create_task(self._relay(url), name=f"live-{url}")

    async def _relay(self, url: str) -> None:
        while True:
            try:
                async with self._listen(url) as events:
                    async for kind, data in events:
                        self._pass_on(url, kind, data)
            except (LostError, ValueError) as error:  # or heard, and not understood
                log.debug("%s is not heard: %s", url, type(error).__name__)
            self._lose(url)
            await asyncio.sleep(EVERY_S)

    def _pass_on(self, url: str, kind: str, data: bytes) -> None:
        if kind not in _RELAYED:
            return
        if kind == STATE:
            self._heard[url] = data
        for watcher in self._watchers:
            if watcher.alone:
                continue
            if kind == STATE:
                watcher.stand(url, STATE, data)
            elif kind == SKIPPED:
                watcher.skip(int(data))
            else:
                watcher.tell(kind, [data])

    def _lose(self, url: str) -> None:
        self._heard.pop(url, None)
        for watcher in self._watchers:
            if not watcher.alone:
                watcher.stand(url, GONE, orjson.dumps({"worker": url}))
