"""Conditions: what they mean, what is refused and why, and which numbers decide them."""

import ast
import math
from bisect import bisect_left, bisect_right
from collections.abc import Callable
from operator import itemgetter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream.conditions import MAX_DEPTH, MAX_LENGTH, ConditionError, Value, compile_tags, parse

FEATURES = ("a", "b", "c")


User = dict[str, Any]


def refusal(name: str) -> str | None:
    return None if name in FEATURES else f"unknown feature '{name}'"


def compiled(text: str) -> Callable[[User], Value]:
    """The condition as a function of a user, who is a map of features here."""
    readers = {name: itemgetter(name) for name in FEATURES}
    evaluate = compile_tags([(False, [(True, parse(text, refusal))])], readers)
    return lambda user: evaluate(user)[0]


def reasons(text: str) -> tuple[str, ...]:
    with pytest.raises(ConditionError) as caught:
        parse(text, refusal)
    return caught.value.reasons


# -- meaning: against an interpreter that follows the words of the promise


class Undefined(Exception):
    """Evaluation has reached what makes the whole condition false."""


def holds(text: str, user: User) -> bool:
    try:
        return bool(interpret(ast.parse(text, mode="eval").body, user))
    except Undefined:
        return False


def interpret(node: ast.AST, user: User) -> Any:
    match node:
        case ast.Constant(value):
            return value
        case ast.Name(name):
            return user[name]
        case ast.UnaryOp(ast.USub(), ast.Constant(value)):
            return -value  # type: ignore[operator]  # a number, or it had been refused
        case ast.UnaryOp(ast.Not(), operand):
            return not interpret(operand, user)
        case ast.BoolOp(joint, operands):
            for operand in operands:
                result = interpret(operand, user)
                if bool(result) == isinstance(joint, ast.Or):
                    break
            return result
        case ast.BinOp(left, op, right):
            return arithmetic(op, interpret(left, user), interpret(right, user))
        case ast.Compare(left, ops, comparators):
            one = interpret(left, user)
            for comparison, comparator in zip(ops, comparators, strict=True):
                other = interpret(comparator, user)
                if not compare(comparison, one, other):
                    return False
                one = other
            return True
        case ast.List(elements):
            return [interpret(element, user) for element in elements]
    raise AssertionError(ast.dump(node))


def arithmetic(op: ast.operator, left: Any, right: Any) -> float:
    if not isinstance(left, int | float) or not isinstance(right, int | float):
        raise Undefined
    try:
        match op:
            case ast.Add():
                return left + right
            case ast.Sub():
                return left - right
            case ast.Mult():
                return left * right
        return left / right
    except (ZeroDivisionError, OverflowError):
        raise Undefined from None


def compare(op: ast.cmpop, left: Any, right: Any) -> bool:
    match op:
        case ast.Eq():
            return bool(left == right)
        case ast.NotEq():
            return bool(left != right)
        case ast.In():
            return any(left == element for element in right)
        case ast.NotIn():
            return all(left != element for element in right)
    numbers = isinstance(left, int | float) and isinstance(right, int | float)
    if not numbers and not (isinstance(left, str) and isinstance(right, str)):
        raise Undefined
    order = {
        ast.Lt: left < right,
        ast.LtE: left <= right,
        ast.Gt: left > right,
        ast.GtE: left >= right,
    }
    return bool(order[type(op)])


