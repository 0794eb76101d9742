"""The overlays as kustomize renders them, and how to find one's way in them."""

import copy
import functools
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from stream.settings import Settings
from tests.k8s import tools

Object = dict[str, Any]

ROOT = Path(__file__).parents[2]
K8S = ROOT / "k8s"
OVERLAYS = sorted(path.name for path in (K8S / "overlays").iterdir())
OLDEST, NEWEST = "1.30", "1.37"
"""Versions of Kubernetes that are supported, as README says: both ends are checked."""


def render(overlay: str) -> list[Object]:
    """The objects that ``kubectl apply -k`` would send, new ones at every call."""
    return copy.deepcopy(_rendered(overlay))


@functools.cache
def _rendered(overlay: str) -> list[Object]:
    done = subprocess.run(
        [tools.kubectl(), "kustomize", K8S / "overlays" / overlay], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert not done.stderr, done.stderr  # a deprecated field, say
    return list(yaml.load_all(done.stdout, Loader=yaml.CSafeLoader))


def of_kind(objects: list[Object], *kinds: str) -> list[Object]:
    """The objects of these kinds, in their order."""
    return [item for item in objects if item["kind"] in kinds]


def the(objects: list[Object], kind: str, name: str | None = None) -> Object:
    """The one object of a kind, and of a name where there are several."""
    (found,) = (item for item in of_kind(objects, kind) if name in (None, item["metadata"]["name"]))
    return found


@dataclass(frozen=True, slots=True)
class Pod:
    """The pods that an object makes."""

    owner: Object

    @property
    def place(self) -> str:
        """The object, for messages."""
        return f"{self.owner['kind']} {self.owner['metadata']['name']}"

    @property
    def labels(self) -> dict[str, str]:
        labels: dict[str, str] = self.owner["spec"]["template"]["metadata"]["labels"]
        return labels

    @property
    def spec(self) -> Object:
        spec: Object = self.owner["spec"]["template"]["spec"]
        return spec

    @property
    def container(self) -> Object:
        """The only one there is."""
        (container,) = self.spec["containers"]
        assert isinstance(container, dict)
        return container

    @property
    def ports(self) -> dict[str, int]:
        """Numbers by name."""
        return {port["name"]: port["containerPort"] for port in self.container.get("ports", [])}

    def environment(self, objects: list[Object]) -> dict[str, str]:
        """The variables as the first pod's process finds them."""
        found: dict[str, str] = {}
        for source in self.container.get("envFrom", []):
            found |= the(objects, "ConfigMap", source["configMapRef"]["name"])["data"]
        for variable in self.container.get("env", []):
            match variable:
                case {"value": str(value)}:
                    for name, held in found.items():
                        value = value.replace(f"$({name})", held)
                case {"valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}:
                    value = f"{self.owner['metadata']['name']}-0"
                case {"valueFrom": {"resourceFieldRef": {"resource": resource, "divisor": unit}}}:
                    where, _, what = resource.partition(".")
                    amount = quantity(self.container["resources"][where][what])
                    value = str(-(-amount // quantity(unit)))
                case _:
                    raise AssertionError(f"{self.place}: a variable of no known kind: {variable}")
            found[variable["name"]] = value
        return found

    def settings(self, objects: list[Object]) -> Settings:
        """The settings that the process runs with."""
        return Settings.load({}, self.environment(objects))


def pods(objects: list[Object]) -> Iterator[Pod]:
    """One for every object that makes pods."""
    for item in of_kind(objects, "StatefulSet", "Deployment", "DaemonSet", "Job"):
        yield Pod(item)


def worker(objects: list[Object]) -> Pod:
    """The StatefulSet's pods."""
    return Pod(the(objects, "StatefulSet"))


_UNITS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30}


def quantity(text: str) -> int:
    """Bytes, rounded up for thousandths.

    >>> quantity("1Gi"), quantity("500m"), quantity("2")
    (1073741824, 1, 2)
    >>> quantity("1Gib")
    Traceback (most recent call last):
    ValueError: no quantity: '1Gib'
    """
    if text.endswith("m") and text[:-1].isdecimal():
        return -(-int(text[:-1]) // 1000)
    digits = text.rstrip("KMGik")
    unit = text[len(digits) :]
    if not digits.isdecimal() or unit not in _UNITS:
        raise ValueError(f"no quantity: {text!r}")
    return int(digits) * _UNITS[unit]
