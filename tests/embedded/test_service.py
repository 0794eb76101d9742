"""The whole service on its embedded broker, a process of its own: killed, robbed, equal.

Events come in by HTTP while the worker is killed with -9 again and again and its disk is
deleted; what it has said in the end equals the naive reference, with nothing said twice.
"""

import asyncio
import itertools
import shutil
import urllib.error
import urllib.request
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import orjson

from stream.app import Tagstream
from stream.broker import LocalBroker
from stream.domains import discover
from stream.rules import load
from stream.settings import Settings
from tests.broker.everything import EVERY_TAG, everything, unusable
from tests.broker.worker import Worker, wait_until
from tests.reference import DOMAINS, by_domain, by_user, run, settled, telling

PARTITIONS = 4
USERS, EVENTS, BATCH = 40, 2_500, 100


def events() -> list[dict[str, Any]]:
    """Some weeks of all domains: late, repeated, at midnight, and users who are forgotten."""
    return [
        orjson.loads(sent.value)
        for sent in itertools.islice(everything(seed=3, users=USERS), EVENTS)
        if not unusable(sent.value)
        # An erasure is one event for all domains.
        if b"erase" not in sent.value or sent.domain == "purchases"
    ]


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
    """Nothing lost, nothing twice, nothing wrong, in any domain."""
    chance = Random(3)
    (tmp_path / "tags.yaml").write_text(EVERY_TAG)
    # Sources are kept, unlike by default: the reference reads them afterwards.
    settings = {
        "TAGSTREAM_BROKER": f"local://{tmp_path / 'broker'}",
        "TAGSTREAM_PARTITIONS": str(PARTITIONS),
        "TAGSTREAM_TIME": "events",
        "TAGSTREAM_TAGS": str(tmp_path / "tags.yaml"),
    }
    worker = Worker(tmp_path / "worker", settings).start()
    worker.wait_ready()
    made = events()
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
        sources = [
            (partition, event, domain)
            for domain in DOMAINS
            for partition, event in read(broker, domain)
        ]
        changes = [change for _, change in read(broker, "tag-changes")]
        warnings = [warning for _, warning in read(broker, "churn-warnings")]
    rules = load(tmp_path / "tags.yaml", discover())
    reference = run(rules, sources)
    assert len(sources) >= len(made)
    assert by_domain(changes) == by_domain(reference.changes)
    assert settled(changes) == settled(reference.changes)
    own = {tag.name for tag in rules.tags if tag.domain == "purchases"}
    told, expected = (telling(own, records) for records in (warnings, reference.warnings))
    assert by_user(told) == by_user(expected)
    assert len({change["change_id"] for change in changes}) == len(changes)
    assert len({(w["warning_id"], w["status"]) for w in warnings}) == len(warnings)
