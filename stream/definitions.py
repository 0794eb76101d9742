"""The definitions that one partition follows, and how it comes to follow others while it runs.

They are a row of the changelog: what is emitted may depend on events and on where definitions were
switched, not on which worker has which file. A switch is written in the partition's own
transaction, with the offsets and the times of the sources at that moment. From then on every user
is taken up before his next event or deadline: what the old definitions have to say until the switch
is said, then his tags are evaluated under the new ones. Those of whom nothing is heard are found by
a *sweep* over all records, domain by domain in the order of their keys, some at a time. Its cursor
is a row too, written with the changes that it stands for, so that another owner goes on from there.
Only once the sweep has ended may the next switch begin.

This file says what is in force and who waits; what a user is made of is `tables/`.
"""

import zlib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Final

import msgspec

from stream.domains import Domain
from stream.errors import RulesError, StateError
from stream.rules import Rules
from stream.store import META, RECORD, Row, Store
from tables import profile
from tables.table import Before

RULES: Final = META + b"rules"
SWEEP: Final = META + b"sweep"
MAX_ROW_BYTES: Final = 900_000  # of two texts, compressed: a record of Kafka's has 1 MiB


class Switch(msgspec.Struct, array_like=True):
    """The row that says what is in force: ``text``, and ``before`` while users wait, compressed.

    ``offsets`` and ``times`` say by domain where the switch was: the next record to apply, and the
    time reached.
    """

    text: bytes
    before: bytes = b""
    offsets: dict[str, int] = {}
    times: dict[str, int] = {}


class Sweep(msgspec.Struct, array_like=True):
    """The row that says how far the sweep is: the first record not looked at, and how many were."""

    cursor: bytes
    looked_at: int


_encode = msgspec.msgpack.Encoder().encode
decode_switch = msgspec.msgpack.Decoder(Switch).decode
_decode_sweep = msgspec.msgpack.Decoder(Sweep).decode


def source_of(row: bytes) -> str:
    """The text of the definitions that a row says are in force."""
    return _unpacked(decode_switch(row).text)


def objections(before: Rules, after: Rules) -> list[str]:
    """Why users cannot go over from ``before`` to ``after``; empty where they can.

    Definitions older than those in force are no mistake of their author, and are not asked about.
    """
    reasons: list[str] = []
    if after.version == before.version and after.source != before.source:
        reasons.append(
            f"version: is {after.version} as before, but the content is another: raise it"
        )
    if after.timezone != before.timezone:
        reasons.append(
            f"timezone: cannot change from {before.timezone} to {after.timezone} under the state"
            " that was made with it: set it back; or give TAGSTREAM_TOPIC_PREFIX a new value,"
            " create the topics and feed the events again"
        )
    domains = {tag.name: tag.domain for tag in before.tags}
    for tag in after.tags:
        domain = domains.get(tag.name, tag.domain)
        if domain != tag.domain:
            reasons.append(
                f"tag '{tag.name}': cannot move from {domain} to {tag.domain} in one step: give it"
                " another name"
            )
    if len(_packed(before)) + len(_packed(after)) > MAX_ROW_BYTES:
        reasons.append("is too large to be kept beside the one before: shorten it")
    return reasons


