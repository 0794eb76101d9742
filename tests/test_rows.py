"""Rows in memory against a dictionary, and the memory that they share."""

from hypothesis import given
from hypothesis import strategies as st

from stream.rows import ROW_COST, Entry, Pool, Rows
from stream.store import Row

KEYS = [b"a", b"b", b"c"]
PREFIX = b"u"
steps = st.lists(
    st.one_of(
        st.tuples(st.just("get"), st.sampled_from(KEYS), st.none()),
        st.tuples(st.just("put"), st.sampled_from(KEYS), st.none() | st.binary(max_size=3)),
        st.tuples(st.just("hold"), st.sampled_from(KEYS), st.binary(max_size=3)),
        st.tuples(st.sampled_from(["settle", "take", "write", "age"]), st.none(), st.none()),
    ),
    max_size=40,
)


def nothing(key: bytes) -> None:
    """An empty store."""


def encode(key: bytes, thing: list[bytes]) -> bytes:
    """What is held is a list of one row."""
    return thing[0]


def now(entry: Entry | None) -> bytes | None:
    """What an entry says."""
    if entry is None:
        return None
    return entry.row if entry.held is None else encode(entry.key, entry.held)


@given(steps, st.sampled_from([1, 2 * ROW_COST, 1 << 20]))
def test_what_is_looked_up_is_what_was_put_last_wherever_it_is_kept(steps, limit):
    """Held, young, old, waiting, being written or stored, and however little memory there is."""
    stored: dict[bytes, bytes | None] = {}
    rows, taken = Rows(PREFIX, stored.get, Pool(limit)), list[Row]()
    latest, held = dict[bytes, bytes | None](), dict[bytes, list[bytes]]()
    for step, key, row in steps:
        if step == "get":
            assert now(rows.find(key)) == latest.get(key)
        elif step == "put":
            rows.put(key, row)
            held.pop(key, None)
            latest[key] = row
        elif step == "hold" and key in held:
            held[key][0] = latest[key] = row  # whoever has it may go on to change it
        elif step == "hold":
            thing = [row]
            if rows.hold(key, thing):
                held[key], latest[key] = thing, row
        elif step == "settle":
            rows.settle(encode)
            held.clear()
        elif step == "take":
            if not taken:
                taken = rows.take(encode)
                held.clear()
        elif step == "write":
            stored.update(taken)
            rows.written()
            taken = []
        else:
            rows.age()
    assert [now(rows.peek(key)) for key in KEYS] == [latest.get(key) for key in KEYS]
    unwritten = {PREFIX + entry.key: now(entry) for entry in rows.unwritten(b"", None)}
    expected = {PREFIX + key: row for key, row in latest.items()}
    assert {**stored, **unwritten}.items() >= expected.items()
    assert {key for key in KEYS if rows.is_waiting(key)} == {key[1:] for key in unwritten}
    assert [entry.key for entry in rows.unwritten(b"a", b"b")] == [b"b"] * rows.is_waiting(b"b")


def test_rows_that_hold_most_give_way_to_those_that_need_memory():
    """A domain that has no events any more leaves its memory to the others."""
    pool = Pool(10 * (ROW_COST + 9))
    idle, busy = (Rows(b"", nothing, pool) for _ in range(2))
    for number in range(9):
        idle.put(b"%d" % number, b"12345678")
    for number in range(9):
        busy.put(b"%d" % number, b"12345678")
    assert len(busy) == 9
    assert len(idle) + len(busy) <= 10


def test_all_rows_are_crowded_when_what_waits_takes_a_quarter_of_their_memory():
    """And no more once it has been taken, or its partition was closed."""
    pool = Pool(5 * ROW_COST)
    rows, others, idle = (Rows(b"", nothing, pool) for _ in range(3))
    assert not rows.is_crowded
    rows.put(b"a", b"")
    others.put(b"b", b"")
    assert rows.is_crowded
    assert others.is_crowded
    assert not idle.is_crowded, "it would wait for a flush that never comes"
    rows.take(encode)
    assert not rows.is_crowded
    others.take(encode)
    rows.put(b"c", b"")
    assert not others.is_crowded
    assert rows.hold(b"c", [b""])
    assert rows.is_crowded
    others.put(b"d", b"")
    assert others.is_crowded
    rows.clear()
    assert not others.is_crowded


def test_rows_that_grow_where_they_are_held_count_with_what_they_became():
    """Or a million users who come for the first time would have cost nothing."""
    rows = Rows(b"", nothing, Pool(1 << 20))
    rows.put(b"a", b"")
    assert rows.hold(b"a", [bytes(500)])
    rows.take(encode)
    assert rows.size == ROW_COST + 501