NUMBERS = st.integers(-9, 9) | st.sampled_from([0.5, -2.5, 3.0, 10**400])
LITERALS = NUMBERS.filter(lambda number: abs(number) < 10) | st.sampled_from(["", "x", "y", None])
VALUES = NUMBERS | st.sampled_from([math.inf, "", "x", "y", None, True, False])
USERS = st.fixed_dictionaries(dict.fromkeys(FEATURES, VALUES))
CONSTANT = st.builds(ast.Constant, LITERALS)
NAME = st.builds(ast.Name, st.sampled_from(FEATURES))
LIST = st.builds(ast.List, st.lists(CONSTANT, max_size=3))
COMPARISONS = st.sampled_from([ast.Eq(), ast.NotEq(), ast.Lt(), ast.LtE(), ast.Gt(), ast.GtE()])
MEMBERSHIP = st.sampled_from([ast.In(), ast.NotIn()])
OPERATORS = st.sampled_from([ast.Add(), ast.Sub(), ast.Mult(), ast.Div()])


def is_number_at_run_time(node):
    return not (isinstance(node, ast.Constant) and isinstance(node.value, str | None))


def larger(inner):
    operand = inner.filter(is_number_at_run_time)
    chain = st.lists(st.tuples(COMPARISONS, inner), min_size=1, max_size=3)
    return st.one_of(
        st.builds(ast.BinOp, operand, OPERATORS, operand),
        st.builds(lambda value: ast.UnaryOp(ast.Not(), value), inner),
        st.builds(
            ast.BoolOp,
            st.sampled_from([ast.And(), ast.Or()]),
            st.lists(inner, min_size=2, max_size=3),
        ),
        st.builds(
            lambda left, rest: ast.Compare(left, [op for op, _ in rest], [to for _, to in rest]),
            inner,
            chain,
        ),
        st.builds(lambda left, op, to: ast.Compare(left, [op], [to]), inner, MEMBERSHIP, LIST),
        st.builds(
            lambda left, first, middle, op, to: ast.Compare(left, [first, op], [middle, to]),
            inner,
            COMPARISONS,
            inner,
            MEMBERSHIP,
            LIST,
        ),
    )


TEXTS = st.recursive(CONSTANT | NAME, larger, max_leaves=12).map(ast.unparse)


@given(TEXTS, USERS)
def test_a_compiled_condition_agrees_with_a_naive_interpreter(text, user):
    """Every construct of the subset, on numbers, infinity, strings, null and booleans."""
    assert compiled(text)(user) is holds(text, user)


@given(TEXTS, USERS, st.sampled_from(FEATURES))
def test_a_feature_between_two_of_its_constants_changes_nothing(text, user, feature):
    """``reads`` tells where a growing number can change a condition, and nowhere else."""
    constants = parse(text, refusal).reads.get(feature, ())
    if constants is None:
        return
    function = compiled(text)
    results: dict[object, set[object]] = {}
    for value in [*(step / 2 for step in range(-30, 31)), 77, 1e6, math.inf]:
        place = bisect_left(constants, value), bisect_right(constants, value)
        results.setdefault(place, set()).add(function(user | {feature: value}))
    assert all(len(found) == 1 for found in results.values())


@given(TEXTS)
def test_the_normal_form_is_a_condition_that_means_the_same(text):
    """What the fingerprint hashes loses nothing: normalising it again changes nothing."""
    condition = parse(text, refusal)
    spaced = parse(f"( {text} )", refusal)
    assert spaced.normal == condition.normal


