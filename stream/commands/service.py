"""The service inside a command: started, fed and looked into from the same process."""

import contextlib
from collections.abc import AsyncIterator

from stream.app import Tagstream
from stream.domains import discover
from stream.errors import RulesError
from stream.rules import load
from stream.settings import Settings


@contextlib.asynccontextmanager
async def running(
    settings: Settings, *, web: bool, follow: bool = False
) -> AsyncIterator[Tagstream]:
    """The service with every partition open, for as long as the block lasts.

    ``follow``: the definitions are those that the state follows, whatever the file says.

    Raises:
        RulesError: the file is bad, or cannot follow what the state follows.
    """
    domains = discover()
    rules = load(settings.tags, domains)
    settings.make_directories()
    service = Tagstream(settings, rules, domains, follow=follow)
    try:
        await service.start(web=web)
        await service.until_ready()
        if not follow and service.rules.version > rules.version:
            raise RulesError(
                [
                    f"{settings.tags}: version: is {rules.version}, but the state follows version"
                    f" {service.rules.version}: use that file, or raise it"
                ]
            )
        yield service
    finally:
        await service.stop()
