"""Which partition a key belongs to, as the producers of the world decide it.

``murmur2``: Java clients, Kafka Streams, aiokafka. ``crc32``: librdkafka's default for
records with a key (``consistent_random``), so confluent-kafka and most clients that are
not Java. The two disagree on almost every key, and ownership and look-ups follow one of
them: a setting decides which.
No Kafka in this file; a record without a key has no partition of its own and is not asked
about here.
"""

from functools import lru_cache
from struct import unpack_from
from zlib import crc32

PARTITIONERS = ("murmur2", "crc32")

_M = 0x5BD1E995
_MASK = 0xFFFFFFFF


def partition_for(key: bytes, partitions: int, partitioner: str) -> int:
    """Return the partition of ``key``, in ``[0, partitions)``.

    ``partitions`` is at least 1; ``partitioner`` is one of ``PARTITIONERS``.
    About 0.3 µs for CRC32 and for a key seen lately, 2 µs for a murmur2 seen anew.

    Raises:
        ValueError: no such partitioner.

    >>> partition_for(b"user-1", 8, "murmur2"), partition_for(b"user-1", 8, "crc32")
    (4, 4)
    """
    if partitioner == "murmur2":
        return (_murmur2(key) & 0x7FFFFFFF) % partitions
    if partitioner == "crc32":
        return crc32(key) % partitions
    raise ValueError(f"partitioner: {partitioner!r} is none of {', '.join(PARTITIONERS)}")


@lru_cache(maxsize=1 << 15)
def _murmur2(key: bytes) -> int:
    """Return the 32-bit murmur2 of ``key`` with Kafka's seed."""
    size = len(key)
    words = size >> 2
    h = 0x9747B28C ^ size
    for k in unpack_from(f"<{words}I", key):
        k = k * _M & _MASK
        h = h * _M & _MASK ^ (k ^ k >> 24) * _M & _MASK
    if tail := key[words << 2 :]:
        h = (h ^ int.from_bytes(tail, "little")) * _M & _MASK
    h = (h ^ h >> 13) * _M & _MASK
    return h ^ h >> 15
