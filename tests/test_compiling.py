"""Modules compiled to C: that they are what is tested, and that none hides a newer source."""

import ast
import doctest
import importlib
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from stream import compiled

ROOT = Path(__file__).parents[1]


def docstrings(module: str) -> Iterator[tuple[str, str]]:
    """By name: those of a module's source, which compiling leaves out."""
    tree = ast.parse((ROOT / module.replace(".", "/")).with_suffix(".py").read_bytes())
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            yield getattr(node, "name", module), ast.get_docstring(node) or ""


@pytest.fixture
def tree(tmp_path):
    """A source tree of one small module, with the real build."""
    shutil.copytree(
        ROOT / "stream", tmp_path / "stream", ignore=shutil.ignore_patterns("__pycache__", "*.so")
    )
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    for package in ("agents", "tables", "tables/events"):
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").touch()
    (tmp_path / "README.md").touch()
    (tmp_path / "LICENSE").touch()
    (tmp_path / "tables" / "limits.py").write_text("from typing import Final\n\nFEW: Final = 3\n")
    (tmp_path / "tables" / "small.py").write_text(
        "from tables.limits import FEW\n\n\ndef many(count: int) -> bool:\n    return count > FEW\n"
    )
    path = tmp_path / "stream" / "compiled.py"
    source, modules = path.read_text(), '(\n    "tables.small",\n)'
    path.write_text(re.sub(r"(?<=MODULES: Final = )\(.*?\n\)", modules, source, flags=re.DOTALL))
    return tmp_path


def python(folder: Path, *args: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """What Python says in a folder, its output and its errors together."""
    return subprocess.run(
        [sys.executable, *args],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder), **environ},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def install(folder: Path, into: Path, **environ: str) -> subprocess.CompletedProcess[str]:
    """Build a wheel as pip does, from what is installed here, and unpack it."""
    code = "import stream.compiling as b; print(b.build_wheel('.'))"
    built = python(folder, "-c", code, **environ)
    for wheel in folder.glob("*.whl"):
        shutil.unpack_archive(wheel, into, "zip")
    return built


def test_what_is_tested_is_compiled():
    """Where nothing may be left out; elsewhere all of it is, or nothing."""
    loaded = [str(importlib.import_module(module).__file__) for module in compiled.MODULES]
    interpreted = [path for path in loaded if path.endswith(".py")]
    assert compiled.hot_path() == ("interpreted" if interpreted else "compiled")
    assert interpreted in ([], loaded)
    assert not interpreted or os.environ.get("CI") != "true"


@pytest.mark.parametrize("module", compiled.MODULES)
def test_examples_in_docstrings_hold(module):
    """Of a compiled module as of an interpreted one."""
    names = dict(vars(importlib.import_module(module)))
    for name, text in docstrings(module):
        example = doctest.DocTestParser().get_doctest(text, names, name, module, 0)
        assert doctest.DocTestRunner().run(example).failed == 0


def test_the_build_names_the_library():
    """Setuptools is told of one extension module: the one that is built."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    assert settings["ext-modules"] == [{"name": compiled.LIBRARY, "sources": []}]


def test_a_source_is_never_hidden_by_an_older_compiled_one(tree):
    """Its own, or one whose constants are compiled into it; then one line has the remedy."""
    ask = ("-c", "import stream.commands; from tables import small; print(small)")
    compile_, clean = ("-m", "stream.compiling"), ("-m", "stream.compiling", "--clean")
    assert python(tree, *compile_).returncode == 0
    assert re.search(r"small\.\S+\.(so|pyd)", python(tree, *ask).stdout)

    limits = tree / "tables" / "limits.py"
    written = limits.read_text()
    limits.write_text(written.replace("3", "4"))
    refused = python(tree, *ask)
    assert refused.returncode == 1
    assert refused.stdout == (
        "tagstream: tables/limits.py was changed after it was compiled: compile with `python -m "
        "stream.compiling`, or run interpreted after `python -m stream.compiling --clean`\n"
    )
    limits.write_text(written)
    assert python(tree, *ask).returncode == 0

    compiled.record(tree).unlink()
    assert "is left of an older compilation" in python(tree, *ask).stdout
    assert python(tree, *clean).returncode == 0
    assert "small.py" in python(tree, *ask).stdout


def test_without_a_compiler_it_is_installed_to_run_interpreted(tree):
    """And said so, on one line with the remedy; or refused, where it has to be compiled."""
    refused = install(tree, tree / "none", CC="/bin/false", TAGSTREAM_COMPILE="1")
    assert refused.returncode != 0
    assert "no C compiler works here: install a C compiler" in refused.stdout

    built = install(tree, tree / "installed", CC="/bin/false")
    assert built.returncode == 0
    assert len(re.findall("run interpreted.*install a C compiler", built.stdout)) == 1
    assert (tree / "installed" / "tables" / "small.py").exists()
    assert not list(compiled.artefacts(tree / "installed"))
    for path in (tree / "stream").rglob("[!_]*.*"):  # with what is read as data
        assert path.suffix == ".pyc" or (tree / "installed" / path.relative_to(tree)).exists()


def test_every_package_is_installed():
    """A folder that is not named would be missing from every wheel."""
    named = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    found = {
        ".".join(path.parent.relative_to(ROOT).parts)
        for top in ("agents", "stream", "tables")
        for path in (ROOT / top).rglob("__init__.py")
    }
    assert set(named) == found
