"""Conditions of tags: a safe subset of Python expressions, compiled to one fast function.

A condition reads features by name and may use numbers, strings, ``None``, ``+ - * /``,
comparisons and their chains, ``and or not``, parentheses, and ``in`` with a literal list.
Everything else is refused when it is parsed, with what was found and what to write instead.

Meaning: as in Python, left to right, ``and`` and ``or`` stopping early; the condition holds
where the result is true. Where evaluation reaches something undefined (a division by zero, an
order comparison with null or of a string with a number, arithmetic on null or on strings),
the condition as a whole does not hold. In arithmetic a truth value counts as 1 or 0.

No text of a condition is ever executed: its syntax tree is checked node by node and built
anew, and only the new tree is compiled. Depth, length and numbers are bounded, so neither
loading nor evaluating can be made expensive.
"""

import ast
import operator
import re
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import CodeType
from typing import Any, Final

Value = bool | str | None
Number = int | float
Constants = tuple[Number, ...] | None
Reader = Callable[[Any], Any]

MAX_LENGTH: Final = 2_000  # characters of one condition
MAX_DEPTH: Final = 50  # levels of its syntax tree
MAX_NUMBER: Final = 1e300  # of a literal; keeps infinity and nan out of what is folded

UNDEFINED: Final = (ZeroDivisionError, TypeError, OverflowError)
"""What an undefined condition raises in Python."""


class ConditionError(ValueError):
    """A condition that is refused; ``reasons`` holds one line for each thing found."""

    def __init__(self, reasons: Sequence[str]) -> None:
        super().__init__("; ".join(reasons))
        self.reasons = tuple(reasons)


@dataclass(frozen=True, slots=True)
class Condition:
    """A condition that may run.

    ``text`` is as written, on one line. ``normal`` is equal for conditions that differ only in
    spacing, quotes and parentheses. ``reads`` names the features in order of first use, each
    with the numbers that alone decide what becomes of it: as long as the feature moves between
    two neighbouring ones without touching either, it changes nothing. ``None`` stands where
    there are no such numbers. ``remarks`` are mistakes that are no errors.
    """

    text: str
    normal: str
    expression: ast.expr
    reads: Mapping[str, Constants]
    remarks: tuple[str, ...] = ()


def parse(text: str, refusal: Callable[[str], str | None]) -> Condition:
    """The condition that ``text`` spells.

    ``refusal(name)`` says why a condition may not read a name; None where it may.

    Raises:
        ConditionError: ``text`` is outside the subset.

    >>> parse("days >= 2 * 7 or days == 3", lambda name: None).reads
    {'days': (3, 14)}
    >>> parse("__import__('os')", lambda name: None)
    Traceback (most recent call last):
    stream.conditions.ConditionError: "__import__('os')": calls are not allowed
    """
    line = re.sub(r"\s*[\r\n]\s*", " ", text.strip())
    tree = _syntax_tree(line)
    walk = _Walk(line, refusal)
    expression = walk.truth(tree)
    if walk.reasons:
        raise ConditionError(walk.reasons)
    reads = {
        name: None if constants is None else tuple(sorted(constants))
        for name, constants in walk.reads.items()
    }
    return Condition(line, ast.unparse(expression), expression, reads, tuple(walk.remarks))


def _syntax_tree(line: str) -> ast.expr:
    if len(line) > MAX_LENGTH:
        raise ConditionError([f"{len(line)} characters: at most {MAX_LENGTH:,}; split the tag"])
    if re.search("[\0\ud800-\udfff]", line):  # NUL and halves of surrogate pairs
        raise ConditionError(["holds characters that are not text"])
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # what Python merely warns of is refused
            tree = ast.parse(line, mode="eval").body
    except SyntaxError as error:
        raise ConditionError([_explained(line, error)]) from error
    except (MemoryError, RecursionError) as error:  # how CPython's parser says "too deep"
        raise ConditionError([_TOO_DEEP]) from error
    if _depth(tree) > MAX_DEPTH:
        raise ConditionError([_TOO_DEEP])
    assert tree.end_col_offset is not None  # set by ast.parse
    if line.encode()[tree.end_col_offset :].strip(b") \t"):
        raise ConditionError(["comments are not allowed: use `description`"])
    return tree


