"""The ground of every benchmark: a broker of its own, counted input, one worker, a table.

Everything runs on this machine and shares its cores. What is started here is stopped at
the end, and what is written is deleted.
"""

import argparse
import contextlib
import random
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from confluent_kafka.admin import AdminClient
from rich.console import Console
from rich.table import Table

from tests.broker.cluster import Cluster
from tests.broker.harness import Service
from tests.broker.purchases import DAY_MS, Sent
from tests.broker.worker import Worker, wait_until

LIMIT_S = 900.0  # no phase of a benchmark may take longer
START_MS = 1_767_196_800_000  # 2026-01-01 00:00 in Shanghai, where the shipped tags are at home


def arguments(description: str | None, **counts: int) -> argparse.Namespace:
    """The command line of a benchmark: every count an option with its default."""
    first_line = (description or "").partition("\n")[0]
    parser = argparse.ArgumentParser(
        description=first_line, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    for name, default in counts.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=default, help=" ")
    return parser.parse_args()


@contextlib.contextmanager
def broker() -> Iterator[Cluster]:
    """A broker; append times are its own."""
    log_append_time = {"log.message.timestamp.type": "LogAppendTime"}
    with (
        tempfile.TemporaryDirectory(prefix="tagstream-bench-") as name,
        Cluster(Path(name), settings=log_append_time) as cluster,
    ):
        yield cluster


@contextlib.contextmanager
def deployed(
    *,
    partitions: int,
    tags: str | None = None,
    settings: Mapping[str, str] | None = None,
    cluster: Cluster | None = None,
    prefix: str = "bench-",
) -> Iterator[Service]:
    """The service on a broker of its own, or under a ``prefix`` of its own on one there is, from
    which its topics are deleted at the end: compacting them would slow down what comes after.
    """
    with contextlib.ExitStack() as opened:
        on = cluster or opened.enter_context(broker())
        directory = opened.enter_context(tempfile.TemporaryDirectory(prefix="tagstream-bench-"))
        service = Service(
            *(on, prefix, Path(directory)), partitions=partitions, tags=tags, settings=settings
        )
        with service:
            yield service
        if cluster is not None:
            admin = AdminClient(service.client)
            ours = [name for name in admin.list_topics().topics if name.startswith(prefix)]
            for deleted in admin.delete_topics(ours).values():
                deleted.result()


def orders(
    count: int, users: int, *, days: float = 30, skew: float = 2, start_ms: int = START_MS
) -> Iterator[Sent]:
    """``count`` events in order of time over ``days`` days: 95 % orders, 5 % refunds.

    ``skew`` 1 chooses users uniformly; with 2 a quarter of the users has half of the events.
    """
    rng = random.Random(1)
    step_ms = days * DAY_MS / count
    for number in range(count):
        user = f"u{int(users * rng.random() ** skew):07d}"
        kind = "refund" if number % 20 == 0 else "order"
        yield user, order(f"e{number}", user, start_ms + int(number * step_ms), kind=kind)


def once_each(users: int, name: str, *, days: float) -> Iterator[Sent]:
    """One order of each user, in order of time over ``days`` days."""
    for number in range(users):
        user = f"{name}{number:07d}"
        yield user, order(f"first-{number}", user, START_MS + int(number * days * DAY_MS / users))


def order(event_id: str, user: str, ts_ms: int, *, kind: str = "order") -> bytes:
    """One event of about 100 bytes."""
    amount = ts_ms // 1000 % 49_900 + 100  # fen
    return (
        f'{{"event_id":"{event_id}","user_id":"{user}","type":"{kind}","ts":{ts_ms},'
        f'"amount":{amount // 100}.{amount % 100:02d}}}'
    ).encode()


@dataclass(frozen=True, slots=True)
class Pace:
    """What it took to work off some events: wall seconds, and CPU seconds of the process."""

    events: int
    seconds: float
    cpu_s: float

    @property
    def per_s(self) -> float:
        """Events per second."""
        return self.events / self.seconds

    @property
    def cells(self) -> list[str]:
        """Events, rate per second, CPU seconds per million."""
        per_million = self.cpu_s / self.events * 1e6
        return [f"{self.events:,}", f"{self.per_s:,.0f}", f"{per_million:.1f}"]

    COLUMNS = ("events", "events/s", "CPU s / million")


def work_off(service: Service, name: str = "worker") -> Pace:
    """Start a worker; measure from its being ready until all that was sent is committed.

    The first of several processes to be ready begins at once. The CPU seconds are those of the
    whole worker, its start included.
    """
    events = sum(service.source.ends())
    worker = service.workers.setdefault(name, Worker(service.directory / name, service.settings))
    worker.start()
    wait_until(worker.has_begun, "a process that is ready", LIMIT_S)
    began = time.monotonic()
    wait_until(lambda: committed(worker) >= events, "all events committed", LIMIT_S)
    return Pace(events, time.monotonic() - began, worker.cpu_s())


def committed(worker: Worker) -> float:
    """Offsets of the source that are in committed transactions; looks twice a second.

    More often the answers, every metric there is, would be a part of what is measured.
    """
    time.sleep(0.5)
    return worker.metric("tagstream_committed_offset")


def disk_bytes(directory: Path) -> int:
    """Bytes on disk of everything under ``directory``."""
    return sum(path.stat().st_blocks * 512 for path in directory.rglob("*") if path.is_file())


def progress(line: str) -> None:
    """Say how far a long benchmark is, beside its table."""
    print(line, file=sys.stderr, flush=True)


def show(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table; the first column is text, the others numbers."""
    table = Table()
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    console = Console(width=120)
    console.print(title)
    console.print(table)
