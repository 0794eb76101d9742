"""The profiles of one partition's users: in memory while in use, all of them in the store.

As with the users of a domain (`stream/users.py`), a profile that changed stays in memory until it
has been written, and memory is bounded by two generations. What is in a profile is
`tables/profile.py`; here it is bytes under ``u`` and the user's key.
"""

from collections.abc import Callable
from typing import Any, Protocol

import orjson

from stream.journal import Row as Output
from stream.store import PROFILE, Row, Store

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

    def change(self, key: bytes, user_id: str) -> Any:
        """The profile of a user, made where there is none; it will be written."""
        profile = self._young.get(key)
        if profile is None:
            profile = self._young[key] = self._find(key) or self.table.new(user_id)
        self._changed[key] = profile
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
