"""Batches made in one go, beside those made record by record, and as aiokafka reads them."""

from aiokafka.record.default_records import DefaultRecordBatchBuilder
from aiokafka.record.memory_records import MemoryRecords
from hypothesis import given
from hypothesis import strategies as st

from stream.batches import OVERHEAD, Records, encode, seal

NOW_MS = 1_767_196_800_000
UNLIMITED = 1 << 40
# Lengths at which one more byte is needed to say them: 64, and 16,384 after that.
contents = (
    st.none() | st.binary(max_size=200) | st.sampled_from([b"\0" * n for n in (8_190, 20_000)])
)
rows = st.lists(st.tuples(st.none() | st.binary(max_size=70), contents), max_size=150)


def one_by_one(rows) -> bytes:
    """The same batch as aiokafka builds it."""
    builder = DefaultRecordBatchBuilder(
        magic=2,
        compression_type=0,
        is_transactional=1,
        producer_id=70_000,
        producer_epoch=3,
        base_sequence=41,
        batch_size=1 << 30,
    )
    for number, (key, value) in enumerate(rows):
        builder.append(number, NOW_MS, key, value, [])
    return bytes(builder.build())


def sealed(records: bytes, count: int) -> bytes:
    return seal(records, count, NOW_MS, producer=70_000, epoch=3, sequence=41)


def read(batch: bytes) -> list[tuple[bytes | None, bytes | None]]:
    """A batch as aiokafka's consumers read it."""
    records = MemoryRecords(batch).next_batch()
    assert records is not None
    assert records.validate_crc()
    assert records.is_transactional
    return [(record.key, record.value) for record in records]


@given(rows)
def test_a_batch_is_to_the_byte_what_a_builder_makes_of_it(rows):
    """Nothing but the way there is different."""
    batches = encode(rows, UNLIMITED)
    assert [sealed(*batch) for batch in batches] == ([one_by_one(rows)] if rows else [])


@given(rows, st.integers(0, 3_000))
def test_rows_are_cut_into_batches_of_bounded_size(rows, most):
    """None is larger than it may be but a row alone, and none has room for the next one's first."""
    batches = [sealed(*batch) for batch in encode(rows, most)]
    parts = [read(batch) for batch in batches]
    assert [row for part in parts for row in part] == rows
    for batch, part in zip(batches, parts, strict=True):
        assert len(batch) <= most or len(part) == 1
    for batch, following in zip(batches, parts[1:], strict=False):
        first = encode(following[:1], UNLIMITED)[0][0]
        assert len(batch) + len(first) + 6 > most  # 6: its number takes up to three bytes, twice


def test_a_batch_of_more_records_than_lengths_are_kept_for():
    """Numbers of three bytes."""
    rows = [(b"", None)] * 20_000
    ((records, count),) = encode(rows, UNLIMITED)
    assert sealed(records, count) == one_by_one(rows)
    assert len(records) + OVERHEAD == len(one_by_one(rows))


@given(rows, st.integers(0, 3_000), st.none() | st.integers(-160, 160), st.integers(-160, 160))
def test_records_are_a_sequence_of_rows(rows, most, first, end):
    """Whoever looks at what was encoded sees what was added, as of a list."""
    records = Records(most)
    for key, content in rows:
        records.add(key, content)
    assert len(records) == len(rows)
    assert list(records) == rows
    assert records[first:end] == rows[first:end]


@given(st.lists(st.tuples(st.none() | st.binary(max_size=9), st.none() | st.binary(max_size=99))))
def test_records_know_their_size(rows):
    """What waits to be sent counts as memory, over however many batches."""
    records = Records(most=OVERHEAD + 200)
    for key, content in rows:
        records.add(key, content)
    assert records.size == sum(len(batch) for batch, _ in records.batches())