@pytest.mark.parametrize(
    ("text", "user", "expected"),
    [
        ("a / b > 1", {"a": 1, "b": 0}, False),
        ("not a / b > 1", {"a": 1, "b": 0}, False),  # undefined, whatever stands around it
        ("a > 0 or a / b > 1", {"a": 1, "b": 0}, True),  # never reached
        ("a / b > 1 or a > 0", {"a": 1, "b": 0}, False),
        ("a < 3", {"a": None}, False),
        ("not a < 3", {"a": None}, False),
        ("a == None", {"a": None}, True),
        ("a != None and a < 3", {"a": None}, False),
        ("1 < a <= 3", {"a": 3}, True),
        ("1 < a <= b / c", {"a": 0, "b": 1, "c": 0}, False),
        ("a in ['x', 2, None]", {"a": 2.0}, True),
        ("a not in ['x', -2]", {"a": -2}, False),
        ("a in []", {"a": 1}, False),
        ("a < 3", {"a": "x"}, False),
        ("a * 1000000000 == 'x'", {"a": "x"}, False),
        ("a + b == 'xx'", {"a": "x", "b": "x"}, False),
        ("(a or 'x') * 2 == 'xx'", {"a": ""}, False),
        ("a + b >= 2", {"a": True, "b": True}, True),  # truth values count
        ("(a > 0) + (b > 0) + (c > 0) >= 2", {"a": 1, "b": 0, "c": 1}, True),
        ("a > 5", {"a": math.inf}, True),
        ("a - a == 0", {"a": math.inf}, False),
        ("a / 3 > 1", {"a": 10**400}, False),  # too large for a float
        ("a - -1 == 2", {"a": 1}, True),
        ("a", {"a": "x"}, True),
        ("not a", {"a": 0}, True),
    ],
)
def test_what_a_condition_means(text, user, expected):
    """The corners, one by one; the interpreter above agrees."""
    user = dict.fromkeys(FEATURES) | user
    assert compiled(text)(user) is expected
    assert holds(text, user) is expected


def test_a_condition_may_go_over_several_lines():
    """Line ends are spaces, as in a YAML block; strings keep theirs."""
    condition = parse("\n a == 'x  y'\n   or b > 1\n", refusal)
    assert condition.text == "a == 'x  y' or b > 1"
    assert list(condition.reads) == ["a", "b"]


# -- which constants decide


@pytest.mark.parametrize(
    ("text", "reads"),
    [
        ("a >= 7 or a < 3 or b != 'x'", {"a": (3, 7), "b": ()}),
        ("1 < a <= 5", {"a": (1, 5)}),
        ("a in [3, 'x', 1, None]", {"a": (1, 3)}),
        ("a > 2 * 7 - 0.5", {"a": (13.5,)}),
        ("-3 <= a", {"a": (-3,)}),
        ("a < 1e200 * 1e200", {"a": None}),  # infinite: left to run time
        ("a and not b", {"a": (0,), "b": (0,)}),
        ("a > b", {"a": None, "b": None}),
        ("a + 1 > 3 and a > 2", {"a": None}),
        ("1 < a < b", {"a": None, "b": None}),
        ("(a or b) > 3", {"a": None, "b": None}),
        ("(a > 1) + (b > 2) > 1", {"a": (1,), "b": (2,)}),
        ("a == None and a != 'x'", {"a": ()}),
        ("c > 1 and b / a > 2", {"c": (1,), "b": None, "a": None}),
    ],
)
def test_constants_that_a_feature_is_compared_with(text, reads):
    """Sorted numbers where only they matter, None where more than they do; order of first use."""
    found = parse(text, refusal).reads
    assert found == reads
    assert list(found) == list(reads)


