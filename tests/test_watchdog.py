"""When a worker counts as stuck, and how late its event loop is: with a clock that is set."""

import asyncio
import time
from dataclasses import dataclass, field

import pytest

from stream.watchdog import LoopLag, Progress, Watchdog
from tests.test_metrics import DomainState, Owner, Partition


@dataclass
class Clock:
    now: float = 1_000.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Watched:
    """One partition, looked at once a second."""

    state: DomainState = field(default_factory=lambda: DomainState(lag=5, applied_offset=10))
    clock: Clock = field(default_factory=Clock)

    def __post_init__(self) -> None:
        self.owner = Owner([Partition(3, {"purchases": self.state})])
        self.progress = Progress(limit_s=60, longest_look_s=2, clock=self.clock)

    def look_for(self, seconds: int) -> list[str]:
        for _ in range(seconds):
            self.clock.now += 1
            self.progress.look(self.owner)
        return self.progress.stuck()


@pytest.fixture
def watched() -> Watched:
    worker = Watched()
    worker.look_for(1)  # seen at its position for the first time
    return worker


def test_a_partition_that_applies_nothing_while_records_wait_is_stuck_at_the_limit(watched):
    """Not a second earlier."""
    assert watched.look_for(59) == []
    assert watched.look_for(1) == ["purchases[3]"]


def test_one_record_applied_is_progress(watched):
    """However many still wait."""
    watched.look_for(59)
    watched.state.applied_offset += 1
    assert watched.look_for(60) == []
    assert watched.look_for(1) == ["purchases[3]"]


def test_it_recovers_from_being_stuck(watched):
    """The probe follows what is, not what was."""
    assert watched.look_for(100) == ["purchases[3]"]
    watched.state.applied_offset += 1
    assert watched.look_for(1) == []


@pytest.mark.parametrize("lag", [0, None])
def test_no_records_waiting_or_no_answer_from_the_broker_is_not_stuck(watched, lag):
    """A broker that is away is nothing a restart would mend."""
    watched.look_for(59)
    watched.state.lag = lag
    assert watched.look_for(600) == []


def test_a_recovery_of_any_length_is_not_stuck(watched):
    """A probe that failed during recovery would restart it for ever."""
    watched.owner.recovering = True
    assert watched.look_for(6_000) == []
    watched.owner.recovering = False
    assert watched.look_for(60) == []


def test_a_partition_that_moved_away_is_forgotten(watched):
    """When it returns, it starts anew."""
    watched.look_for(59)
    partitions, watched.owner.partitions = watched.owner.partitions, []
    watched.look_for(1)
    watched.owner.partitions = partitions
    assert watched.look_for(60) == []


def test_time_that_nobody_watched_does_not_count(watched):
    """A process stopped for an hour and woken gets its chance first."""
    watched.look_for(30)
    watched.clock.now += 3_600
    watched.progress.look(watched.owner)
    assert watched.progress.stuck() == []
    assert watched.look_for(27) == []
    assert watched.look_for(1) == ["purchases[3]"]


def test_loop_lag_is_the_largest_since_it_was_taken():
    """Early is no lag."""
    clock = Clock()
    lag = LoopLag(clock=clock)
    for late_s in (0.1, 0.75, -0.25):
        lag.expect(0.5)
        clock.now += 0.5 + late_s
        lag.arrived()
    assert lag.take() == pytest.approx(0.75)
    assert lag.take() == 0


def test_loop_lag_includes_the_one_under_way():
    """A scrape can come between the end of a stall and the call that was due in it."""
    clock = Clock()
    lag = LoopLag(clock=clock)
    lag.expect(0.5)
    clock.now += 3.5
    assert lag.take() == pytest.approx(3.0)


async def test_the_service_measures_the_loop_it_runs_in():
    """A handler that holds the loop is seen."""
    dog = Watchdog(Owner([]), interval_s=0.001)
    async with dog:
        await asyncio.sleep(0)  # it has begun to wait
        time.sleep(0.05)  # what a handler must not do
        assert dog.loop_lag() > 0.04
        assert dog.alive() == (True, "alive")


async def test_the_service_says_once_which_partition_is_stuck(caplog):
    """The probe repeats it, the log does not; no record of a user is in either."""
    state = DomainState(lag=1, applied_offset=7)
    dog = Watchdog(Owner([Partition(3, {"purchases": state})]), limit_s=0, interval_s=0.001)
    async with asyncio.timeout(30):
        async with dog:
            while dog.alive()[0]:
                await asyncio.sleep(0)
            reason = dog.alive()[1]
            assert reason == "records wait, none applied for 0 s: purchases[3]"
            while not caplog.records:
                await asyncio.sleep(0)
            dog.loop_lag()
            while not dog.loop_lag():  # it has looked again
                await asyncio.sleep(0)
    assert [record.getMessage() for record in caplog.records] == [reason]