_TOO_DEEP = f"nested more than {MAX_DEPTH} levels deep: split the tag"

_SLIPS = (
    (r"&&|\|\||!(?!=)", "write and, or, not"),
    (r"=>|=<", "write >= or <="),
    (r"<>", "write !="),
    (r"(?<![=<>!])=(?!=)", "== compares"),
)


def _explained(line: str, error: SyntaxError) -> str:
    message = error.msg.partition(" (detected")[0].partition(". Maybe")[0].partition(". Perhaps")[0]
    place = f"column {error.offset}" if error.offset else "the end"
    slips = [remedy for pattern, remedy in _SLIPS if re.search(pattern, line)]
    return "; ".join([f"{message} at {place} of {_quoted(line)}", *slips])


def _quoted(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:59] + "…")


def _depth(tree: ast.AST) -> int:
    """Levels of expressions, counted without recursion."""
    depth, level = 0, [tree]
    while level:
        depth += 1
        level = [
            child
            for node in level
            for child in ast.iter_child_nodes(node)
            if isinstance(child, ast.expr)
        ]
    return depth


_ARITHMETIC: Final[Mapping[type[ast.operator], Callable[[Any, Any], Number]]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}

_ORDER: Final = (ast.Lt, ast.LtE, ast.Gt, ast.GtE)

_REFUSED: Final[Mapping[type[ast.AST], str]] = {
    ast.Call: "calls are not allowed",
    ast.Attribute: "dots are not allowed: name a feature",
    ast.Subscript: "square brackets may only hold the list after `in`",
    ast.List: "a list may only stand after `in`",
    ast.Tuple: "tuples are not allowed: write the list after `in` in square brackets",
    ast.Set: "sets are not allowed: write the list after `in` in square brackets",
    ast.Dict: "dictionaries are not allowed",
    ast.ListComp: "comprehensions are not allowed",
    ast.SetComp: "comprehensions are not allowed",
    ast.DictComp: "comprehensions are not allowed",
    ast.GeneratorExp: "comprehensions are not allowed",
    ast.Lambda: "lambda is not allowed",
    ast.JoinedStr: "f-strings are not allowed: write the string out",
    ast.NamedExpr: "assignments are not allowed",
    ast.IfExp: "if … else is not allowed: use and, or, not, or a tag with `cases`",
    ast.Starred: "* before a value is not allowed",
    ast.Await: "await is not allowed",
    ast.Pow: "** is not allowed: multiply",
    ast.FloorDiv: "// is not allowed: use /",
    ast.Mod: "% is not allowed",
    ast.MatMult: "@ is not allowed",
    ast.BitAnd: "& is not allowed: write and",
    ast.BitOr: "| is not allowed: write or",
    ast.BitXor: "^ is not allowed",
    ast.LShift: "<< is not allowed",
    ast.RShift: ">> is not allowed",
    ast.Invert: "~ is not allowed: write not",
    ast.UAdd: "+ needs two sides",
    ast.USub: "a minus needs two sides or a number: write 0 - …",
    ast.Is: "`is` is not allowed: write ==",
    ast.IsNot: "`is not` is not allowed: write !=",
}


