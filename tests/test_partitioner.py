"""The partitioners against the clients whose records they have to follow."""

import pytest
from aiokafka.partitioner import DefaultPartitioner
from confluent_kafka import Message, Producer
from hypothesis import given
from hypothesis import strategies as st

from stream.partitioner import partition_for

PARTITIONS = 4  # what librdkafka's mock cluster gives a topic


@given(st.binary(max_size=130), st.integers(1, 100))
def test_murmur2_is_that_of_aiokafka(key, partitions):
    """aiokafka's is tested against Java's; keys of every length modulo four."""
    numbers = list(range(partitions))
    assert partition_for(key, partitions, "murmur2") == DefaultPartitioner()(key, numbers, numbers)


@pytest.mark.parametrize(
    ("key", "hash"),
    [
        (b"21", -973932308),
        (b"foobar", -790332482),
        (b"a-little-bit-long-string", -985981536),
        (b"a-little-bit-longer-string", -1486304829),
        (b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58897971),
        (b"abc", 479470107),
    ],
)
def test_murmur2_has_the_hashes_that_kafka_promises(key, hash):
    """The values that Kafka's own UtilsTest.testMurmur2 pins down."""
    assert partition_for(key, 1 << 31, "murmur2") == hash & 0x7FFFFFFF


@pytest.mark.parametrize(
    ("client", "partitioner"), [({}, "crc32"), ({"partitioner": "murmur2_random"}, "murmur2")]
)
def test_keys_are_where_librdkafka_puts_them(client, partitioner):
    """Its default is CRC32; both are asked of the client itself, over its own mock cluster."""
    found: dict[bytes | None, int | None] = {}

    def delivered(error: object, record: Message) -> None:
        found[record.key()] = record.partition()

    producer = Producer(
        {"bootstrap.servers": "unused:1", "test.mock.num.brokers": 1, "log_level": 0, **client}
    )
    for i in range(500):
        producer.produce("topic", key=f"user-{i}", on_delivery=delivered)
    assert producer.flush(30) == 0

    assert len(found) == 500
    assert found == {key: partition_for(key or b"", PARTITIONS, partitioner) for key in found}


def test_another_partitioner_is_refused():
    """A typing error must not become a partitioner."""
    with pytest.raises(ValueError, match="'murmur3' is none of murmur2, crc32"):
        partition_for(b"key", 8, "murmur3")
