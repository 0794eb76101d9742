"""Definitions taken up while the worker runs: whoever changes the file need not restart anything.

The file is looked at once a second, by what it is (a changed mount of Kubernetes is another file
under the same name) and then by its text, and only once two looks found the same, so that nobody
reads a file half written. It is checked whole in a thread. A good one comes into force; of a bad
one every problem is a line in the log, once, and what was in force stays.
"""

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Final

from stream.errors import RulesError
from stream.rules import Rules

log = logging.getLogger(__name__)

EVERY_S: Final = 1.0

Identity = tuple[int, int, int, int]
_NOTHING: Final[Identity] = (0, 0, 0, -1)  # no file is this


class Watch:
    """Looks at the file in ``path``; ``source`` is what is known of it already.

    ``read()`` reads and checks it; ``take(rules)`` puts it in force. Both raise RulesError with
    every problem. ``failed()`` is called where one did.
    """

    def __init__(
        self,
        path: Path,
        source: str,
        *,
        read: Callable[[], Rules],
        take: Callable[[Rules], None],
        failed: Callable[[], None],
    ) -> None:
        self._path = path
        self._known = source
        self._read = read
        self._take = take
        self._failed = failed
        # Looked into once in any case: it may have changed since it was read.
        self._seen: Identity | None = _NOTHING
        self._looked_into: Identity | None = _NOTHING
        self._problems: list[str] = []

    async def run(self) -> None:
        """For ever."""
        while True:
            await asyncio.sleep(EVERY_S)
            await self.look()

    async def look(self) -> None:
        """Look once."""
        seen, self._seen = self._seen, _identity(self._path)
        if self._seen != seen or seen == self._looked_into:
            return  # it is being written, or as before
        self._looked_into = seen
        try:
            rules = await asyncio.to_thread(self._read)
            if rules.source == self._known:
                self._problems = []
                return
            self._take(rules)
        except RulesError as error:
            if error.problems != self._problems:
                self._problems = error.problems
                self._failed()
                for problem in error.problems:
                    log.error("definitions refused: %s", problem)
            return
        self._known, self._problems = rules.source, []
        log.info("%s: tags version %d come into force", self._path, rules.version)


def _identity(path: Path) -> Identity | None:
    """What a file is now, links followed; None where there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size
