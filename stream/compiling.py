"""Compiling the modules of the hot path to C, with mypyc: while installing, or in a source tree.

``python -m stream.compiling`` does it in the source tree that it stands in.

As the build backend this is setuptools' own: it is named so that the build can import it. The
environment variable ``TAGSTREAM_COMPILE`` says what installing does: ``1`` compiles or fails,
``0`` does not compile; without it, what cannot be compiled for want of a C compiler is installed
all the same, to run interpreted.

Boundary: imported by a build, which has setuptools and mypy but none of the dependencies, and
never when tagstream runs.
"""

import argparse
import ast
import json
import os
import sys
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import cast

from mypyc.build import mypycify
from setuptools import Distribution, Extension, setup
from setuptools.build_meta import (
    build_editable,
    build_sdist,
    build_wheel,
    get_requires_for_build_editable,
    get_requires_for_build_sdist,
    get_requires_for_build_wheel,
    prepare_metadata_for_build_editable,
    prepare_metadata_for_build_wheel,
)
from setuptools.command.build_ext import build_ext
from setuptools.errors import BaseError, CCompilerError

from stream import compiled

__all__ = (
    "build_editable",
    "build_sdist",
    "build_wheel",
    "get_requires_for_build_editable",
    "get_requires_for_build_sdist",
    "get_requires_for_build_wheel",
    "prepare_metadata_for_build_editable",
    "prepare_metadata_for_build_wheel",
)

VARIABLE = "TAGSTREAM_COMPILE"

# Nothing but our own sources is looked at: what is installed beside them must not decide what
# they are compiled to.
_MYPY = (
    *("--config-file=", "--no-site-packages", "--ignore-missing-imports"),
    *("--follow-imports=silent", "--cache-dir=/dev/null"),
)
_REMEDY = "install a C compiler and Python's headers (Debian: gcc libc6-dev python3-dev)"


class CannotCompileError(BaseError):
    """What was to be compiled cannot be; the message has the remedy. Setuptools shows one line."""


class Compile(build_ext):
    """The command that builds extension modules, with ours in place of what pyproject.toml has."""

    def run(self) -> None:
        """Compile, or say why not."""
        wanted = os.environ.get(VARIABLE, "")
        if wanted not in ("", "0", "1"):
            raise CannotCompileError(f"{VARIABLE} is {wanted!r}; it may be 0 or 1, or not be set")
        # What an earlier build left would be taken for this one's.
        remove(Path(self.build_lib))
        if self.inplace:
            remove(Path())
        fault = None if wanted == "0" else self._fault()
        if fault and wanted == "1":
            raise CannotCompileError(f"{fault}: {_REMEDY}")
        if fault:
            self.warn(
                f"tagstream will run interpreted, several times slower: {fault}. To have it "
                f"compiled, {_REMEDY} and install it again; {VARIABLE}=0 says that it is meant so"
            )
        if fault or wanted == "0":
            self.extensions = []
            return
        sources = {path.as_posix(): compiled.digest(path) for path in closure(compiled.MODULES)}
        self.distribution.ext_modules = [*_extensions(compiled.MODULES, target=self.build_temp)]
        # A command takes its extension modules once, before it runs: so this is another.
        builder = build_ext(self.distribution)
        builder.build_lib, builder.build_temp = self.build_lib, self.build_temp
        builder.inplace = self.inplace
        builder.ensure_finalized()
        builder.run()
        self.extensions, self.ext_map = builder.extensions, builder.ext_map
        if self.inplace:
            compiled.record(Path()).write_text(json.dumps(sources, indent=1))

    def _fault(self) -> str | None:
        """Why nothing can be compiled here: the smallest extension module is tried."""
        if sys.implementation.name != "cpython":
            return f"{sys.implementation.name} cannot load what mypyc compiles"
        with TemporaryDirectory() as folder:
            source = Path(folder, "smallest.c")
            source.write_text("#include <Python.h>\nint PyInit_smallest(void) { return 0; }\n")
            smallest = Extension("smallest", [str(source)])
            trial = build_ext(Distribution({"ext_modules": [smallest]}))
            trial.build_lib = trial.build_temp = folder
            trial.ensure_finalized()
            try:
                trial.run()
            except (BaseError, CCompilerError) as error:
                self.announce(str(error))  # beside what the compiler itself has shown
                return "no C compiler works here"
        return None


def remove(root: Path) -> None:
    """Remove whatever compiling has left under a folder."""
    for path in compiled.artefacts(root):
        path.unlink()


def closure(modules: Iterable[str]) -> list[Path]:
    """The sources of modules, and of all of ours that they import: constants are compiled in."""
    found: dict[str, Path] = {}
    waiting = list(modules)
    while waiting:
        name = waiting.pop()
        path = Path(*name.split(".")).with_suffix(".py")
        if not path.exists():
            path = Path(*name.split("."), "__init__.py")
        if name in found or not path.exists():
            continue
        found[name] = path
        for node in ast.walk(ast.parse(path.read_bytes())):
            if isinstance(node, ast.ImportFrom) and node.module:
                waiting += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            elif isinstance(node, ast.Import):
                waiting += [alias.name for alias in node.names]
    return sorted(found.values())


def _extensions(modules: Iterable[str], target: str) -> list[Extension]:
    """What setuptools is to build, after mypyc has written it in C."""
    paths = [str(Path(*name.split(".")).with_suffix(".py")) for name in modules]
    extensions = mypycify(
        [*_MYPY, *paths],
        opt_level="3",
        debug_level="0",
        target_dir=target,
        group_name=compiled.LIBRARY.removesuffix("__mypyc"),
    )
    for extension in extensions:
        # mypyc makes warnings errors, and compilers to come will warn of other things. A product
        # and a sum in one step would be rounded once, on some machines only.
        more = ["-Wno-error", "-ffp-contract=off"]
        extension.extra_compile_args = [*extension.extra_compile_args, *more]
    return cast(list[Extension], extensions)  # not distutils', which mypyc goes without


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        "python -m stream.compiling",
        description="Compile the modules of the hot path in this source tree, beside the sources. "
        "After a change of one of them it has to be done again; tests and commands that start "
        "from the tree say so.",
    )
    parser.add_argument("--clean", action="store_true", help="remove what was compiled instead")
    options = parser.parse_args(arguments)
    if not (compiled.ROOT / "pyproject.toml").exists():
        parser.exit(1, f"{parser.prog}: {compiled.ROOT} is no source tree\n")
    os.chdir(compiled.ROOT)
    if options.clean:
        remove(Path())
        return
    os.environ[VARIABLE] = "1"
    warnings.filterwarnings("ignore", r".*ext-modules.* is still .experimental")
    setup(script_name=parser.prog, script_args=["--quiet", "build_ext", "--inplace"])


if __name__ == "__main__":
    main()