class _Walk:
    """Checks a syntax tree node by node and builds it anew, noting what it reads."""

    def __init__(self, line: str, refusal: Callable[[str], str | None]) -> None:
        self.reasons: list[str] = []
        self.remarks: list[str] = []
        self.reads: dict[str, set[Number] | None] = {}
        self._source = line.encode()  # syntax trees count columns in bytes
        self._refusal = refusal

    def truth(self, node: ast.expr) -> ast.expr:
        """A node of which only the truth counts: a number is then compared with 0."""
        match node:
            case ast.Name():
                built = self._feature(node)
                self._decided_by(built, {0})
                return built
            case ast.BoolOp(op, values):
                return ast.BoolOp(op, [self.truth(value) for value in values])
        return self._value(node)

    def _value(self, node: ast.expr) -> ast.expr:
        match node:
            case ast.Constant() | ast.UnaryOp(ast.USub(), ast.Constant()):
                return self._literal(node)
            case ast.Name():
                built = self._feature(node)
                self._decided_by(built, None)
                return built
            case ast.UnaryOp(ast.Not() as op, operand):
                return ast.UnaryOp(op, self.truth(operand))
            case ast.BoolOp(op, values):
                return ast.BoolOp(op, [self._value(value) for value in values])
            case ast.Compare():
                return self._comparison(node)
            case ast.BinOp(left, op, right) if type(op) in _ARITHMETIC:
                return _folded(self._operand(left), op, self._operand(right))
            case ast.BinOp(op=op):
                return self._refuse(node, op)
            case ast.UnaryOp(op=op):
                return self._refuse(node, op)
        return self._refuse(node, node)

    def _literal(self, node: ast.expr) -> ast.expr:
        match node:
            case ast.UnaryOp(ast.USub() as op, operand):
                built = self._literal(operand)
                if isinstance(built, ast.Constant) and isinstance(built.value, int | float):
                    return ast.Constant(-built.value)
                return self._refuse(node, op)
            case ast.Constant(bool(value)):
                name = "the name itself" if value else "`not` and the name"
                return self._refuse(node, f"{value} is not allowed: write {name}")
            case ast.Constant(int(value) | float(value)) if not value <= MAX_NUMBER:
                return self._refuse(node, f"numbers go up to {MAX_NUMBER:g}")
            case ast.Constant(None | int() | float() | str()):
                return ast.Constant(node.value)
            case ast.Constant():
                return self._refuse(node, f"{type(node.value).__name__} values are not allowed")
        return self._refuse(node, "the list may only hold numbers, strings and None")

    def _feature(self, node: ast.Name) -> ast.expr:
        reason = self._refusal(node.id)
        if reason is not None:
            self.reasons.append(reason)
        self.reads.setdefault(node.id, set())
        return ast.Name(node.id, ast.Load())

    def _decided_by(self, feature: ast.expr, constants: Iterable[Number] | None) -> None:
        assert isinstance(feature, ast.Name)
        known = self.reads[feature.id]
        self.reads[feature.id] = (
            None if known is None or constants is None else known.union(constants)
        )

    def _operand(self, node: ast.expr) -> ast.expr:
        """One side of + - * /: a unary plus in front of it makes a string or null raise."""
        if isinstance(node, ast.Constant) and isinstance(node.value, str | None):
            return self._refuse(node, "arithmetic takes numbers")
        built = self._value(node)
        if isinstance(built, ast.Name | ast.BoolOp):
            return ast.UnaryOp(ast.UAdd(), built)
        return built

    def _comparison(self, node: ast.Compare) -> ast.expr:
        sides = [self._feature_or_value(node.left)]
        for index, (op, side) in enumerate(zip(node.ops, node.comparators, strict=True)):
            match op:
                case ast.Is() | ast.IsNot():
                    sides.append(self._refuse(node, op))
                case ast.In() | ast.NotIn():
                    last = index + 1 == len(node.ops)
                    sides.append(self._list(side) if last else self._refuse(node, _AFTER_LIST))
                case _:
                    sides.append(self._feature_or_value(side))
        for op, left, right in zip(node.ops, sides, sides[1:], strict=False):
            for side, other in (left, right), (right, left):
                if isinstance(side, ast.Name):
                    self._decided_by(side, _numbers(other))
                elif isinstance(op, _ORDER) and _is_none(side):
                    self.remarks.append(f"{self._quoted(node)}: never holds, None has no order")
        return ast.Compare(sides[0], node.ops, sides[1:])

    def _feature_or_value(self, node: ast.expr) -> ast.expr:
        return self._feature(node) if isinstance(node, ast.Name) else self._value(node)

    def _list(self, node: ast.expr) -> ast.expr:
        if not isinstance(node, ast.List):
            return self._refuse(node, "`in` takes a list of literals: [1, 'a', None]")
        return ast.List([self._literal(element) for element in node.elts], ast.Load())

    def _refuse(self, node: ast.expr, why: ast.AST | str) -> ast.expr:
        reason = why if isinstance(why, str) else _REFUSED.get(type(why), "is not allowed")
        self.reasons.append(f"{self._quoted(node)}: {reason}")
        return ast.Constant(None)

    def _quoted(self, node: ast.expr) -> str:
        return _quoted(self._source[node.col_offset : node.end_col_offset].decode())