# -- what is refused


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("abs(a) > 1", "'abs(a)': calls are not allowed"),
        ("a.real > 1", "'a.real': dots are not allowed: name a feature"),
        ("a[0] > 1", "'a[0]': square brackets may only hold the list after `in`"),
        ("[1, 2] == a", "'[1, 2]': a list may only stand after `in`"),
        ("a in (1, 2)", "'(1, 2)': `in` takes a list of literals: [1, 'a', None]"),
        ("a in {1, 2}", "'{1, 2}': `in` takes a list of literals: [1, 'a', None]"),
        ("'x' in a", "'a': `in` takes a list of literals: [1, 'a', None]"),
        ("a in [b]", "'b': the list may only hold numbers, strings and None"),
        ("a in [[1]]", "'[1]': the list may only hold numbers, strings and None"),
        ("a in [1 + 1]", "'1 + 1': the list may only hold numbers, strings and None"),
        ("a in [*b]", "'*b': the list may only hold numbers, strings and None"),
        ("a in [True]", "'True': True is not allowed: write the name itself"),
        ("a in [1] == b", "'a in [1] == b': a chain of comparisons ends with the list"),
        ("a == (1, 2)", "'(1, 2)': tuples are not allowed: write the list after `in` in square"),
        ("a == {1}", "'{1}': sets are not allowed: write the list after `in` in square brackets"),
        ("a == {1: 2}", "'{1: 2}': dictionaries are not allowed"),
        ("[x for x in a]", "'[x for x in a]': comprehensions are not allowed"),
        ("{x for x in a}", "'{x for x in a}': comprehensions are not allowed"),
        ("{x: 1 for x in a}", "'{x: 1 for x in a}': comprehensions are not allowed"),
        ("(x for x in a)", "'(x for x in a)': comprehensions are not allowed"),
        ("lambda: 1", "'lambda: 1': lambda is not allowed"),
        ("f'{a}' == b", "\"f'{a}'\": f-strings are not allowed: write the string out"),
        ("(d := 3) > a", "'d := 3': assignments are not allowed"),
        ("a if b else c", "'a if b else c': if … else is not allowed: use and, or, not, or a tag"),
        ("a == [*b]", "'[*b]': a list may only stand after `in`"),
        ("(await a)", "'await a': await is not allowed"),
        ("a ** 2 > 1", "'a ** 2': ** is not allowed: multiply"),
        ("a // 2 > 1", "'a // 2': // is not allowed: use /"),
        ("a % 2 == 1", "'a % 2': % is not allowed"),
        ("a @ b", "'a @ b': @ is not allowed"),
        ("a & b", "'a & b': & is not allowed: write and"),
        ("a | b", "'a | b': | is not allowed: write or"),
        ("a ^ b", "'a ^ b': ^ is not allowed"),
        ("a << 1", "'a << 1': << is not allowed"),
        ("a >> 1", "'a >> 1': >> is not allowed"),
        ("~a", "'~a': ~ is not allowed: write not"),
        ("+a > 1", "'+a': + needs two sides"),
        ("-a > 1", "'-a': a minus needs two sides or a number: write 0 - …"),
        ("-'x' == a", "\"-'x'\": a minus needs two sides or a number: write 0 - …"),
        ("a is None", "'a is None': `is` is not allowed: write =="),
        ("a is not None", "'a is not None': `is not` is not allowed: write !="),
        ("a == True", "'True': True is not allowed: write the name itself"),
        ("a == False", "'False': False is not allowed: write `not` and the name"),
        ("a == b'x'", "\"b'x'\": bytes values are not allowed"),
        ("a > 1j", "'1j': complex values are not allowed"),
        ("a == ...", "'...': ellipsis values are not allowed"),
        ("a > 1e999", "'1e999': numbers go up to 1e+300"),
        ("'x' * 1000000000 == a", "\"'x'\": arithmetic takes numbers"),
        ("a + 'x' == 'xx'", "\"'x'\": arithmetic takes numbers"),
        ("None + 1 > a", "'None': arithmetic takes numbers"),
        ("a > d", "unknown feature 'd'"),
        ("a = 3", "invalid syntax at column 3 of 'a = 3'; == compares"),
        ("a && b", "invalid syntax at column 4 of 'a && b'; write and, or, not"),
        ("!a", "invalid syntax at column 1 of '!a'; write and, or, not"),
        ("a => 3", "invalid syntax at column 3 of 'a => 3'; write >= or <="),
        ("a <> 3", "invalid syntax at column 3 of 'a <> 3'; write !="),
        ("a >", "invalid syntax at the end of 'a >'"),
        ("(a > 1", "'(' was never closed at column 1 of '(a > 1'"),
        ("a == 'x", 'unterminated string literal at column 6 of "a == \'x"'),
        (r"a == '\d'", r"invalid escape sequence '\d' at column 6"),
        ("a > 1or b", "invalid decimal literal at column 5 of 'a > 1or b'"),
        ("a; b", "invalid syntax at column 2 of 'a; b'"),
        ("import os", "invalid syntax at column 1 of 'import os'"),
        ("a > 1 # why", "comments are not allowed: use `description`"),
        ("a\x00", "holds characters that are not text"),
        ("a == '\ud800'", "holds characters that are not text"),
        ("a + " * 60 + "a > 1", f"nested more than {MAX_DEPTH} levels deep: split the tag"),
        ("not " * 450 + "a", f"nested more than {MAX_DEPTH} levels deep: split the tag"),
        ("-" * 1_900 + "1", f"nested more than {MAX_DEPTH} levels deep: split the tag"),
        ("(" * 900 + "a" + ")" * 900, "too many nested parentheses at column 201"),
        ("a > 1 and " * 250 + "a", f"2501 characters: at most {MAX_LENGTH:,}; split the tag"),
    ],
)
def test_what_is_refused_and_what_to_write_instead(text, reason):
    """One construct each: where, why, and the remedy where there is one."""
    (found,) = reasons(text)
    assert found.startswith(reason)


