"""The page of a real worker on its embedded broker, and a real browser to open it in."""

import contextlib
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import pytest

from stream.app import Tagstream
from stream.commands.feeding import EmbeddedFeed, Item
from stream.domains import discover
from stream.rules import load
from stream.settings import Settings
from tests.page.browser import Browser

DAY_MS = 86_400_000


@dataclass
class Shop:
    """A worker with users of whom is known what happened."""

    service: Tagstream
    feed: EmbeddedFeed
    now_ms: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.service.web.port}/"

    async def order(self, user_id: str, *, days_ago: float = 0.0, **fields: Any) -> None:
        """An order, applied and committed."""
        ts_ms = self.now_ms - int(days_ago * DAY_MS)
        event = {
            "event_id": f"{user_id}-{ts_ms}-{time.monotonic_ns()}",
            "user_id": user_id,
            "type": "order",
            "ts": ts_ms,
            "amount": 100.0,
            **fields,
        }
        await self.feed.send([Item("purchases", user_id.encode(), orjson.dumps(event))])
        await self.service.drained()


@contextlib.asynccontextmanager
async def shop_in(folder: Path) -> AsyncIterator[Shop]:
    """A worker on the wall clock; ``carla`` has been silent for 28 days, ``dora`` for 40."""
    domains = discover()
    settings = Settings(data_dir=folder, web_port=0)
    service = Tagstream(settings, load(settings.tags, domains), domains)
    try:
        await service.start()
        await service.until_ready()
        shop = Shop(service, EmbeddedFeed(settings, service.broker), time.time_ns() // 1_000_000)
        await shop.order("dora", days_ago=40)
        await shop.order("carla", days_ago=28)
        await shop.order("berta", days_ago=2, amount=60_000)
        await shop.order("anna", coupon=True)
        yield shop
    finally:
        await service.stop()


@pytest.fixture
async def shop(tmp_path: Path) -> AsyncIterator[Shop]:
    async with shop_in(tmp_path) as shop:
        yield shop


@pytest.fixture
async def browser() -> AsyncIterator[Browser]:
    async with Browser() as browser:
        yield browser
