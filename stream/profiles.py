"""The profiles of one partition's users: decoded at the touch.

As with the users of a domain (`stream/users.py`): whoever changes a profile puts it back. What is
in a profile is `tables/profile.py`; here it is bytes under ``u`` and the user's key.
"""

from collections import Counter
from dataclasses import dataclass, field
from datetime import datetime, time, timedelta
from typing import Any
from zoneinfo import ZoneInfo

from stream.journal import Row as Output
from stream.metrics import value_label
from stream.rows import Entry, Pool, Rows
from stream.store import PROFILE, Row, Store
from tables.activity import activated
from tables.kept import Profile
from tables.profile import Profiles as Logic

STABLE_MS = 30 * 86_400_000  # a tag held so long with one value is stable
SURVEYED = 200  # profiles looked at in one go: less than a millisecond


class Profiles:
    """Profiles by key; ``pool`` is where their rows have memory."""

    def __init__(self, table: Logic, store: Store, pool: Pool) -> None:
        self.table = table
        self.rows = Rows(PROFILE, store.get, pool)
        self._store = store
        #: What those who read tags are to be told; a profile where that may still change.
        self._told: dict[bytes, Profile | bytes | None] = {}

    def get(self, key: bytes, user_id: str) -> Profile:
        """The profile of a user, a new one where there is none. Whoever changes it puts it back."""
        entry = self.rows.young.get(key) or self.rows.find(key)
        return (self._decoded(entry) if entry is not None else None) or self.table.new(user_id)

    def put(self, key: bytes, profile: Profile, *, retold: bool) -> None:
        """The profile was changed, and waits to be written; ``retold``: its tags were too."""
        if not profile.domains:
            self.rows.put(key, None)
            if retold:
                self._told[key] = None
            return
        held = self.rows.hold(key, profile)
        if not held:
            self.rows.put(key, self.table.encode(profile))
        if retold:
            self._told[key] = profile if held else self.table.told(profile)

    def activate(self, key: bytes, day: int, figures: list[Any]) -> None:
        """A user who has a profile was active on another day."""
        entry = self.rows.young.get(key) or self.rows.find(key)
        if entry is None:
            return
        profile: Profile | None = entry.held
        if profile is not None:
            profile.activity = activated(profile.activity, day, figures)
        elif (row := entry.row) is not None:
            self.rows.put(key, self.table.activated(row, day, figures))

    def peek(self, key: bytes) -> Profile | None:
        """A copy of the profile as it is now; None if there is none."""
        entry = self.rows.peek(key)
        row = None if entry is None else self._row(entry)
        return None if row is None else self.table.decode(row)

    def _decoded(self, entry: Entry) -> Profile | None:
        profile: Profile | None = entry.held
        if profile is None and entry.row is not None:
            profile = self.table.decode(entry.row)
        return profile

    def _row(self, entry: Entry) -> bytes | None:
        return entry.row if entry.held is None else self.table.encode(entry.held)

    def some(
        self, after: bytes, rows: int, *, mentioning: bytes
    ) -> tuple[list[tuple[bytes, Any]], bytes | None]:
        """Profiles of the next users after a key, as they are now, for reading only.

        Up to ``rows`` stored ones are looked at, and of those only the ones decoded that hold
        the bytes ``mentioning``. Also after whom to go on; None: that was all.
        """
        page = self._store.page(PROFILE, PROFILE + after + b"\0", rows)
        last = page[-1][0][len(PROFILE) :] if len(page) == rows else None
        found = {
            key[len(PROFILE) :]: self.table.decode(row) for key, row in page if mentioning in row
        }
        for entry in self.rows.unwritten(after, last):
            row = self._row(entry)
            found.pop(entry.key, None)
            if row is not None and mentioning in row:
                found[entry.key] = self.table.decode(row)
        return sorted(found.items()), last

    def take(self) -> tuple[list[Row], list[Output]]:
        """All that changed since the last time: changelog rows, and rows of ``user-tags``.

        What is taken stays in memory until `written`.
        """
        told: list[Output] = []
        for key, tags in self._told.items():
            told.append((key, self.table.told(tags) if isinstance(tags, Profile) else tags))
        self._told = {}
        return self.rows.take(self._encoded), told

    def _encoded(self, key: bytes, profile: Profile) -> bytes:
        return self.table.encode(profile)

    def written(self) -> None:
        """What was taken is in the store."""
        self.rows.written()


@dataclass
class Survey:
    """What a look at every profile found: users by tag (and value)."""

    stable: Counter[str] = field(default_factory=Counter)  # the same value for 30 days
    controls: Counter[tuple[str, str]] = field(default_factory=Counter)  # in the control group


class Surveyor:
    """Looks at all profiles that were written, once a local day, some at a time.

    As of the moment at which the day's survey began; between two surveys the last one stands.
    """

    def __init__(self, zone: ZoneInfo) -> None:
        self.found: Survey | None = None
        self._zone = zone
        self._next_ms = 0  # when the next survey begins
        self._since_ms = 0
        self._cursor = b""  # empty: no survey is under way
        self._survey = Survey()

    def _begin(self, time_ms: int) -> None:
        tomorrow = datetime.fromtimestamp(time_ms / 1000, self._zone).date() + timedelta(days=1)
        start = datetime.combine(tomorrow, time(), self._zone)
        self._next_ms = int(start.timestamp() * 1000)
        self._since_ms, self._cursor = time_ms - STABLE_MS, PROFILE
        self._survey = Survey()

    def look(self, store: Store, table: Logic, time_ms: int) -> bool:
        """Go on; whether there was anything to do. ``time_ms`` is the time reached."""
        if not self._cursor:
            if time_ms < self._next_ms:
                return False
            self._begin(time_ms)
        rows = store.page(PROFILE, self._cursor, SURVEYED)
        for _, raw in rows:
            self._take(table.decode(raw), table)
        if len(rows) < SURVEYED:
            self.found, self._cursor = self._survey, b""
        else:
            self._cursor = rows[-1][0] + b"\0"
        return True

    def _take(self, profile: Profile, table: Logic) -> None:
        survey, since_ms = self._survey, self._since_ms
        for name, held in profile.tags.items():
            if held.since_ms <= since_ms:
                survey.stable[name] += 1
            if table.is_control(profile, name):
                survey.controls[name, value_label(held.value)] += 1
