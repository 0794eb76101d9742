"""The service inside a command: started, fed and looked into from the same process."""

import contextlib
from collections.abc import AsyncIterator

from stream.app import Tagstream
from stream.domains import discover
from stream.rules import load
from stream.settings import Settings


@contextlib.asynccontextmanager
async def running(
    settings: Settings, *, web: bool, follow: bool = False
) -> AsyncIterator[Tagstream]:
    """The service with every partition open, for as long as the block lasts.

    ``follow``: the definitions are those that the state follows, whatever the file says, until
    `Tagstream.lead`.

    Raises:
        RulesError: the file is bad, or cannot follow what the state follows.
    """
    domains = discover()
    rules = load(settings.tags, domains)
    settings.make_directories()
    service = Tagstream(settings, rules, domains, follow=True)
    try:
        await service.start(web=web)
        await service.until_ready()
        if not follow:
            service.lead()
        yield service
    finally:
        await service.stop()
