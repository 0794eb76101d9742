"""The whole service on its embedded broker, a process of its own: killed, robbed, equal.

Events come in by HTTP while the worker is killed with -9 again and again and its disk is
deleted; what it has said in the end equals the naive reference, with nothing said twice.
"""

import asyncio
import shutil
import urllib.error
import urllib.request
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import orjson

from stream import data
from stream.app import Tagstream
from stream.broker import LocalBroker
from stream.domains import discover
from stream.rules import load
from stream.settings import Settings
from tests.broker.worker import Worker, wait_until
from tests.reference import by_user, run

PARTITIONS = 4
USERS, EVENTS, BATCH = 40, 1_500, 50
START_MS = 1_750_000_000_000
HOUR_MS = 3_600_000


def events(chance: Random) -> list[dict[str, Any]]:
    """Ninety days of orders, refunds and registrations, some late, some repeated."""
    made: list[dict[str, Any]] = []
    for number in range(EVENTS):
        ts = START_MS + number * 90 * 24 * HOUR_MS // EVENTS
        if chance.random() < 0.1:
            ts -= chance.randrange(48 * HOUR_MS)
        kind = chance.choice(["order"] * 8 + ["refund", "registered"])
        event = {
            "event_id": f"e{number}",
            "user_id": f"u{chance.randrange(USERS)}",
            "type": kind,
            "ts": ts,
        }
        if kind != "registered":
            event["amount"] = chance.randrange(1, 90_000) / 100
        made.append(event)
        if chance.random() < 0.03:
            made.append(chance.choice(made[-100:]))
    return made


def post(worker: Worker, batch: list[dict[str, Any]]) -> bool:
    """Whether the worker has said that it has them."""
    request = urllib.request.Request(
        f"http://127.0.0.1:{worker.port}/events",
        orjson.dumps(batch),
        {"Content-Type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return bool(answer.status == 202)
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return False


def read(broker: LocalBroker, topic: str) -> list[tuple[int, dict[str, Any]]]:
    """Every record of a topic with its partition."""
    return [
        (partition, orjson.loads(record.value or b""))
        for partition in range(PARTITIONS)
        for record in broker.read(topic, partition, 0, max_records=1_000_000)
    ]


async def finish(worker: Worker) -> None:
    """Apply what the worker left when it was told to stop, in this process."""
    domains = discover()
    settings = Settings.load({}, worker.settings)
    service = Tagstream(settings, load(settings.tags, domains), domains)
    await service.start(web=False)
    await service.until_ready()
    await service.drained()
    await service.stop()


def test_killed_again_and_again_the_outputs_equal_the_reference(tmp_path: Path):
    """Nothing lost, nothing twice, nothing wrong."""
    chance = Random(3)
    # Sources are kept, unlike by default: the reference reads them afterwards.
    settings = {
        "TAGSTREAM_BROKER": f"local://{tmp_path / 'broker'}",
        "TAGSTREAM_PARTITIONS": str(PARTITIONS),
        "TAGSTREAM_TIME": "events",
    }
    worker = Worker(tmp_path / "worker", settings).start()
    worker.wait_ready()
    made = events(chance)
    for number, first in enumerate(range(0, len(made), BATCH)):
        batch = made[first : first + BATCH]
        if number % 5 == 4:
            worker.kill()
            if chance.random() < 0.5:
                shutil.rmtree(tmp_path / "worker" / "data" / "state")
            worker.start()
            worker.wait_ready()
        wait_until(partial(post, worker, batch), "the worker takes events")
    worker.stop()
    asyncio.run(finish(worker))
    with LocalBroker(tmp_path / "broker") as broker:
        sources = read(broker, "purchases")
        changes = [change for _, change in read(broker, "tag-changes")]
        warnings = [warning for _, warning in read(broker, "churn-warnings")]
    reference = run(load(data.TAGS, discover()), sources)
    assert len(sources) >= len(made)
    assert by_user(changes) == by_user(reference.changes)
    assert by_user(warnings) == by_user(reference.warnings)
    assert len({change["change_id"] for change in changes}) == len(changes)
    assert len({(w["warning_id"], w["status"]) for w in warnings}) == len(warnings)
