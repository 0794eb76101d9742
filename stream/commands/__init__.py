"""The commands, a file each; `stream.__main__` puts them together.

No command runs, nor is anything imported that it needs, where compiled modules of a source tree
are older than their sources.
"""

from stream import compiled

try:
    compiled.check()
except compiled.StaleError as stale:
    raise SystemExit(f"tagstream: {stale}") from None