class Definitions:
    """What one partition follows. Without ``switch``, ``rules`` were in force from its beginning.

    ``before`` are the definitions until the last switch, as long as users wait to be taken up.
    """

    def __init__(
        self,
        rules: Rules,
        domains: Mapping[str, Domain],
        *,
        before: Rules | None = None,
        switch: Switch | None = None,
        sweep: Sweep | None = None,
    ) -> None:
        self.rules = rules
        self.before = before
        self.tables: dict[str, Any] = {}
        self.profiles = profile.Profiles(before or rules)
        self._domains = domains
        self._codes = sorted((domain.code, domain.name) for domain in domains.values())
        self._switch = switch or Switch(_packed(rules))
        self._sweep = sweep or Sweep(RECORD, 0)
        self._row_waits = switch is None
        self._row_leaves = False
        self._sweep_waits = False
        self._arrange({name: domain.table(before or rules) for name, domain in domains.items()})

    @classmethod
    def read(
        cls, store: Store, domains: Mapping[str, Domain], parse: Callable[[str], Rules]
    ) -> "Definitions | None":
        """What the rows in a store say; None where no definitions were ever in force.

        Raises:
            StateError: this build cannot use them.
        """
        row = store.get(RULES)
        if row is None:
            return None
        switch, sweep = decode_switch(row), store.get(SWEEP)
        try:
            rules = parse(_unpacked(switch.text))
            before = parse(_unpacked(switch.before)) if switch.before else None
        except RulesError as error:
            raise StateError(
                f"{store.path}: the definitions in force cannot be used by this version of the"
                f" program: {error.problems[0]}. Go back to the version before, replace what is"
                " refused there, wait until tagstream_rules_sweep_remaining is 0, then update"
            ) from error
        return cls(
            rules,
            domains,
            before=before,
            switch=switch,
            sweep=_decode_sweep(sweep) if sweep is not None else None,
        )

    # -- a switch

    def begin(self, rules: Rules, places: Mapping[str, Any]) -> None:
        """Put other definitions in force, where the sources are now; everybody waits."""
        self.before, self.rules = self.rules, rules
        self._switch = Switch(
            _packed(rules),
            _packed(self.before),
            {name: place.offset for name, place in places.items()},
            {name: place.time_ms for name, place in places.items()},
        )
        self._sweep = Sweep(RECORD, 0)
        self._row_waits = self._sweep_waits = True
        self._arrange(self.tables)

    def _arrange(self, tables: dict[str, Any]) -> None:
        """Make the tables of the definitions in force; ``tables`` are those of the ones before."""
        before, rules = self.before, self.rules
        if before is None:
            self.tables = tables
            return
        always_tell = before.profile.fingerprint != rules.profile.fingerprint
        self.tables = {}
        for name, domain in self._domains.items():
            table = self.tables[name] = domain.table(rules)
            time_ms = self._switch.times.get(name, -1)
            waits = partial(self._waits, domain.code)
            table.before = Before(tables[name], time_ms, waits, always_tell)
        profiles = self.profiles
        self.profiles = profile.Profiles(rules)
        self.profiles.before = profiles

    def end(self) -> None:
        """Everybody was looked at."""
        self.before = self.profiles.before = None
        for table in self.tables.values():
            table.before = None
        self._switch = Switch(self._switch.text, b"", self._switch.offsets, self._switch.times)
        self._row_waits = self._sweep_waits = True

    # -- the sweep

    def _waits(self, code: bytes, user_id: str) -> bool:
        return RECORD + code + user_id.encode() >= self._sweep.cursor

    @property
    def is_sweeping(self) -> bool:
        """Whether users wait."""
        return self.before is not None

    @property
    def may_go_on(self) -> bool:
        """Whether more of them may be looked at: the switch is written, and so is every record
        that was changed before it.
        """
        return self.is_sweeping and not (self._row_waits or self._row_leaves)

    @property
    def looked_at(self) -> int:
        """How many records the sweep has passed."""
        return self._sweep.looked_at

    def some(self, store: Store, limit: int) -> tuple[str, Sequence[bytes]] | None:
        """A domain, and the keys of up to ``limit`` of its records that are to be looked at next;
        None: all were.
        """
        for code, name in self._codes:
            prefix = RECORD + code
            if self._sweep.cursor[: len(prefix)] <= prefix:
                start = max(prefix, self._sweep.cursor)
                rows = store.page(prefix, start, limit)
                if rows:
                    return name, [key for key, _ in rows]
        return None

    def passed(self, keys: Sequence[bytes]) -> None:
        """These were looked at."""
        self._sweep = Sweep(keys[-1] + b"\0", self._sweep.looked_at + len(keys))
        self._sweep_waits = True

    # -- writing

    def take(self) -> list[Row]:
        """The rows that changed since the last time, for the changelog."""
        rows: list[Row] = []
        if self._row_waits:
            rows.append((RULES, _encode(self._switch)))
            self._row_waits, self._row_leaves = False, True
        if self._sweep_waits:
            rows.append((SWEEP, _encode(self._sweep) if self.is_sweeping else None))
            self._sweep_waits = False
        return rows

    def written(self) -> None:
        """What was taken is in the store."""
        self._row_leaves = False


def _packed(rules: Rules) -> bytes:
    return zlib.compress(rules.source.encode())


def _unpacked(text: bytes) -> str:
    return zlib.decompress(text).decode()
