"""Where a partition stands: the last row of every one of its transactions."""

import msgspec

from stream.store import META

POSITION = META + b"position"
LAYOUT = 1
"""How rows of users are written: raised where an older build's cannot be read."""


class Place(msgspec.Struct, array_like=True):
    """Where a source stands: its part of the position row."""

    offset: int = 0  # of the next record to apply
    timestamp: int = 0  # of the last record applied
    crc: int = 0  # CRC-32 of key and value of the last record applied
    newest_ms: int = -1  # largest event time applied; -1: none yet
    time_ms: int = -1  # the time reached; -1: none yet
    end: int = 0  # the source is known to hold no record from ``offset`` to before this


class Position(msgspec.Struct, array_like=True):
    """The position row, last in every transaction of a partition.

    ``incarnation`` names the changelog, so that a disk of another one is recognised.
    """

    incarnation: str
    partitions: int
    partitioner: str
    timezone: str
    places: dict[str, Place]
    population: list[tuple[str, str, int]]  # tag, value, users
    users: int = 0  # of whom anything is known
    tagged: int = 0  # those among them with at least one tag
    erase_key: str = ""  # a hash of the secret that erasures are marked with
    layout: int = 0  # how rows are written: `LAYOUT`


encode_position = msgspec.msgpack.Encoder().encode
decode_position = msgspec.msgpack.Decoder(Position).decode
