"""Conditions by Python's own means."""

import ast
from functools import cache
from typing import Any


@cache
def names_in(text: str) -> list[str]:
    """What a condition reads, in the order written."""
    names = [node for node in ast.walk(ast.parse(text, mode="eval")) if isinstance(node, ast.Name)]
    names.sort(key=lambda node: (node.lineno, node.col_offset))
    return list(dict.fromkeys(node.id for node in names))


def holds(text: str, values: dict[str, Any]) -> bool:
    """Whether a condition holds; not where it reaches what has no answer."""
    try:
        return bool(eval(_compiled(text), {"__builtins__": {}}, values))
    except (ZeroDivisionError, TypeError):
        return False


@cache
def _compiled(text: str) -> Any:
    return compile(text, "<condition>", "eval")
