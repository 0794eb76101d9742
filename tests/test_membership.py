"""Start, rebalances and end of a worker without Faust's tables, beside what Faust makes of them."""

# Faust has no types.
# mypy: disallow-subclassing-any=false, disallow-untyped-decorators=false

import asyncio
from typing import Any

import pytest
from faust.tables import TableManager
from faust.types import TP

from stream.chunks import chunk_topic, events
from stream.membership import Membership
from tests.driver import ChunkConsumer, memory_app

A0 = TP("a", 0)


@pytest.fixture
def app(tmp_path):
    """An app with one agent over topic a."""
    app = memory_app(tmp_path, ChunkConsumer)

    @app.agent(chunk_topic(app, "a", 1))
    async def apply(stream: Any) -> None:
        async for event in events(stream):
            event.ack()

    return app


class Sleepless:
    """Notes how long a service wants to sleep, and has it stop then."""

    slept: list[float]

    async def sleep(self: Any, n: float) -> None:
        self.slept = [n]
        self._stopped.set()


class SleeplessStock(Sleepless, TableManager):
    pass


class SleeplessOurs(Sleepless, Membership):
    slept: list[float] = []


async def test_stock_faust_sleeps_a_second_before_it_subscribes(app):
    manager = SleeplessStock(app)
    await manager.on_start()
    assert manager.slept == [1.0]


async def test_membership_starts_at_once(app):
    manager = SleeplessOurs(app)
    await manager.on_start()
    await manager.wait_until_tables_registered()
    assert manager.slept == []


async def test_the_app_is_up_before_anything_is_assigned(app):
    async def never(*_: Any) -> None:
        pass

    app.consumer.rebalance = never
    async with app:
        assert not app.ownership.calls
        assert app.started


async def test_the_owner_hears_of_numbers_when_chunks_can_flow_and_before_they_go(app):
    heard: list[Any] = []
    ownership = app.ownership

    def assigned(numbers: set[int], generation: int) -> None:
        heard.append((numbers, generation, app.flow_control.is_active(), app.rebalancing))
        done.set()

    async def revoked(numbers: set[int]) -> None:
        heard.append((numbers, app.consumer.flow_active, app.rebalancing))

    done = asyncio.Event()
    ownership.assigned, ownership.revoked = assigned, revoked
    async with app:
        await done.wait()
        await app.consumer.rebalance(set())
        await app.consumer.rebalance({A0})
    assert heard == [
        ({0}, 1, True, False),
        ({0}, True, True),
        (set(), 2, True, False),
        ({0}, 3, True, False),
    ]


async def test_an_app_that_stops_takes_on_nothing(app):
    await app.start()
    await app.stop()
    await app.tables.assign({A0}, 9)
    assert ("assigned", {0}, 9) not in app.ownership.calls


def test_there_are_no_faust_tables(app):
    with pytest.raises(NotImplementedError):
        app.Table("users")
