"""Rows in memory against a dictionary, and the memory that they share."""

from hypothesis import given
from hypothesis import strategies as st

from stream.rows import ROW_COST, Pool, Rows
from stream.store import Row

KEYS = [b"a", b"b", b"c"]
steps = st.lists(
    st.one_of(
        st.tuples(st.just("get"), st.sampled_from(KEYS), st.none()),
        st.tuples(st.just("put"), st.sampled_from(KEYS), st.none() | st.binary(max_size=3)),
        st.tuples(st.sampled_from(["take", "write", "age"]), st.none(), st.none()),
    ),
    max_size=40,
)


def nothing(key: bytes) -> None:
    """An empty store."""


@given(steps, st.sampled_from([1, 2 * ROW_COST, 1 << 20]))
def test_what_is_looked_up_is_what_was_put_last_wherever_it_is_kept(steps, limit):
    """Young, old, waiting, being written or stored, and however little memory there is."""
    stored: dict[bytes, bytes | None] = {}
    rows, latest, taken = Rows(stored.get, Pool(limit)), dict[bytes, bytes | None](), list[Row]()
    for step, key, row in steps:
        if step == "get":
            assert rows.get(key) == latest.get(key)
        elif step == "put":
            rows.put(key, row)
            latest[key] = row
        elif step == "take" and not taken:
            taken = rows.take()
        elif step == "write":
            stored.update(taken)
            rows.written()
            taken = []
        else:
            rows.age()
    assert [rows.peek(key) for key in KEYS] == [latest.get(key) for key in KEYS]
    assert {**stored, **rows.unwritten}.items() >= latest.items()


def test_rows_that_hold_most_give_way_to_those_that_need_memory():
    """A domain that has no events any more leaves its memory to the others."""
    pool = Pool(10 * (ROW_COST + 9))
    idle, busy = (Rows(nothing, pool) for _ in range(2))
    for number in range(9):
        idle.put(b"%d" % number, b"12345678")
    for number in range(9):
        busy.put(b"%d" % number, b"12345678")
    assert len(busy) == 9
    assert len(idle) + len(busy) <= 10


def test_rows_are_crowded_when_what_waits_takes_a_quarter_of_their_share():
    """And no more once it has been taken."""
    rows = Rows(nothing, Pool(5 * ROW_COST))
    assert not rows.is_crowded
    rows.put(b"a", b"")
    rows.put(b"b", b"")
    assert rows.is_crowded
    rows.take()
    assert not rows.is_crowded
