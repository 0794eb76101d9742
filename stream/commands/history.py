"""Files of events as one history in order of event time.

A file that is in order already is only read; one that is not, or that can be read only once,
is cut into sorted runs on disk first. Then all are merged line by line: memory holds one run
of `RUN_BYTES` while sorting and one line per run while merging, however long the history is.

Equal times keep the order of files and lines. A line without a time stands where it stood,
right behind the line before it.
"""

import heapq
import struct
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from operator import itemgetter
from pathlib import Path

from stream import lines
from stream.lines import Router

RUN_BYTES = 64 << 20
UNDATED = -1  # before every time: lines that no line with a time comes before

_HEAD = struct.Struct(">qI")  # event time, bytes of the line
_time = itemgetter(0)

Dated = tuple[int, bytes]  # the event time that a line is merged by, and the line


@dataclass(frozen=True, slots=True)
class History:
    """What the files hold together. ``begins_ms`` is None where no line has a time."""

    count: int
    begins_ms: int | None
    sources: Sequence[Callable[[], Iterator[Dated]]]  # each in order

    def __iter__(self) -> Iterator[bytes]:
        """The lines, in order of event time."""
        merged = heapq.merge(*(source() for source in self.sources), key=_time)
        return (line for _, line in merged)


def examine(
    paths: Sequence[Path], router: Router, folder: Path, advanced: Callable[[Path, int], object]
) -> History:
    """Read the files once, and sort into ``folder`` what has to be sorted.

    ``advanced(path, n)`` is told of bytes read of a file that is no standard input.

    Raises:
        UsageError: a file cannot be read.
    """
    tallies: list[_Tally] = []
    sources: list[Callable[[], Iterator[Dated]]] = []
    for number, path in enumerate(paths):
        read = partial(_dated, path, router)
        tally = _Tally()
        if path != lines.STANDARD_INPUT:
            deque(tally.watch(read(partial(advanced, path))), maxlen=0)
            if tally.ordered:
                sources.append(read)
        if path == lines.STANDARD_INPUT or not tally.ordered:
            tally = _Tally()
            runs = _sort(tally.watch(read()), folder, str(number))
            sources += [partial(_run, run) for run in runs]
        tallies.append(tally)
    begins = [tally.begins_ms for tally in tallies if tally.begins_ms is not None]
    return History(sum(tally.count for tally in tallies), min(begins, default=None), sources)


class _Tally:
    """What is learned of lines that pass by."""

    def __init__(self) -> None:
        self.count = 0
        self.begins_ms: int | None = None
        self.ordered = True

    def watch(self, dated: Iterable[Dated]) -> Iterator[Dated]:
        before_ms = UNDATED
        for item in dated:
            ts_ms = item[0]
            self.count += 1
            if ts_ms < before_ms:
                self.ordered = False
            if ts_ms != UNDATED and (self.begins_ms is None or ts_ms < self.begins_ms):
                self.begins_ms = ts_ms
            before_ms = ts_ms
            yield item


def _dated(
    path: Path, router: Router, advanced: Callable[[int], object] = lambda _: None
) -> Iterator[Dated]:
    """Each line with its own time, or else with that of the line before."""
    ts_ms = UNDATED
    for line in lines.read(path, advanced):
        own_ms = router.route(line).ts_ms
        ts_ms = ts_ms if own_ms is None else own_ms
        yield ts_ms, line


def _sort(dated: Iterator[Dated], folder: Path, name: str) -> list[Path]:
    """Runs of the lines, each in order, on disk."""
    runs: list[Path] = []
    while run := _take(dated):
        run.sort(key=_time)
        runs.append(folder / f"{name}-{len(runs)}")
        with runs[-1].open("wb") as file:
            file.writelines(_HEAD.pack(ts_ms, len(line)) + line for ts_ms, line in run)
    return runs


def _take(dated: Iterator[Dated]) -> list[Dated]:
    run: list[Dated] = []
    room = RUN_BYTES
    for item in dated:
        run.append(item)
        room -= len(item[1]) + 150  # about what Python adds
        if room <= 0:
            break
    return run


def _run(path: Path) -> Iterator[Dated]:
    with path.open("rb") as file:
        while head := file.read(_HEAD.size):
            ts_ms, size = _HEAD.unpack(head)
            yield ts_ms, file.read(size)
