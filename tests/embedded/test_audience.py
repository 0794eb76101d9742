"""Audiences of the whole app, page by page, against what a look-up of each user says."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import orjson
import pytest

from stream import audience
from stream.app import Tagstream, _Front
from stream.audience import Cursor
from stream.commands.feeding import EmbeddedFeed, Item
from stream.domains import discover
from stream.rules import load
from stream.settings import Settings

PARTITIONS, USERS = 3, 60
START_MS = 1_750_000_000_000
HOUR_MS = 3_600_000


class Shop:
    """The service in this process with users of all sorts."""

    def __init__(self, folder: Path) -> None:
        domains = discover()
        settings = replace(
            Settings(), data_dir=folder, partitions=PARTITIONS, time="events", web_port=0
        )
        self.service = Tagstream(settings, load(settings.tags, domains), domains)
        self.front = _Front(self.service)
        self.feed: Any = None
        self._number = 0

    async def orders(self, *users: str, amount: float = 500.0, coupon: bool = False) -> None:
        """One of each, in order, without waiting for what follows."""
        items = []
        for user in users:
            self._number += 1
            event = {
                "event_id": f"e{self._number}",
                "user_id": user,
                "type": "order",
                "ts": START_MS + self._number * HOUR_MS // 10,
                "amount": amount,
                "coupon": coupon,
            }
            items.append(Item("purchases", user.encode(), orjson.dumps(event)))
        await self.feed.send(items)

    async def page(self, tag: str, cursor: Cursor, limit: int) -> tuple[list[Any], Cursor | None]:
        part = await self.front.audience(cursor, limit)
        assert part is not None
        return part

    async def everybody(self, tag: str, value: str | None = None, limit: int = 7) -> list[Any]:
        """All pages, one after the other."""
        users: list[Any] = []
        cursor: Cursor | None = Cursor(tag, value, 0, b"")
        while cursor is not None:
            page, cursor = await self.page(tag, cursor, limit)
            assert len(page) <= limit
            users += page
        return users

    def held(self, users: list[str]) -> dict[str, dict[str, tuple[Any, str]]]:
        """What look-ups say: by tag and user, value and since."""
        found: dict[str, dict[str, tuple[Any, str]]] = {}
        for user in users:
            for tag, state in (self.front.user(user) or {"tags": {}})["tags"].items():
                found.setdefault(tag, {})[user] = state["value"], state["since"]
        return found


@pytest.fixture
async def shop(tmp_path: Path) -> AsyncIterator[Shop]:
    shop = Shop(tmp_path)
    try:
        await shop.service.start(web=False)
        await shop.service.until_ready()
        shop.feed = EmbeddedFeed(shop.service.settings, shop.service.broker)
        yield shop
    finally:
        await shop.service.stop()


async def agrees(shop: Shop, users: list[str]) -> None:
    """Every audience is what the look-ups say, by tag and by value."""
    held = shop.held(users)
    for tag in ("value_tier", "price_sensitive", "high_repurchase", "lifecycle"):
        found = await shop.everybody(tag)
        assert {one["user_id"]: (one["value"], one["since"]) for one in found} == held.get(tag, {})
        assert len(found) == len(held.get(tag, {}))
        for value in shop.front.values(tag) or ():
            some = [one["user_id"] for one in await shop.everybody(tag, value)]
            assert sorted(some) == sorted(
                user
                for user, (has, _) in held.get(tag, {}).items()
                if str(has) == value or (has is True and value == "true")
            )


async def test_an_audience_is_who_has_the_tag(shop, monkeypatch):
    """By tag and by value, whether it waits to be written or has been."""
    chance = Random(1)
    users = [f"u{number}" for number in range(USERS)]
    for _ in range(6):
        for _ in range(8):
            some = chance.sample(users, 20)
            amount = chance.choice([10.0, 6_000.0, 60_000.0])
            await shop.orders(*some, amount=amount, coupon=chance.random() < 0.5)
            await asyncio.sleep(0)
        # Some of it applied, little of it written; in one go, for nothing may come in between.
        await agrees(shop, users)
        await shop.service.drained()
        with monkeypatch.context() as sliced:
            sliced.setattr(audience, "SLICE", 3)
            await agrees(shop, users)


async def test_a_user_who_keeps_the_tag_is_given_once_whatever_happens_meanwhile(shop, monkeypatch):
    """Others come and go between the pages."""
    monkeypatch.setattr(audience, "SLICE", 2)
    steady = [f"s{number}" for number in range(20)]
    await shop.orders(*steady)
    await shop.service.drained()
    found: list[str] = []
    cursor: Cursor | None = Cursor("value_tier", "basic", 0, b"")
    number = 0
    while cursor is not None:
        page, cursor = await shop.page("value_tier", cursor, 3)
        found += [one["user_id"] for one in page]
        number += 1
        await shop.orders(f"a{number}", f"t{number}", *steady[:5], amount=1.0)
        if number % 2:
            await shop.service.drained()
    assert len(found) == len(set(found))
    assert set(steady) <= set(found)


async def test_a_page_looks_at_no_more_than_its_share(shop, monkeypatch):
    """Few have the tag, many have to be looked at: the page ends, the audience goes on."""
    monkeypatch.setattr(audience, "SLICE", 2)
    monkeypatch.setattr(audience, "LOOKED_AT", 4)
    await shop.orders(*(f"u{number}" for number in range(USERS)))
    await shop.orders("u7", amount=90_000.0)
    await shop.service.drained()
    page, cursor = await shop.page("value_tier", Cursor("value_tier", "super_vip", 0, b""), 100)
    assert page == []
    assert cursor is not None and cursor.after
    found = await shop.everybody("value_tier", "super_vip", limit=100)
    assert [one["user_id"] for one in found] == ["u7"]


async def test_a_partition_that_leaves_in_the_middle_gives_no_part_of_a_page(shop, monkeypatch):
    """What was found before is not the whole."""
    monkeypatch.setattr(audience, "SLICE", 1)
    await shop.orders(*(f"u{number}" for number in range(USERS)))
    await shop.service.drained()
    asking = asyncio.create_task(shop.front.audience(Cursor("value_tier", None, 0, b""), 1_000))
    await asyncio.sleep(0)
    shop.service.ownership._close_soon(0)
    assert await asking is None


async def test_an_erased_user_is_in_no_audience(shop):
    """From the moment it is applied."""
    await shop.orders("anna", "berta")
    event = {"event_id": "x", "user_id": "anna", "type": "erase", "ts": START_MS + HOUR_MS}
    await shop.feed.send([Item("purchases", b"anna", orjson.dumps(event))])
    await shop.service.drained()
    assert [one["user_id"] for one in await shop.everybody("value_tier")] == ["berta"]
