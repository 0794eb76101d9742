"""Exactly once, whatever befalls workers, disks and brokers: read-committed outputs equal the
reference, nothing missing, nothing twice.

Events of all domains flow all the time, some in transactions of their own. A worker that
ends by itself is started again, as any deployment would.
"""

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.broker.cluster import Cluster
from tests.broker.conftest import Kafka
from tests.broker.everything import EVERY_TAG, everything
from tests.broker.harness import Service
from tests.broker.purchases import orders_now
from tests.broker.worker import Worker

pytestmark = pytest.mark.broker

QUICK_CHURN = """\
version: 1
timezone: UTC
max_lateness: 1d
allowed_delay: 1s
churn: {mode: silence, after: 12s, lead: 2s}
tags:
  - {name: slipping, title: S, domain: purchases, when: churn_state != 'none'}
"""
#: Some of the tags changed, some gone, some new, and deadlines follow sooner.
OTHER_TAGS = (
    EVERY_TAG.replace("version: 1", "version: 2")
    .replace("allowed_delay: 1h", "allowed_delay: 5m")
    .replace("days_since_order >= 3", "days_since_order >= 2")
    .replace("contacts_month > 2", "contacts_month > 1")
    .replace("name: fond", "name: very_fond")
    .replace("unanswered >= 3", "unanswered >= 2")
    .replace("some: spend_30d >= 300 or", "some: spend_30d >= 200 or")
)
SHORT_FLUSHES = {"TAGSTREAM_FLUSH_MS": "20"}  # so that faults hit many of them


@pytest.fixture
def service(kafka: Kafka, prefix: str, tmp_path: Path) -> Iterator[Service]:
    """Two workers that share four partitions."""
    with Service(
        kafka.cluster, prefix, tmp_path, tags=EVERY_TAG, settings=SHORT_FLUSHES
    ) as service:
        service.start("a", "b")
        yield service


def test_a_worker_killed_and_started_again_goes_on(service: Service) -> None:
    """SIGKILL in the middle of flushes; the worker returns with its disk and its name."""
    with service.feeding(everything(seed=11)):
        for _ in range(3):
            service.wait_progress()
            service.workers["a"].kill()
            service.start("a")
        service.wait_progress()
    service.check()


def test_a_worker_killed_for_good_is_replaced_by_the_others(service: Service) -> None:
    """The other one takes its partitions once its session is over."""
    with service.feeding(everything(seed=12)):
        service.wait_progress()
        service.workers["a"].kill()
        service.wait_shares(4)
        service.wait_progress()
    service.check()


def test_a_worker_that_sleeps_through_its_session_is_fenced(service: Service) -> None:
    """SIGSTOP for longer than the session: others go on, and what it wakes up with stays unseen."""
    with service.feeding(everything(seed=13)):
        service.wait_progress()
        sleeper = service.workers["a"]
        sleeper.pause()
        service.wait_until(
            lambda: service.workers["b"].partitions() == 4, "all partitions with the other"
        )
        service.wait_progress()
        sleeper.resume()
        service.wait_progress()
        service.wait_shares(2, 2)
        service.wait_progress()
    service.check()


def test_a_deleted_disk_is_rebuilt_from_the_changelog(service: Service) -> None:
    """A worker killed and its data directory gone: nothing on it was the only copy."""
    with service.feeding(everything(seed=14)):
        for _ in range(2):
            service.wait_progress()
            service.workers["a"].kill()
            service.workers["a"].delete_disk()
            service.start("a")
        service.wait_progress()
    service.check()


def test_definitions_change_in_the_middle_and_a_worker_is_killed(service: Service) -> None:
    """While users are taken up, the one that does is killed and returns, or does not."""
    with service.feeding(everything(seed=16)):
        service.wait_progress()
        service.change_tags(OTHER_TAGS)
        service.wait_switched()
        service.workers["a"].kill()
        service.start("a")
        service.wait_progress()
    service.check()


