"""Purchases: registrations, attributes, orders and refunds."""

from collections.abc import Callable
from typing import Any

from stream.chunks import events
from stream.domains import Domain
from tables import purchases


def attach(app: Any, topic: Any, apply: Callable[[Any], None]) -> None:
    """Hand every chunk of purchases to the partition that owns it."""

    @app.agent(topic, name="purchases")
    async def apply_purchases(stream: Any) -> None:
        async for chunk in events(stream):
            apply(chunk)


domain = Domain(
    name="purchases",
    code=b"p",
    events=purchases.Event,
    features=purchases.features.readers,
    attribute_reader=purchases.attribute,
    table=purchases.Purchases,
    attach=attach,
)
