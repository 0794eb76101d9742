"""Domains: the seam between the machinery and what it computes.

A domain is one module of the package `agents` that has a `domain`; every such module is
found by itself. So a new domain is one file in `tables/`, one in `agents/`, and nothing here.
"""

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Domain:
    """One source topic and what is computed from it.

    ``code`` is one byte, unique among the domains: it begins every key of the domain in
    RocksDB and in the changelog, so it must never change.
    ``table(rules)`` builds the domain's logic under one set of definitions.
    ``attach(app, topic, apply)`` declares the agent on a Faust app: it passes every event of
    the chunk topic to ``apply``.
    """

    name: str
    code: bytes
    events: Any
    features: Mapping[str, Callable[[Any], Any]]
    attribute_reader: Callable[[str], Callable[[Any], Any]] | None
    table: Callable[[Any], Any]
    attach: Callable[[Any, Any, Callable[[Any], Any]], None]


@cache
def discover() -> dict[str, Domain]:
    """Every domain this build knows, by name, in the order of their names."""
    package = importlib.import_module("agents")
    found: dict[str, Domain] = {}
    for module in sorted(pkgutil.iter_modules(package.__path__), key=lambda item: item.name):
        domain = getattr(importlib.import_module(f"agents.{module.name}"), "domain", None)
        if isinstance(domain, Domain):
            found[domain.name] = domain
    return found