def test_wall_time_never_runs_ahead_of_what_waits(
    kafka: Kafka, prefix: str, tmp_path: Path
) -> None:
    """A worker asleep for longer than the silence that counts as churn wakes to a backlog of
    orders: nobody was silent, so nobody is warned of. Once nobody orders, everybody is.
    """
    users, silence_ms = 20, 10_000
    settings = {"TAGSTREAM_TIME": "wall", "TAGSTREAM_SESSION_TIMEOUT_MS": "60000"}
    with Service(kafka.cluster, prefix, tmp_path, tags=QUICK_CHURN, settings=settings) as service:
        service.start("a")
        worker = service.workers["a"]

        def applied() -> bool:
            return worker.metric("tagstream_events_total") >= sum(
                1 for _ in service.source.records()
            )

        with service.feeding(orders_now(users), per_s=100):
            service.wait_until(lambda: service.source.read() > 100, "orders")
            service.wait_until(applied, "orders applied")
            worker.pause()
            paused_ms = service.source.newest_ms()
            service.wait_until(
                lambda: (
                    service.source.read() and service.source.newest_ms() > paused_ms + silence_ms
                ),
                "a backlog longer than the silence",
            )
            worker.resume()
            service.wait_until(applied, "the backlog applied")
            assert service.warnings.read() == 0
        service.wait_until(lambda: service.warnings.read() >= users, "a warning for every user")
        raised = [warning.decoded() for warning in service.warnings.records()]
        assert {warning["status"] for warning in raised} <= {"raised", "churned", "scored"}
        assert len({warning["user_id"] for warning in raised}) == users


def test_a_restarted_broker_is_waited_for(prefix: str, tmp_path: Path) -> None:
    """The only broker is killed in the middle of transactions, paused, and stopped in order."""
    with (
        Cluster(tmp_path / "kafka") as cluster,
        Service(
            cluster, prefix, tmp_path / "service", tags=EVERY_TAG, settings=SHORT_FLUSHES
        ) as service,
    ):
        service.start("a", "b")
        with service.feeding(everything(seed=15)):
            service.wait_progress()
            cluster.kill()
            cluster.restart()
            service.wait_progress()
            cluster.stop()
            cluster.start()
            service.wait_progress()
        service.check()


@pytest.mark.parametrize("seed", [1, 2])
def test_any_faults_in_any_order(prefix: str, tmp_path: Path, seed: int) -> None:
    """Three workers and a broker, each fault once, drawn in random order and on random workers."""
    rng = random.Random(seed)
    with (
        Cluster(tmp_path / "kafka") as cluster,
        Service(
            cluster, prefix, tmp_path / "service", tags=EVERY_TAG, settings=SHORT_FLUSHES
        ) as service,
    ):

        def kill(worker: Worker) -> None:
            worker.kill()

        def lose_disk(worker: Worker) -> None:
            worker.kill()
            worker.delete_disk()

        def sleep_through_the_session(worker: Worker) -> None:
            worker.pause()
            others = [each for each in service.workers.values() if each is not worker]
            service.wait_until(
                lambda: sum(each.partitions() for each in others) == 4, "all with the others"
            )
            worker.resume()
            # What it says of itself is old until it has noticed: then it ends, or joins again.
            service.wait_until(
                lambda: sum(each.partitions() for each in (worker, *others)) == 4,
                "the sleeper noticed",
            )

        def crash_the_broker(_: Worker) -> None:
            cluster.kill()
            cluster.restart()

        def stop_in_order(worker: Worker) -> None:
            worker.stop()

        faults = [kill, lose_disk, sleep_through_the_session, crash_the_broker, stop_in_order]
        service.start("a", "b", "c")
        with service.feeding(everything(seed=100 + seed)):
            for fault in rng.sample(faults, len(faults)):
                service.wait_progress(rng.randrange(200))
                fault(rng.choice(list(service.workers.values())))
                service.wait_whole()
            service.wait_progress()
        service.check()
