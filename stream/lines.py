"""Events in files: JSON Lines, plain or ``.gz`` or on standard input, and where each belongs.

A line is one event and its ``type`` decides the domain. A line that belongs nowhere is still
handed on, to the first domain, whose decoder says precisely why it is no event. Blank lines
are no events. Memory is bounded whatever a file holds: a line is kept up to one byte more
than an event may have.
"""

import gzip
import io
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Annotated, Any, NamedTuple

import msgspec
import typer

from stream import timestamps
from stream.commands.feeding import Item
from stream.domains import Domain
from stream.errors import UsageError
from stream.events import MAX_BYTES, types_of

STANDARD_INPUT = Path("-")
BATCH_LINES, BATCH_BYTES = 5_000, 4 << 20

#: The argument of commands that read such files.
Files = Annotated[
    list[Path],
    typer.Argument(metavar="EVENTS…", help="JSON Lines, plain or .gz; - is standard input."),
]


class Routed(NamedTuple):
    """Where a line belongs: domains (more than one for an erasure), record key, event time."""

    domains: tuple[str, ...]
    key: bytes | None
    ts_ms: int | None


class _Envelope(msgspec.Struct):
    """The fields that every event has, of whatever type they come."""

    type: Any = None
    user_id: Any = None
    ts: Any = None


_envelope = msgspec.json.Decoder(_Envelope).decode


class Router:
    """Says where lines belong, for the domains of this build."""

    def __init__(self, domains: Mapping[str, Domain]) -> None:
        self._first = (next(iter(domains)),)
        self._domains: dict[str, tuple[str, ...]] = {}
        for name, domain in domains.items():
            for kind in types_of(domain.events):
                self._domains[kind] = (*self._domains.get(kind, ()), name)

    def route(self, line: bytes) -> Routed:
        """The place of one line; never fails."""
        try:
            envelope = _envelope(line)
        except (ValueError, RecursionError):
            return Routed(self._first, None, None)
        kind, user_id = envelope.type, envelope.user_id
        domains = self._domains.get(kind) if isinstance(kind, str) else None
        key = user_id.encode() if isinstance(user_id, str) else None
        return Routed(domains or self._first, key, _instant(envelope.ts))

    def items(self, lines: Iterable[bytes]) -> Iterator[Item]:
        """What lines are to the source topics: one item each, or one per domain."""
        for line in lines:
            place = self.route(line)
            for domain in place.domains:
                yield Item(domain, place.key, line)


def instant(value: bytes | None) -> int | None:
    """The event time of a record's value, if it has a usable one."""
    try:
        return _instant(_envelope(value or b"").ts)
    except (ValueError, RecursionError):
        return None


def _instant(ts: object) -> int | None:
    try:
        if isinstance(ts, str):
            return timestamps.parse(ts)
        return timestamps.check(ts) if type(ts) is int else None
    except ValueError:
        return None


def read(path: Path, advanced: Callable[[int], object] = lambda _: None) -> Iterator[bytes]:
    """The lines of a file, without their ends.

    ``advanced(n)`` is called now and then with the number of bytes of the file just read.

    Raises:
        UsageError: the file cannot be opened, or is a ``.gz`` that is damaged or cut off.
    """
    try:
        with _open(path) as raw:
            counted = _Counted(raw, advanced)
            file = gzip.GzipFile(fileobj=counted) if path.suffix == ".gz" else counted
            yield from _lines(io.BufferedReader(file, 1 << 18))
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UsageError(f"{path}: no complete gzip file: {error}") from error
    except IsADirectoryError as error:
        raise UsageError(f"{path}: is a directory") from error
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror or error}") from error


def batches(events: Iterable[bytes]) -> Iterator[list[bytes]]:
    """The lines some thousands at a time, fewer where they are long."""
    batch: list[bytes] = []
    room = BATCH_BYTES
    for line in events:
        batch.append(line)
        room -= len(line)
        if len(batch) == BATCH_LINES or room <= 0:
            yield batch
            batch, room = [], BATCH_BYTES
    if batch:
        yield batch


def size(paths: list[Path]) -> int | None:
    """Bytes of the files together, as they are on disk; None where one is no plain file."""
    if any(not path.is_file() for path in paths):
        return None
    return sum(path.stat().st_size for path in paths)


def _open(path: Path) -> IO[bytes]:
    return sys.stdin.buffer if path == STANDARD_INPUT else path.open("rb")


def _lines(file: io.BufferedReader) -> Iterator[bytes]:
    readline, most = file.readline, MAX_BYTES + 2
    while line := readline(most):
        rest = line
        while len(rest) == most and not rest.endswith(b"\n"):
            rest = readline(most)  # of a line that is too large anyway
        if not line.isspace():
            yield line.rstrip(b"\r\n")


class _Counted(io.RawIOBase):
    """A file that tells how far it was read."""

    def __init__(self, file: IO[bytes], advanced: Callable[[int], object]) -> None:
        self._file = file
        self._advanced = advanced

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._file.read(len(buffer))
        buffer[: len(data)] = data
        self._advanced(len(data))
        return len(data)
