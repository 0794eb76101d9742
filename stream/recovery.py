"""Opening a partition's state: the disk checked against the changelog, and brought up to it.

The changelog is the truth; the disk is a cache that says up to where it is true. Every
transaction ends with the position row, so the record before the disk's place is the
position row that the disk holds, unless a later one has replaced it; its incarnation tells
whether this is the changelog that the disk was made from.

What can be rebuilt without losing or repeating anything is rebuilt, and said in one line.
What cannot raises a `StateError` with the remedy. Never a guess, never silence.
"""

import asyncio
import contextlib
import logging
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

from stream.applying import fingerprint
from stream.errors import LayoutChanged, SourceRemade, SourceTrimmed, StateError
from stream.journal import Journal
from stream.position import LAYOUT, POSITION, Place, Position, decode_position
from stream.settings import Settings
from stream.store import Budget, Store
from stream.topics import CHANGELOG

log = logging.getLogger(__name__)

#: Part of the time that tombstones are kept after which a disk is too old: compaction may have
#: removed some that it has missed, and clocks differ.
TRUSTED = 0.8


@dataclass(frozen=True, slots=True)
class Recovered:
    """State that is true up to ``applied``, and where its sources stand."""

    store: Store
    applied: int
    position: Position


async def recover(
    journal: Journal,
    path: Path,
    *,
    number: int,
    budget: Budget,
    settings: Settings,
    timezone: str,
    tombstones_ms: int,
    progress: Callable[[int, int], None],
    follow: bool = False,
) -> Recovered:
    """Open the disk in ``path`` and read what the changelog has beyond it.

    ``tombstones_ms`` is how long the changelog keeps markers of deletion, and so how long a
    disk may have been away. ``progress(n, left)`` is told how many records were just read, and
    about how many are left. ``timezone`` is that of our definitions; with ``follow`` the state may
    have another.

    Raises:
        LayoutChanged: partition count, partitioner or time zone are not the state's.
        StateError: disk and changelog contradict each other and no rebuild is safe.
    """
    name = f"{settings.topic(CHANGELOG)}[{number}]"
    first, end = await journal.bounds()
    store = _open(path, budget)
    applied = store.applied
    if applied is not None and (
        reason := await _distrust(journal, store, applied, first, end, tombstones_ms)
    ):
        if first == end:
            store.close()
            raise StateError(
                f"{path}: {reason}, and {name} is empty: it was deleted or made anew, so this"
                " disk is the only copy of the state. Restore the topic; or, to begin again from"
                " the sources, delete the directory and every output topic"
            )
        log.warning("%s: %s; rebuilding it from %s", path, reason, name)
        store = _anew(store, path, budget)
        applied = None
    if applied is None:
        if not store.is_empty:  # a rebuild that was cut off: it may hold what was deleted since
            store = _anew(store, path, budget)
        applied = await _rebuild(journal, store, first, end, progress)
    else:
        applied = await _catch_up(journal, store, applied, end, progress)
    raw = store.get(POSITION)
    if raw is None and applied:
        raise StateError(f"{name}: no position row among its records: this is not our changelog")
    position = decode_position(raw) if raw is not None else _first_position(settings, timezone)
    _check_layout(position, settings, position.timezone if follow else timezone, name)
    _check_erase_key(position, settings.erase_key(), store, name)
    return Recovered(store, applied, position)


async def check_source(journal: Journal, topic: str, number: int, place: Place) -> None:
    """Compare a source topic with the position taken from it.

    Raises:
        SourceTrimmed: records after our position are gone.
        SourceRemade: the last record applied is not the one at that offset now.
    """
    source = await journal.source(topic, place.offset)
    where = f"{topic}[{number}]"
    again = (
        "To begin again with what the topic holds now, give TAGSTREAM_TOPIC_PREFIX a new value,"
        " create the topics and feed the events again"
    )
    if place.offset == 0:
        if source.committed:
            raise StateError(
                f"{where}: {source.committed} records were applied once, but the changelog knows"
                " nothing of them: it was deleted or made anew, and no disk has the state."
                f" Restore the changelog. {again}"
            )
        place.offset = source.first
        return
    if source.first > place.offset and source.first <= place.end:
        place.offset = place.end  # what has gone held no record of ours
        return
    if source.first > place.offset:
        raise SourceTrimmed(
            f"{where}: records {place.offset} to {source.first - 1} were deleted before they"
            f" were applied: raise the topic's retention. {again}"
        )
    if source.end < place.offset:
        raise SourceRemade(
            f"{where}: ends at {source.end}, but {place.offset} records were applied: the topic"
            f" was deleted and made anew, or cut. {again}"
        )
    if source.first < place.offset and (
        source.record is None
        or source.record.timestamp != place.timestamp
        or fingerprint(source.record) != place.crc
    ):
        raise SourceRemade(
            f"{where}: the record at {place.offset - 1} is not the one that was applied: the"
            f" topic was deleted and filled again. {again}"
        )


