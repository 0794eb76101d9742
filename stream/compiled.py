"""Which modules are compiled to C where they are installed, and whether they are here.

Their sources are plain Python and say the same interpreted, several times slower; to compile
them is `stream/compiling.py`'s, which needs what is not there when tagstream runs.

Promise: in a source tree no module is ever shadowed by one that was compiled from other sources.
What was compiled there left the digests of all that it was compiled from, and whoever starts
from the tree compares them. What is installed is not looked at.
"""

import json
from collections.abc import Iterator, Mapping
from functools import cache
from hashlib import blake2b
from importlib.machinery import EXTENSION_SUFFIXES
from importlib.util import find_spec
from pathlib import Path
from typing import Final, Literal

#: What is compiled, together: calls among them are calls of C.
MODULES: Final = (
    "stream.applying",
    "stream.batches",
    "stream.events",
    "stream.partitioner",
    "stream.profiles",
    "stream.rows",
    "stream.users",
    "tables.activity",
    "tables.calendar",
    "tables.churn",
    "tables.days",
    "tables.dedup",
    "tables.engagement",
    "tables.features",
    "tables.hours",
    "tables.identity",
    "tables.outputs",
    "tables.outreach",
    "tables.packing",
    "tables.profile",
    "tables.purchases",
    "tables.record",
    "tables.rhythm",
    "tables.service",
    "tables.table",
)
LIBRARY: Final = "tagstream__mypyc"
"""The extension module that holds them all; theirs only point into it. Also in `pyproject.toml`."""

ROOT: Final = Path(__file__).parents[1]
_PACKAGES: Final = ("stream", "tables")


class StaleError(Exception):
    """A source is not what it was when it was compiled; the message has the remedy."""


@cache  # what is imported stays
def hot_path() -> Literal["compiled", "interpreted"]:
    """How the hot path runs: compiled where all of it does."""
    specs = map(find_spec, MODULES)
    suffixes = tuple(EXTENSION_SUFFIXES)
    is_compiled = all(spec and str(spec.origin).endswith(suffixes) for spec in specs)
    return "compiled" if is_compiled else "interpreted"


def record(root: Path) -> Path:
    """Where the digests of what a source tree was compiled from are kept."""
    return root / f"{LIBRARY}.json"


def artefacts(root: Path) -> Iterator[Path]:
    """All that compiling has left under a folder, whatever Python it was for."""
    for pattern in (f"{LIBRARY}.*", *(f"{package}/*" for package in _PACKAGES)):
        for path in root.glob(pattern):
            if path.suffix in (".so", ".pyd") or path == record(root):
                yield path


def digest(path: Path) -> str:
    """What tells one source from another."""
    return blake2b(path.read_bytes(), digest_size=16).hexdigest()


def check(root: Path = ROOT) -> None:
    """Hold compiled modules in a source tree against the sources there.

    Raises:
        StaleError: a module would be imported that was not compiled from these sources.
    """
    if not (root / "pyproject.toml").exists():
        return  # installed: nobody edits it
    known: Mapping[str, str] = {}
    found = sorted(artefacts(root))
    if record(root) in found:
        known = json.loads(record(root).read_bytes())
        found.remove(record(root))
    if not found:
        return
    for path in found:
        module = path.relative_to(root).with_name(path.name.partition(".")[0] + ".py")
        if module.stem != LIBRARY and module.as_posix() not in known:
            raise StaleError(_remedy(f"{path.relative_to(root)} is left of an older compilation"))
    for name, expected in known.items():
        path = root / name
        if not path.exists() or digest(path) != expected:
            raise StaleError(_remedy(f"{name} was changed after it was compiled"))


def _remedy(fault: str) -> str:
    return (
        f"{fault}: compile with `python -m stream.compiling`, "
        "or run interpreted after `python -m stream.compiling --clean`"
    )