def test_every_fault_of_a_condition_is_named():
    """One look shows them all, in order."""
    assert reasons("d > 1 and abs(a) > 2 ** b and a is None") == (
        "unknown feature 'd'",
        "'abs(a)': calls are not allowed",
        "'2 ** b': ** is not allowed: multiply",
        "'a is None': `is` is not allowed: write ==",
    )


def test_an_order_with_none_is_remarked():
    """It is allowed, never holds, and its author should know."""
    (remark,) = parse("a < None", refusal).remarks
    assert remark == "'a < None': never holds, None has no order"


@given(st.text("ab()[]{}<>=!+-*/%'\"\\.,:;#@ \n\t0129eEjxorandti_é\x00\ud800", max_size=40))
def test_no_text_does_anything_but_parse_or_be_refused(text):
    """Whatever stands in a file, there is an answer for its author and no other exception."""
    try:
        parse(text, refusal)
    except ConditionError as error:
        assert error.reasons


# -- the compiled function


def test_the_first_case_that_holds_names_the_value():
    """Later cases do not matter; none holds: the default; an undefined one is passed over."""
    cases = [("high", "a / b > 5"), ("low", "a >= 1"), ("none", "a == 0")]
    readers = {name: itemgetter(name) for name in FEATURES}
    evaluate = compile_tags(
        [(None, [(value, parse(text, refusal)) for value, text in cases])], readers
    )
    assert evaluate({"a": 12, "b": 2}) == ("high",)
    assert evaluate({"a": 12, "b": 0}) == ("low",)
    assert evaluate({"a": 0, "b": 1}) == ("none",)
    assert evaluate({"a": None, "b": 1}) == (None,)


def test_each_feature_is_read_once_per_call():
    """However many tags and cases read it."""
    reads: list[str] = []

    def reader(name: str) -> Callable[[User], Any]:
        def read(user: User) -> Any:
            reads.append(name)
            return user[name]

        return read

    texts = ["a > 1 and a < 3", "a == 2 or b == 1"]
    tags = [(False, [(True, parse(text, refusal))]) for text in texts]
    evaluate = compile_tags(tags, {name: reader(name) for name in FEATURES})
    assert evaluate({"a": 2, "b": 0}) == (True, True)
    assert reads == ["a", "b"]


def test_hundreds_of_tags_and_cases_compile():
    """Python's limit on nested blocks does not limit definitions."""
    cases = [(f"v{index}", parse(f"a == {index}", refusal)) for index in range(200)]
    evaluate = compile_tags([(None, cases)] * 20, {"a": itemgetter("a")})
    assert evaluate({"a": 199}) == ("v199",) * 20


def test_no_tags_give_no_values():
    """A domain without definitions costs nothing and works."""
    assert compile_tags([], {})({}) == ()