_AFTER_LIST = "a chain of comparisons ends with the list"


def _folded(left: ast.expr, op: ast.operator, right: ast.expr) -> ast.expr:
    """``left op right``; computed already where both are numbers."""
    if isinstance(left, ast.Constant) and isinstance(right, ast.Constant):
        try:
            result = _ARITHMETIC[type(op)](left.value, right.value)
        except UNDEFINED:
            return ast.BinOp(left, op, right)
        if abs(result) <= MAX_NUMBER:
            return ast.Constant(result)
    return ast.BinOp(left, op, right)


def _is_none(side: ast.expr) -> bool:
    return isinstance(side, ast.Constant) and side.value is None


def _numbers(side: ast.expr) -> list[Number] | None:
    """The numbers among which a feature compared with ``side`` changes nothing."""
    match side:
        case ast.Constant(value):
            return [value] if isinstance(value, int | float) else []
        case ast.List(elements):
            return [number for element in elements for number in _numbers(element) or []]
    return None


def compile_tags(
    tags: Sequence[tuple[Value, Sequence[tuple[Value, Condition]]]], readers: Mapping[str, Reader]
) -> Callable[[Any], tuple[Value, ...]]:
    """One function of a user that gives the values of all ``tags``, in their order.

    A tag is its default and its cases; the first case whose condition holds gives the value.
    Each feature is read once per call, through ``readers``, whether it is needed or not:
    reading must not raise and changes nothing.

    >>> condition = parse("spend / orders > 50", lambda name: None)
    >>> readers = {name: operator.itemgetter(name) for name in condition.reads}
    >>> evaluate = compile_tags([(False, [(True, condition)])], readers)
    >>> evaluate({"spend": 90.0, "orders": 1}), evaluate({"spend": 90.0, "orders": 0})
    ((True,), (False,))
    """
    features = dict.fromkeys(
        name for _, cases in tags for _, condition in cases for name in condition.reads
    )
    namespace: dict[str, Any] = {"__builtins__": {}, "_undefined": UNDEFINED}
    namespace |= {f"_read_{name}": readers[name] for name in features}
    body: list[ast.stmt] = [
        _assign(name, ast.Call(_load(f"_read_{name}"), [_load("_user")], [])) for name in features
    ]
    results = [f"_value_{index}" for index in range(len(tags))]
    for result, (default, cases) in zip(results, tags, strict=True):
        body += _first_that_holds(result, default, cases)
    body.append(ast.Return(ast.Tuple([_load(result) for result in results], ast.Load())))
    exec(_function("evaluate", "_user", body), namespace)  # nothing in it but what is built here
    evaluate: Callable[[Any], tuple[Value, ...]] = namespace["evaluate"]
    return evaluate


def _first_that_holds(
    result: str, default: Value, cases: Sequence[tuple[Value, Condition]]
) -> list[ast.stmt]:
    """Statements, not nested in each other: Python limits the depth of blocks, not their number."""
    statements: list[ast.stmt] = [_assign(result, ast.Constant(default))]
    for index, (value, condition) in enumerate(cases):
        assign = _assign(result, ast.Constant(value))
        body: list[ast.stmt] = [ast.If(condition.expression, [assign], [])]
        handler = ast.ExceptHandler(_load("_undefined"), None, [ast.Pass()])
        attempt: ast.stmt = ast.Try(body, [handler], [], [])
        if index:
            unset = ast.Compare(_load(result), [ast.Is()], [ast.Constant(default)])
            attempt = ast.If(unset, [attempt], [])
        statements.append(attempt)
    return statements


def _function(name: str, parameter: str, body: list[ast.stmt]) -> CodeType:
    # Parsed, not built: the fields of a function's node differ between Python versions.
    shell = ast.parse(f"def {name}({parameter}): ...").body[0]
    assert isinstance(shell, ast.FunctionDef)
    shell.body = body
    return compile(ast.fix_missing_locations(ast.Module([shell], [])), "<tags>", "exec")


def _assign(name: str, value: ast.expr) -> ast.stmt:
    return ast.Assign([ast.Name(name, ast.Store())], value)


def _load(name: str) -> ast.expr:
    return ast.Name(name, ast.Load())
