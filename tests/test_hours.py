"""Windows of hours: exact at both edges, however busy the user, in a record that stays small."""

from random import Random

import msgspec
import pytest

from tables.dedup import MemoryBlocks
from tables.hours import INLINE, ROW, Hours
from tables.kept import Held
from tables.table import NEVER

SPAN_MS = 1_000


class Window:
    """One window beside a list of everything."""

    def __init__(self) -> None:
        self.hours = Hours(SPAN_MS, first_row=1 << 30)
        self.held = Held()
        self.blocks = MemoryBlocks()
        self.clock_ms = 0
        self.all: list[int] = []

    def move(self, clock_ms: int) -> None:
        """As a table does: settled wherever that is due."""
        while (due_ms := self.hours.due_ms(self.held, ())) <= clock_ms:
            self.hours.settle(self.held, due_ms, "u1", self.blocks)
        self.clock_ms = clock_ms

    def add(self, ts_ms: int) -> None:
        """One instant, after the clock or late."""
        self.move(max(self.clock_ms, ts_ms))
        self.hours.clear(self.held, self.clock_ms, "u1", self.blocks)
        self.hours.add(self.held, ts_ms, self.clock_ms, "u1", self.blocks)
        self.all.append(ts_ms)

    @property
    def inside(self) -> list[int]:
        """What is in the window, in order of time."""
        return sorted(ts_ms for ts_ms in self.all if ts_ms > self.clock_ms - SPAN_MS)

    @property
    def count(self) -> int:
        return self.hours.count(self.held, self.clock_ms)

    def reload(self) -> None:
        """Through the store and back."""
        self.held = msgspec.msgpack.decode(msgspec.msgpack.encode(self.held), type=Held)

    def due_ms(self, levels: list[int] | None) -> int:
        """As `Hours.due_ms`, found instant by instant in the list."""
        inside = self.inside
        for place, ts_ms in enumerate(inside):
            left = len([other for other in inside if other > ts_ms])
            crosses = levels is None or any(left <= level < len(inside) for level in levels)
            if crosses and left < len(inside) - place:
                return ts_ms + SPAN_MS
        return NEVER


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("gap_ms", "spread_ms"), [(100, 0), (5, 0), (5, 900), (0.2, 990), (1, 3)])
def test_counts_and_deadlines_equal_a_full_scan(gap_ms, spread_ms, seed):
    """Few instants, many, hundreds on one millisecond; in order and late."""
    chance, window = Random(seed), Window()
    now = 10_000.0
    for number in range(3_000):
        now += chance.random() * 2 * gap_ms
        if chance.random() < 0.002:
            now += chance.choice([SPAN_MS - 1, SPAN_MS, SPAN_MS + 1])
        window.add(round(now - chance.random() * spread_ms))
        assert window.count == len(window.inside)
        if number % 50 == 0:
            window.reload()
            levels = sorted(chance.sample(range(60), 3))
            due_ms = window.hours.due_ms(window.held, levels)
            if window.held.rows:
                assert due_ms <= window.due_ms(levels)
            else:
                assert due_ms == window.due_ms(levels)
            assert window.hours.due_ms(window.held, None) == window.due_ms(None)
            later_ms = window.clock_ms + chance.choice([1, 10, 500])
            window.move(later_ms)
            assert window.count == len(window.inside)
    stored = {number for _, number in window.blocks.rows}
    assert stored == {number for _, _, number in window.held.rows} | set(window.held.spent)
    assert all(len(times) <= ROW for times in window.blocks.rows.values())


@pytest.mark.parametrize("levels", [(), (0,), (5, 700), (1_500,), None])
def test_every_crossing_is_met_as_time_passes(levels):
    """Nothing is added any more: what falls, falls at the deadline and not before."""
    window = Window()
    for number in range(2_000):
        window.add(10_000 + number * 2 // 5)
    before = window.count
    assert before == 2_000
    while (due_ms := window.hours.due_ms(window.held, levels)) < NEVER:
        window.clock_ms = due_ms - 1
        assert window.count == len(window.inside)
        crossed = [level for level in levels or () if window.count <= level < before]
        assert not crossed
        window.clock_ms = due_ms
        window.hours.settle(window.held, due_ms, "u1", window.blocks)
        before = window.count
        assert before == len(window.inside)
    window.move(window.clock_ms + SPAN_MS)
    assert window.count == 0


def test_a_hundred_thousand_instants_are_a_small_record():
    """Rows fill up where they come in order; the record knows when each begins."""
    window = Window()
    window.hours = Hours(48 * 3_600_000, first_row=1 << 31)
    for number in range(100_000):
        window.add(1_745_942_400_000 + number * 1_728)
    assert window.count == 100_000
    assert len(msgspec.msgpack.encode(window.held)) < 8_000
    assert max(len(msgspec.msgpack.encode(times)) for times in window.blocks.rows.values()) < 6_000
    window.move(1_745_942_400_000 + 100_000 * 1_728 - 1_728 + 48 * 3_600_000)
    assert window.count == 0
    window.add(window.clock_ms)
    assert not window.blocks.rows


def test_instants_of_one_millisecond_take_one_entry():
    """Ten thousand of them too."""
    window = Window()
    for _ in range(10_000):
        window.add(5_000)
    assert window.count == 10_000
    assert not window.held.rows
    assert len(window.held.head) == 10


def test_few_instants_stay_in_the_record():
    """Up to the bound, nothing is written beside it."""
    window = Window()
    for number in range(INLINE):
        window.add(5_000 + number)
    assert not window.blocks.rows
    window.add(5_000 + INLINE)
    assert len(window.blocks.rows) == 1


def test_settling_writes_no_row():
    """What is settled may be a copy that somebody looks at."""
    window = Window()
    for number in range(2_000):
        window.add(5_000 + number // 2)
    rows = {key: dict(times) for key, times in window.blocks.rows.items()}
    assert not window.hours.settle(window.held, 6_001, "u1", window.blocks)
    assert window.hours.settle(window.held, 6_900, "u1", window.blocks)
    window.move(6_900)
    assert window.held.spent
    assert window.blocks.rows == rows


def test_a_user_who_is_forgotten_leaves_no_row():
    """Those not dropped yet too."""
    window = Window()
    for number in range(2_000):
        window.add(5_000 + number // 2)
    window.move(5_900)
    window.hours.forget(window.held, "u1", window.blocks)
    assert not window.blocks.rows
