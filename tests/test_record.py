"""Records that count by local day, beside a dictionary of days that is summed again each time."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from tables.packing import Reader
from tables.record import FIRST_DAY, DayCounts

COLUMNS = 3
DAYS = st.integers(20_000, 20_040)
added = st.tuples(st.just("add"), DAYS, st.integers(1, COLUMNS), st.integers(-50, 10**13))
kept = st.tuples(st.just("keep"), DAYS, st.just(0), st.just(0))
folded = st.tuples(st.just("fold"), DAYS, st.just(0), st.just(0))


def new() -> DayCounts:
    return DayCounts("u1", 7, (True, None, "gold"), COLUMNS)


def again(user: DayCounts) -> DayCounts:
    """The record after it was written and read."""
    read = new()
    read.read(Reader(user.packed()))
    assert read.packed() == user.packed()
    return read


@given(st.lists(st.one_of(added, added, kept, folded), max_size=40), DAYS, st.integers(1, 60))
def test_totals_and_windows_equal_a_sum_over_days(steps, today, days):
    """In any order, with days in between that come late, and written and read at any time."""
    user, naive = new(), Counter[tuple[int, int]]()
    known: set[int] = set()
    first = FIRST_DAY  # what lies before is one sum
    for step, day, column, amount in steps:
        if step == "keep":
            user = again(user)
        elif step == "fold":
            user.fold(user.entry_before(day))
            gone = {each for each in known if each < day}
            known -= gone
            first = max([first, *gone])
        elif day > first:
            user.add(user.entry(day), column, amount)
            naive[day, column] += amount
            known.add(day)
    user = again(user)
    assert user.days == [FIRST_DAY, *sorted(known)]
    user.today = today
    for column in range(1, COLUMNS + 1):
        of = {day: total for (day, which), total in naive.items() if which == column}
        assert user.total(column) == sum(of.values())
        if today - days + 1 > first:
            since = [total for day, total in of.items() if day > today - days]
            assert user.over(days, column) == sum(since)


def test_a_record_is_read_as_it_was_written():
    """The tags are looked at only where they are asked for."""
    user = new()
    user.clock_ms, user.newest_ms, user.today = 1_745_942_400_000, 1_745_942_300_000, 20_208
    user.recent, user.erased_ms, user.heard_day = b"0123456789abcdef", 0, 20_207
    read = again(user)
    assert read == user
    assert (read.values, read.tags, read.erased_ms) == ((True, None, "gold"), {}, 0)
    read.erased_ms = 1
    assert read != user
