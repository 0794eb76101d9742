"""Before any test imports a module: one that was compiled from other sources is none to test."""

import os

from stream import compiled

try:
    compiled.check()
except compiled.StaleError as stale:
    raise SystemExit(f"tests: {stale}") from None

# The doctests of sources: of a compiled module pytest takes the source for another file. Compiled
# ones have no docstrings; `tests/test_compiling.py` has theirs.
os.environ["PY_IGNORE_IMPORTMISMATCH"] = "1"
