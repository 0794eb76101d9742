"""PromQL taken apart, without a server: which series an expression reads, and how."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import promql_parser

#: Functions over counters, and over gauges.
COUNTED = {"rate", "irate", "increase", "resets"}


@dataclass(frozen=True)
class Read:
    """One selector: the series, its label matchers by name, and the function applied first."""

    name: str
    labels: dict[str, str]
    function: str | None


def reads(expression: str) -> list[Read]:
    """Every selector of an expression.

    Raises:
        ValueError: it is no PromQL.
    """
    return list(_walk(promql_parser.parse(expression), None))


def _walk(node: Any, function: str | None) -> Iterator[Read]:
    match node:
        case promql_parser.VectorSelector():
            labels = {matcher.name: matcher.value for matcher in node.matchers.matchers}
            yield Read(node.name or "", labels, function)
        case promql_parser.MatrixSelector():
            yield from _walk(node.vector_selector, function)
        case promql_parser.Call():
            for argument in node.args:
                yield from _walk(argument, node.func.name)
        case promql_parser.BinaryExpr():
            yield from _walk(node.lhs, None)
            yield from _walk(node.rhs, None)
        case promql_parser.AggregateExpr() | promql_parser.ParenExpr():
            yield from _walk(node.expr, None)
        case promql_parser.UnaryExpr() | promql_parser.SubqueryExpr():
            yield from _walk(node.expr, None)
