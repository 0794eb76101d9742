"""The profiles of one partition's users: in memory while in use, all of them in the store.

As with the users of a domain (`stream/users.py`), a profile that changed stays in memory until it
has been written, and memory is bounded by two generations. What is in a profile is
`tables/profile.py`; here it is bytes under ``u`` and the user's key.
"""

from collections import Counter
from collections.abc import Callable
from datetime import datetime, time, timedelta
from typing import Any, Protocol
from zoneinfo import ZoneInfo

import orjson

from stream.journal import Row as Output
from stream.store import PROFILE, Row, Store

STABLE_MS = 30 * 86_400_000  # a tag held so long with one value is stable
SURVEYED = 200  # profiles looked at in one go: less than a millisecond

TYPICAL_PROFILE = 1_500  # bytes in memory of one with a handful of tags


class Table(Protocol):
    """What the machinery needs of the logic of profiles (see `tables/profile.py`)."""

    def new(self, user_id: str) -> Any: ...
    def decode(self, raw: bytes) -> Any: ...
    def encode(self, profile: Any) -> bytes: ...
    def follow(
        self, profile: Any, domain: str, said: Any, clock_ms: int, event_id: str | None
    ) -> list[Any]: ...
    def describe(self, profile: Any) -> dict[str, Any]: ...


class Profiles:
    """Profiles by key, and those among them that wait to be written.

    ``allowance()`` is the number of bytes that this object may hold.
    """

    def __init__(self, table: Table, store: Store, allowance: Callable[[], int]) -> None:
        self.table = table
        self._store = store
        self._allowance = allowance
        self._young: dict[bytes, Any] = {}
        self._old: dict[bytes, Any] = {}
        self._changed: dict[bytes, Any] = {}
        self._writing: dict[bytes, Any] = {}
        self._retold: set[bytes] = set()  # those whose tags changed

    def of(self, key: bytes, user_id: str) -> Any:
        """The profile of a user, for reading; a new one where there is none."""
        profile = self._young.get(key)
        if profile is None:
            profile = self._young[key] = self._find(key) or self.table.new(user_id)
        return profile

    def change(self, key: bytes, user_id: str) -> Any:
        """The profile of a user, made where there is none; it will be written."""
        profile = self._changed[key] = self.of(key, user_id)
        return profile

    def retell(self, key: bytes) -> None:
        """The user's tags changed: those who read them are to be told."""
        self._retold.add(key)

    def peek(self, key: bytes) -> Any | None:
        """A copy of the profile as it is now; None if there is none."""
        profile = self._young.get(key) or self._find(key)
        if profile is None or not profile.domains:
            return None
        return self.table.decode(self.table.encode(profile))

    def some(
        self, after: bytes, rows: int, *, mentioning: bytes
    ) -> tuple[list[tuple[bytes, Any]], bytes | None]:
        """Profiles of the next users after a key, as they are now, for reading only.

        Up to ``rows`` stored ones are looked at, and of those only the ones decoded that hold
        the bytes ``mentioning``. Also after whom to go on; None: that was all.
        """
        page = self._store.page(PROFILE, PROFILE + after + b"\0", rows)
        stored = [(key[len(PROFILE) :], raw) for key, raw in page]
        last = stored[-1][0] if len(stored) == rows else None
        waiting = {
            key: profile
            for part in (self._writing, self._changed)
            for key, profile in part.items()
            if after < key and (last is None or key <= last)
        }
        found = {key: profile for key, profile in waiting.items() if profile.domains}
        for key, raw in stored:
            if mentioning in raw and key not in waiting:
                found[key] = self.table.decode(raw)
        return sorted(found.items(), key=lambda item: item[0]), last

    def _find(self, key: bytes) -> Any | None:
        profile = self._old.get(key)
        if profile is None:
            raw = self._store.get(PROFILE + key)
            profile = None if raw is None else self.table.decode(raw)
        return profile

    def take(self) -> tuple[list[Row], list[Output]]:
        """All that changed since the last time: changelog rows, and rows of ``user-tags``.

        What is taken stays in memory until `written`.
        """
        encode, describe, retold = self.table.encode, self.table.describe, self._retold
        rows: list[Row] = []
        told: list[Output] = []
        for key, profile in self._changed.items():
            gone = not profile.domains
            rows.append((PROFILE + key, None if gone else encode(profile)))
            if key in retold:
                told.append((key, None if gone else orjson.dumps(describe(profile))))
        self._writing, self._changed, self._retold = self._changed, {}, set()
        return rows, told

    def written(self) -> None:
        """What was taken is in the store."""
        self._writing = {}
        if len(self._young) * 2 * TYPICAL_PROFILE > self._allowance():
            self._old, self._young = self._young, dict(self._changed)


class Stability:
    """How many users have had each tag with one value for 30 days, counted once a local day.

    All profiles that were written are looked at, some at a time, as of the moment the day's survey
    began; between two surveys the figures stand.
    """

    def __init__(self, zone: ZoneInfo) -> None:
        self.users: dict[str, int] | None = None
        self._zone = zone
        self._next_ms = 0  # when the next survey begins
        self._since_ms = 0
        self._cursor = b""  # empty: no survey is under way
        self._counted: Counter[str] = Counter()

    def _begin(self, time_ms: int) -> None:
        tomorrow = datetime.fromtimestamp(time_ms / 1000, self._zone).date() + timedelta(days=1)
        start = datetime.combine(tomorrow, time(), self._zone)
        self._next_ms = int(start.timestamp() * 1000)
        self._since_ms, self._cursor = time_ms - STABLE_MS, PROFILE
        self._counted.clear()

    def look(self, store: Store, table: Table, time_ms: int) -> bool:
        """Go on; whether there was anything to do. ``time_ms`` is the time reached."""
        if not self._cursor:
            if time_ms < self._next_ms:
                return False
            self._begin(time_ms)
        rows = store.page(PROFILE, self._cursor, SURVEYED)
        for _, raw in rows:
            for name, held in table.decode(raw).tags.items():
                if held.since_ms <= self._since_ms:
                    self._counted[name] += 1
        if len(rows) < SURVEYED:
            self.users, self._cursor = dict(self._counted), b""
        else:
            self._cursor = rows[-1][0] + b"\0"
        return True
