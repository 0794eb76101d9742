"""Remembered event ids, against a dictionary that forgets nothing."""

from random import Random

from hypothesis import given
from hypothesis import strategies as st

from tables.dedup import ENTRY, INLINE, MemoryBlocks, digest, forget, is_known, remember
from tables.record import User

WEEK_MS = 7 * 86_400_000
START_MS = 1_000_000_000_000


class Ids:
    """What a table does with ids, beside a dictionary that keeps them all."""

    def __init__(self, lateness_ms: int) -> None:
        self.lateness_ms = lateness_ms
        self.holder, self.blocks = User("u1", 0, ()), MemoryBlocks()
        self.newest_ms = START_MS
        self.all: dict[int, int] = {}

    def see(self, event: int, ts_ms: int) -> None:
        horizon_ms = self.newest_ms - self.lateness_ms
        if ts_ms <= horizon_ms:
            return
        event_hash = digest(str(event))
        expected = event in self.all and self.all[event] > horizon_ms
        assert is_known(self.holder, event_hash, horizon_ms, self.blocks) == expected
        if not expected:
            self.all[event] = ts_ms
            self.newest_ms = max(self.newest_ms, ts_ms)
            horizon_ms = self.newest_ms - self.lateness_ms
            remember(self.holder, event_hash, ts_ms, horizon_ms, self.blocks)
        assert len(self.holder.recent) <= INLINE * ENTRY

    def held(self) -> int:
        return len(self.holder.recent) // ENTRY + sum(map(len, self.blocks.rows.values()))


@given(
    st.integers(1, 40),
    st.lists(st.tuples(st.integers(0, 30), st.integers(-50, 3)), max_size=300),
)
def test_known_is_what_was_applied_within_max_lateness(lateness_ms, steps):
    """Whatever time the repetition carries."""
    ids = Ids(lateness_ms)
    for event, ahead_ms in steps:
        ids.see(event, ids.newest_ms + ahead_ms)


def test_a_busy_user_spills_and_forgets_nothing_that_counts():
    """20,000 events, all remembered at the peak, a tenth of them repeated or late."""
    chance = Random(7)
    ids = Ids(WEEK_MS)
    for number in range(20_000):
        repeats = chance.random() < 0.1 and number
        event = chance.randrange(number) if repeats else number
        ids.see(event, ids.newest_ms + chance.choice([0, 1, 60_000, -3_600_000]))
    assert ids.holder.spilled is not None
    assert max(map(len, ids.blocks.rows.values())) <= 512
    assert len(ids.blocks.rows) == ids.holder.spilled.blocks
    assert ids.held() - len(ids.holder.recent) // ENTRY == ids.holder.spilled.ids


def test_blocks_follow_the_pace_of_the_user():
    """Ten times slower: far fewer blocks; a week of silence: none."""
    ids, event = Ids(WEEK_MS), 0
    for number in range(10_000):
        ids.see(event := event + 1, START_MS + number * 60_000)
    most = len(ids.blocks.rows)
    for _ in range(10_000):
        ids.see(event := event + 1, ids.newest_ms + 600_000)
    assert len(ids.blocks.rows) < most / 2
    assert ids.held() < 2_000  # 1,008 of them count
    for number in range(100):
        ids.see(event := event + 1, ids.newest_ms + (WEEK_MS if not number else 1))
    assert ids.held() <= 100 + INLINE


def test_a_quiet_user_keeps_next_to_nothing():
    """Ids go as the next ones come."""
    ids = Ids(WEEK_MS)
    for number in range(1_000):
        ids.see(number, START_MS + number * WEEK_MS // 2)
    assert ids.held() <= 3


def test_forgetting_drops_every_block():
    """For a user who is erased."""
    ids = Ids(WEEK_MS)
    for number in range(1_000):
        ids.see(number, START_MS + number)
    forget(ids.holder, ids.blocks)
    assert not ids.blocks.rows
    assert ids.holder.spilled is None


def test_the_hash_is_the_same_everywhere():
    """Records outlive processes: a change here would let repetitions through."""
    assert digest("e1").hex() == "1f7e24023b50eaef"
