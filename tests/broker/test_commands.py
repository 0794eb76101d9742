"""The commands that work on a real Apache Kafka: topics, generate, load."""

from itertools import pairwise
from pathlib import Path

import msgspec
import orjson
import pytest

from stream.domains import discover
from stream.partitioner import partition_for
from stream.position import POSITION, Place, Position
from stream.topics import CHANGELOG, OUTPUTS
from tests.broker.conftest import Kafka
from tests.broker.harness import Service
from tests.broker.worker import tagstream

pytestmark = pytest.mark.broker

DAY_MS = 86_400_000
START_MS = 1_735_660_800_000  # 2025-01-01T00:00:00+08:00


def events(path: Path, *days: float) -> Path:
    """A file with one order on each of these days after the start."""
    orders = [
        {"event_id": f"{path.name}-{number}", "type": "order", "amount": 5}
        | {"user_id": f"u{number % 7}", "ts": START_MS + int(day * DAY_MS)}
        for number, day in enumerate(days)
    ]
    path.write_bytes(b"".join(orjson.dumps(order) + b"\n" for order in orders))
    return path


def test_topics_are_made_once_checked_ever_after_and_never_changed(
    kafka: Kafka, prefix: str, tmp_path: Path
) -> None:
    """A second run finds nothing to do; another partition count is a problem with its remedy."""
    with Service(kafka.cluster, prefix, tmp_path) as service:
        again = tagstream("topics", settings=service.settings)
        assert again.returncode == 0
        assert again.stdout.count("ok     ") == len(discover()) + len(OUTPUTS)
        assert f"{prefix}tagstream-state-changelog: 4 partitions, keeps the last" in again.stdout
        for args in (["topics"], ["topics", "--check"], ["worker"], ["load", "-"]):
            refused = tagstream(*args, settings={**service.settings, "TAGSTREAM_PARTITIONS": "8"})
            assert refused.returncode == 1
            assert (
                f"{prefix}purchases has 4 partitions, TAGSTREAM_PARTITIONS is 8" in refused.stderr
            )
            assert "Traceback" not in refused.stderr


def test_a_check_creates_nothing(kafka: Kafka, prefix: str, tmp_path: Path) -> None:
    """What is missing is said, and still is missing afterwards; a worker refuses to start."""
    settings = Service(kafka.cluster, prefix, tmp_path).settings
    for args in (["topics", "--check"], ["topics", "--check"], ["worker"]):
        refused = tagstream(*args, settings=settings)
        assert refused.returncode == 1
        assert f"tagstream: {prefix}purchases is missing: run 'tagstream topics'" in refused.stderr


@pytest.mark.parametrize("partitioner", ["murmur2", "crc32"])
def test_generated_events_are_where_their_owner_looks(
    kafka: Kafka, prefix: str, tmp_path: Path, partitioner: str
) -> None:
    """As many as asked for, each under its user's key in the partition of the setting."""
    with Service(kafka.cluster, prefix, tmp_path, partitioner=partitioner) as service:
        made = tagstream("generate", "--count", "3000", "--users", "50", settings=service.settings)
        assert made.returncode == 0, made.stderr
        assert service.source.read() == 3000
        for number, records in enumerate(service.source.partitions):
            for record in records:
                key = record.decoded()["user_id"].encode()
                assert (record.key, number) == (key, partition_for(key, 4, partitioner))


def test_history_is_merged_by_time_and_refused_where_it_would_come_late(
    kafka: Kafka, prefix: str, tmp_path: Path
) -> None:
    """Files in any order, one of them unsorted; a second history must begin where this ended."""
    first = events(tmp_path / "first", *(day / 10 for day in range(0, 400, 2)))
    mixed = events(tmp_path / "mixed", 39, *(day / 10 for day in range(1, 380, 2)), 0.1)
    mixed.write_bytes(mixed.read_bytes() + b"no event\n")
    with Service(kafka.cluster, prefix, tmp_path) as service:
        loaded = tagstream("load", str(mixed), str(first), settings=service.settings)
        assert loaded.returncode == 0, loaded.stderr
        assert "393 events, the first of 2024-12-31T16:00:00.000Z" in loaded.stderr
        assert service.source.read() == 392  # what is no event went to the first domain
        for records in service.source.partitions:
            times = [record.decoded()["ts"] for record in records if record.key]
            assert all(before <= after for before, after in pairwise(times))

        refused = tagstream("load", str(first), settings=service.settings)
        assert refused.returncode == 1
        assert "purchases already holds an event of" in refused.stderr
        later = events(tmp_path / "later", 40, 41)
        assert tagstream("load", str(later), settings=service.settings).returncode == 0
        assert service.source.read() == 394


def test_history_is_refused_where_the_state_is_ahead_of_it(
    kafka: Kafka, prefix: str, tmp_path: Path
) -> None:
    """Time that passed on the wall clock counts too: what is older would be late."""
    reached = Place(newest_ms=-1, time_ms=START_MS + DAY_MS)
    position = Position("any", 4, "murmur2", "Asia/Shanghai", {"purchases": reached}, [])
    with Service(kafka.cluster, prefix, tmp_path) as service:
        row = (POSITION.decode(), msgspec.msgpack.encode(position))
        service.send([row], topic=f"{prefix}{CHANGELOG}")
        refused = tagstream("load", str(events(tmp_path / "e", 0.5)), settings=service.settings)
        assert refused.returncode == 1
        assert "the state has reached 2025-01-01T16:00:00.000Z" in refused.stderr
        later = events(tmp_path / "later", 1, 2)
        assert tagstream("load", str(later), settings=service.settings).returncode == 0
