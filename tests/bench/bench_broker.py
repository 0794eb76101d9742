"""The embedded broker's rates, its latency through Faust, and what it costs while idle.

    python -m tests.bench.bench_broker [--records 2000000]

Records of 150 bytes, 8 partitions. Rates are of one thread in Python; CPU is the process's, with
RocksDB's own threads. Files are made in the system's temporary directory.
"""

import argparse
import asyncio
import contextlib
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import faust
from faust.types import TP

from stream.assignor import NumberAssignor
from stream.broker import LocalBroker
from stream.chunks import chunk_topic, events
from stream.local import LocalJournal
from stream.log import Row
from stream.membership import Membership

PARTITIONS = 8
CHUNK = 2_000
PINGS = 2_000
IDLE_S = 5.0


@contextlib.contextmanager
def timed(name: str, records: int) -> Iterator[None]:
    cpu, wall = time.process_time(), time.perf_counter()
    yield
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    print(
        f"{name:44} {records / wall / 1e6:7.2f} M records/s"
        f" {cpu / records * 1e6:7.2f} CPU s per million"
    )


def rows_of(n: int, keys: int) -> list[Row]:
    """``n`` rows of 150 bytes, half of each value noise, as JSON with ids is."""
    return [
        (b"user-%08d" % (i * 7_919 % keys), b'{"event_id":"%s"}' % os.urandom(60).hex().encode())
        for i in range(n)
    ]


def storage(directory: Path, records: int, *, sync: bool) -> None:
    """Append and read back, in chunks; then small appends; then a compaction."""
    rows = rows_of(CHUNK, 1_000_000)
    kind = "on disk, sync=commit" if sync else "on disk"
    with LocalBroker(directory / kind, sync=sync) as broker:
        broker.create_topic("events", PARTITIONS)
        with timed(f"{kind}: append, {CHUNK} a time", records):
            for i in range(records // CHUNK):
                broker.produce_to("events", i % PARTITIONS, rows)
        if sync:
            return
        with timed(f"{kind}: read, {CHUNK} a time", records):
            for p in range(PARTITIONS):
                offset = 0
                while offset < broker.end("events", p):
                    _, offset = broker.fetch("events", p, offset)
        broker.create_topic("spread", PARTITIONS)
        with timed(f"{kind}: produce by key, {CHUNK} a time", records // 4):
            for _ in range(records // 4 // CHUNK):
                broker.produce("spread", rows)
        broker.create_topic("commits", PARTITIONS)
        broker.create_topic("changes", PARTITIONS)
        with timed(f"{kind}: commit, 20 rows to each of two topics", 40 * 5_000):
            for i in range(5_000):
                p = i % PARTITIONS
                broker.append_many({("commits", p): rows[:20], ("changes", p): rows[:20]})


def compaction(directory: Path, records: int) -> None:
    """The upkeep of one changelog partition of 50,000 keys, and what readers notice of it."""
    with LocalBroker(directory / "compaction") as broker:
        broker.create_topic("rows", 1)
        for _ in range(records // 50_000):
            rows = rows_of(50_000, 50_000)
            for first in range(0, len(rows), CHUNK):
                broker.produce_to("rows", 0, rows[first : first + CHUNK])
        log, gaps = broker._log("rows", 0), []
        with timed("compaction to 50,000 keys, in the background", log.end):
            work = threading.Thread(
                target=lambda: broker._store.compact(log, tombstones_ms=0, stopped=lambda: False)
            )
            work.start()
            last = time.perf_counter()
            while work.is_alive():
                time.sleep(0.001)
                now = time.perf_counter()
                gaps.append(now - last - 0.001)
                last = now
        print(f"{'  keeps the event loop, at most':44} {max(gaps) * 1e3:7.1f} ms")


def reader(broker: LocalBroker, directory: Path, seen: Callable[[list[Any]], None]) -> Any:
    """A Faust app that hands the records of topic ``events`` to ``seen``."""
    app = faust.App(
        "bench",
        broker=broker.url,
        store="memory://",
        datadir=directory / "faust",
        topic_disable_leader=True,
        topic_allow_declare=False,
        web_enabled=False,
        stream_wait_empty=False,
        TableManager=Membership,
        PartitionAssignor=NumberAssignor,
    )

    class Ownership:
        def assigned(self, numbers: set[int], generation: int) -> None:
            app.add_future(app.consumer.release({TP("events", p): 0 for p in numbers}))

        async def revoked(self, numbers: set[int]) -> None:
            pass

    async def read(stream: Any) -> None:
        async for event in events(stream):
            seen(event.value.records)
            event.ack()

    app.ownership = Ownership()
    app.agent(chunk_topic(app, "events", PARTITIONS), name="read")(read)
    return app


async def through_faust(directory: Path, records: int) -> None:
    """A backlog through an empty agent, then one record at a time, then nothing."""
    rows = rows_of(CHUNK, 1_000_000)
    left, done, delays = records, asyncio.Event(), list[float]()

    def seen(found: list[Any]) -> None:
        nonlocal left
        if left <= 0:
            delays.extend(time.perf_counter() - float(record.value) for record in found)
        left -= len(found)
        if left <= 0:
            done.set()

    with LocalBroker(directory / "faust-log") as broker:
        broker.create_topic("events", PARTITIONS)
        for i in range(records // CHUNK):
            broker.produce_to("events", i % PARTITIONS, rows)
        app = reader(broker, directory, seen)
        began = time.perf_counter()
        with timed("through Faust, an empty agent", records):
            await app.start()
            started = time.perf_counter()
            await done.wait()
        print(f"{'app.start()':44} {(started - began) * 1e3:7.1f} ms")
        for i in range(PINGS):
            done.clear()
            broker.produce("events", [(b"%d" % i, b"%.9f" % time.perf_counter())])
            await done.wait()
        delays.sort()
        for name, share in (("p50", 0.5), ("p99", 0.99)):
            print(
                f"{f'from produce to agent, {name}':44} {delays[int(PINGS * share)] * 1e3:7.2f} ms"
            )
        cpu = time.process_time()
        await asyncio.sleep(IDLE_S)
        print(f"{'idle':44} {(time.process_time() - cpu) / IDLE_S * 100:7.2f} % CPU")
        began = time.perf_counter()
        await app.stop()
        print(f"{'app.stop()':44} {(time.perf_counter() - began) * 1e3:7.1f} ms")


async def recovery(directory: Path, records: int) -> None:
    """What a journal's reader gives recovery, from commits of 200 rows."""
    rows = rows_of(200, 1_000_000)
    with LocalBroker(directory / "recovery") as broker:
        broker.create_topic("rows", 1)
        journal = LocalJournal(broker, changelog="rows", partition=0)
        await journal.open()
        for _ in range(records // len(rows)):
            await journal.commit({"rows": rows})
        with timed("journal: read, from commits of 200 rows", records):
            async for _ in journal.read(*await journal.bounds()):
                pass
        await journal.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=int, default=2_000_000)
    records = parser.parse_args().records
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        storage(directory, records, sync=False)
        storage(directory, records // 10, sync=True)
        compaction(directory, records // 2)
        asyncio.run(recovery(directory, records // 2))
        asyncio.run(through_faust(directory, records))


if __name__ == "__main__":
    main()