def is_corruption(error: BaseException) -> bool:
    """Whether RocksDB says that what is on the disk is not what it wrote."""
    return "Corruption:" in str(error)


def _open(path: Path, budget: Budget) -> Store:
    if Store.is_condemned(path):
        log.warning("%s: was found corrupt; rebuilding it from the changelog", path)
        Store.destroy(path)
    try:
        return Store.open(path, budget)
    except StateError as error:
        if is_corruption(error):
            log.warning("%s; rebuilding it from the changelog", error)
            Store.destroy(path)
            return Store.open(path, budget)
        if "lock hold by" in str(error) or "While lock file" in str(error):
            raise StateError(
                f"{path}: another process has it open; every worker needs a TAGSTREAM_DATA_DIR"
                " of its own"
            ) from error
        raise  # a full or read-only disk, say: nothing that a rebuild would mend


def _anew(store: Store, path: Path, budget: Budget) -> Store:
    store.close()
    Store.destroy(path)
    return Store.open(path, budget)


async def _distrust(
    journal: Journal, store: Store, applied: int, first: int, end: int, tombstones_ms: int
) -> str | None:
    """Why this disk must not be built upon; None if it may."""
    used_ms = store.used_ms or 0
    if time.time() * 1000 - used_ms > tombstones_ms * TRUSTED:
        return "last used too long ago: it may have missed deletions"
    if end < applied:
        return f"is at {applied}, but the changelog ends at {end}"
    raw = store.get(POSITION)
    if raw is None:
        return "holds no position"
    async with contextlib.aclosing(journal.read(max(first, applied - 1), end)) as batches:
        async for records, _ in batches:
            for record in records:
                if record.key != POSITION or record.value is None:
                    continue
                if record.offset == applied - 1:
                    same = record.value == raw
                else:
                    theirs, ours = decode_position(record.value), decode_position(raw)
                    same = theirs.incarnation == ours.incarnation
                return None if same else "was made from another changelog"
    return "is not found in the changelog"


async def _rebuild(
    journal: Journal, store: Store, first: int, end: int, progress: Callable[[int, int], None]
) -> int:
    applied = 0
    async for records, position in journal.read(first, end):
        store.restore_rows({record.key: record.value for record in records})
        applied = records[-1].offset + 1
        progress(len(records), max(0, end - position))
        await asyncio.sleep(0)
    if applied:
        store.rebuild(applied)
    return applied


async def _catch_up(
    journal: Journal, store: Store, applied: int, end: int, progress: Callable[[int, int], None]
) -> int:
    async for records, position in journal.read(applied, end):
        rows: dict[bytes, Any] = {record.key: record.value for record in records}
        applied = records[-1].offset + 1
        store.restore(rows, applied)
        progress(len(records), max(0, end - position))
        await asyncio.sleep(0)
    return applied


def _first_position(settings: Settings, timezone: str) -> Position:
    return Position(
        incarnation=uuid.uuid4().hex,
        partitions=settings.partitions,
        partitioner=settings.partitioner,
        timezone=timezone,
        places={},
        population=[],
        layout=LAYOUT,
    )


def _check_erase_key(position: Position, key: bytes, store: Store, name: str) -> None:
    """Marks made with another secret would be found no more, and users come back."""
    print_ = blake2b(b"erasures", key=key, digest_size=8).hexdigest() if key else ""
    if position.erase_key != print_ and store.has_erasures:
        raise LayoutChanged(
            f"{name}: users were erased under another secret than TAGSTREAM_ERASE_KEY_FILE has"
            " now, and late or replayed events would bring them back. Set it back"
        )
    position.erase_key = print_


def _check_layout(position: Position, settings: Settings, timezone: str, name: str) -> None:
    if position.layout != LAYOUT:
        raise LayoutChanged(
            f"{name}: the state was written by another version of the program, in layout"
            f" {position.layout}, not {LAYOUT}. Go back to that version; or give"
            " TAGSTREAM_TOPIC_PREFIX a new value, create the topics and feed the events again"
        )
    for what, have, want, how in (
        ("partitions", position.partitions, settings.partitions, "TAGSTREAM_PARTITIONS"),
        ("the partitioner", position.partitioner, settings.partitioner, "TAGSTREAM_PARTITIONER"),
        ("the time zone", position.timezone, timezone, "timezone in tags.yaml"),
    ):
        if have != want:
            raise LayoutChanged(
                f"{name}: the state was made with {what} {have}, not {want}. Set {how} back; or,"
                " to change it, give TAGSTREAM_TOPIC_PREFIX a new value, create the topics and"
                " feed the events again"
            )
