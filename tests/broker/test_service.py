"""The service on a real Apache Kafka, undisturbed: what comes out is what the reference says."""

import itertools
import json
import os
import signal
from pathlib import Path

import pytest

from tests.broker.cluster import Listener
from tests.broker.conftest import Kafka
from tests.broker.everything import EVERY_TAG, everything
from tests.broker.harness import Service
from tests.broker.purchases import purchases

pytestmark = pytest.mark.broker


@pytest.mark.parametrize("partitioner", ["murmur2", "crc32"])
def test_one_worker_emits_what_the_reference_says(
    kafka: Kafka, prefix: str, tmp_path: Path, partitioner: str
) -> None:
    """Backlog first, then live, under the partitioner of Java's clients and of librdkafka's."""
    events = everything(seed=1)
    with Service(
        kafka.cluster, prefix, tmp_path, partitioner=partitioner, tags=EVERY_TAG
    ) as service:
        service.send(itertools.islice(events, 1_000), codec="lz4")
        service.start("a")
        with service.feeding(events):
            service.wait_progress(2_000)
        service.check()


@pytest.mark.parametrize("listener", ["SASL", "TLS"])
def test_a_secured_broker_is_reached_by_settings_alone(
    kafka: Kafka, prefix: str, tmp_path: Path, listener: Listener
) -> None:
    """Topics are made, joined, read and written over the listener that asks for more."""
    with Service(kafka.cluster, prefix, tmp_path, listener=listener) as service:
        service.send(itertools.islice(purchases(seed=2), 500))
        service.start("a")
        service.check()


def test_two_workers_share_the_partitions_and_a_third_takes_some(
    kafka: Kafka, prefix: str, tmp_path: Path
) -> None:
    """Joining and leaving in order moves partitions; nothing is lost or repeated on the way."""
    events = everything(seed=3)
    with Service(kafka.cluster, prefix, tmp_path, partitions=6, tags=EVERY_TAG) as service:
        service.start("a", "b")
        with service.feeding(events):
            service.wait_progress()
            service.wait_shares(3, 3)
            service.start("c")
            service.wait_shares(2, 2, 2)
            service.wait_progress()
            service.workers["a"].stop()
            service.wait_shares(3, 3)
            service.wait_progress()
        service.check()


def test_a_worker_of_several_processes_is_as_many_members(
    kafka: Kafka, prefix: str, tmp_path: Path
) -> None:
    """They share its partitions, each answers for all; what comes out is what one would say. One
    that dies takes the worker with it, which starts again where it was.
    """
    several = {"TAGSTREAM_PROCESSES": "2"}
    events = everything(seed=6)
    with Service(
        kafka.cluster, prefix, tmp_path, partitions=5, tags=EVERY_TAG, settings=several
    ) as service:
        service.start("a")
        worker = service.workers["a"]
        service.wait_until(lambda: sorted(worker.shares()) == [2, 3], "shares of 2 and 3")
        with service.feeding(events):
            service.wait_progress()
            os.kill(worker.children()[0], signal.SIGKILL)
            # Whoever waits starts a worker again that has ended.
            service.wait_until(lambda: "the others are stopped" in worker.tail(), "the end of all")
            service.wait_until(worker.ready, "the worker to be back")
            service.wait_progress()
        service.changes.read()
        user_id = next(service.changes.records()).decoded()["user_id"]
        for index in range(2):
            status, body = worker.get(f"/users/{user_id}", index)
            assert (status, json.loads(body)["user_id"]) == (200, user_id)
        service.check()


def test_every_worker_answers_for_every_user(kafka: Kafka, prefix: str, tmp_path: Path) -> None:
    """A look-up finds the owner from any worker, and its tags are those that were emitted."""
    with Service(kafka.cluster, prefix, tmp_path, tags=EVERY_TAG) as service:
        service.start("a", "b")
        service.send(itertools.islice(everything(seed=4), 500))
        service.wait_idle()
        difference: dict[str, object] = {}

        def told_what_is_emitted() -> bool:
            """Deadlines go on firing once all events are committed, so both may still move."""
            service.changes.read()
            tags: dict[str, dict[str, object]] = {}
            for change in (record.decoded() for record in service.changes.records()):
                tags.setdefault(change["user_id"], {})[change["tag"]] = change["value"]
            for (user, values), (name, worker) in itertools.product(
                itertools.islice(tags.items(), 20), service.workers.items()
            ):
                emitted = {tag: v for tag, v in values.items() if v is not None and v is not False}
                status, body = worker.get(f"/users/{user}")
                told = json.loads(body)["tags"] if status == 200 else {}
                if {tag: held["value"] for tag, held in told.items()} != emitted:
                    difference.update(worker=name, user=user, told=body, emitted=emitted)
                    return False
            return True

        try:
            service.wait_until(told_what_is_emitted, "every worker to tell what is emitted")
        except AssertionError as error:
            error.add_note(f"-- the last difference: {difference}")
            raise
        service.check()
