"""A YAML file whose every value knows its line, and whose mistakes are collected, not raised.

Reading goes on after a mistake, so that one look shows them all. A value that is unusable
comes out as ``None`` (or an empty collection), with the reason noted in the document.
Nothing is constructed from YAML tags; only scalars, lists and maps are ever looked at.
"""

import difflib
import math
import re
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from operator import itemgetter
from pathlib import Path
from typing import Final

import yaml

MAX_BYTES: Final = 1 << 20  # of one file
_NUMBER: Final = r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?"
DURATION_MS: Final = {"s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
MAX_DAYS: Final = 3_660  # of one duration


@dataclass(slots=True)
class Document:
    """One file under check: its name and what is wrong or doubtful in it, by line."""

    name: str
    problems: list[tuple[int, str]] = field(default_factory=list)
    remarks: list[tuple[int, str]] = field(default_factory=list)
    notes: list[tuple[int, str]] = field(default_factory=list)

    def problem(self, line: int, text: str) -> None:
        """Note why the file cannot be used."""
        self.problems.append((line, text))

    def remark(self, line: int, text: str) -> None:
        """Note what its author should know."""
        self.remarks.append((line, text))

    def note(self, line: int, text: str) -> None:
        """Note what whoever governs the file may want to know: nothing that is wrong."""
        self.notes.append((line, text))

    def lines(self, notes: Collection[tuple[int, str]]) -> list[str]:
        """``notes`` as ``file:line: text``, in the order of lines; each fit for a terminal."""
        return [
            f"{self.name}:{line}: {''.join(char if char.isprintable() else ' ' for char in text)}"
            for line, text in sorted(notes, key=itemgetter(0))
        ]

    def root(self, text: str) -> "Entry | None":
        """The value that the whole file holds; None where it is empty or no YAML."""
        try:
            node = yaml.compose(text, Loader=yaml.SafeLoader)
        except yaml.reader.ReaderError as error:
            line = text.count("\n", 0, error.position) + 1
            self.problem(line, "holds a control character: remove it")
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            reason = " ".join(part for part in (error.context, error.problem) if part)
            self.problem(mark.line + 1 if mark else 1, f"not YAML: {reason}; {_YAML_REMEDY}")
        except RecursionError:
            self.problem(1, "not YAML that can be read: nested too deep")
        else:
            if node is not None:
                return Entry(self, node, node.start_mark.line + 1)
            self.problem(1, "nothing is defined")
        return None


_YAML_REMEDY = (
    "indent with spaces, and put a value in quotes where it holds ': ' or ' #' "
    "or begins with a quote or another special character"
)


def read_text(path: Path, document: Document) -> str | None:
    """The text of a file in UTF-8; None, with the reason noted, where there is none."""
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except OSError as error:
        document.problem(1, f"cannot be read: {error.strerror}")
        return None
    if len(raw) > MAX_BYTES:
        document.problem(1, f"over {MAX_BYTES:,} bytes: split or shorten it")
        return None
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        document.problem(line, "not UTF-8: save the file in that encoding")
        return None


@dataclass(frozen=True, slots=True)
class Entry:
    """One value of the file.

    ``line`` is where it begins, key included; ``key`` is what it is called, ``owner`` the tag
    that it belongs to.
    """

    document: Document
    node: yaml.Node
    line: int
    key: str = ""
    owner: str = ""

    def problem(self, reason: str) -> None:
        """Note why this value cannot be used."""
        self.document.problem(self.line, self._placed(reason))

    def remark(self, reason: str) -> None:
        """Note what the author should know of this value."""
        self.document.remark(self.line, self._placed(reason))

    def note(self, reason: str) -> None:
        """Note what whoever governs the file may want to know of this value."""
        self.document.note(self.line, self._placed(reason))

    def _placed(self, reason: str) -> str:
        return ": ".join(part for part in (self.owner, self.key, reason) if part)

    def wanted(self, what: str) -> None:
        """Note that this is not what it should be."""
        self.problem(f"found {self.found()}, must be {what}")

    def found(self) -> str:
        """What stands here, in words."""
        match self.node:
            case yaml.ScalarNode(value=value):
                return repr(value[:60]) if value else "nothing"
            case yaml.SequenceNode():
                return "a list"
        return "a map"

    def scalar(self, *kinds: str) -> str | None:
        """The characters of a scalar that YAML takes for one of ``kinds``."""
        if isinstance(self.node, yaml.ScalarNode):
            tag = self.node.tag.rpartition(":")[2]
            if tag in kinds:
                return str(self.node.value)
        return None

    def text(self, what: str = "text; put it in quotes") -> str | None:
        """A string that is not empty; ``what`` says in words what is wanted."""
        value = self.scalar("str")
        if value is None:
            self.wanted(what)
            return None
        if not value.strip():
            self.problem("must not be empty")
            return None
        if not _is_text(value):
            self.problem("holds control characters, or others that are not text")
            return None
        return value

    def word(self, pattern: str, what: str) -> str | None:
        """A string that ``pattern`` matches as a whole; ``what`` says so in words."""
        value = self.scalar("str")
        if value is None or not re.fullmatch(pattern, value):
            self.wanted(what)
            return None
        return value

    def one_of(self, *values: str) -> str | None:
        """One of ``values``."""
        value = self.scalar("str")
        if value not in values:
            self.wanted(" or ".join(values))
            return None
        return value

    def whole(self) -> int | None:
        """A whole number from 1 to a thousand million."""
        value = self.scalar("int")
        if value is None or not re.fullmatch(r"[1-9][0-9]{0,9}", value) or int(value) > 10**9:
            self.wanted("a whole number from 1")
            return None
        return int(value)

    def share(self) -> float | None:
        """A number from 0 to 1."""
        value = self.scalar("int", "float")
        try:
            share = float(value) if value is not None else -1.0
        except ValueError:  # what is a number to YAML only, as 1:30
            share = -1.0
        if not 0 <= share <= 1:
            self.wanted("a number from 0 to 1")
            return None
        return share

    def number(self, least: float, most: float) -> float | None:
        """A number between ``least`` and ``most``."""
        # To YAML 1.1, 4e-05 is a string.
        value = self.scalar("int", "float", "str") or ""
        number = float(value) if re.fullmatch(_NUMBER, value) else math.nan
        if not least <= number <= most:
            self.wanted(f"a number from {least:g} to {most:g}")
            return None
        return number

    def duration_ms(self) -> int | None:
        """A duration: a whole number and s, m, h or d."""
        match = re.fullmatch(r"([0-9]{1,12})([smhd])", self.scalar("str") or "")
        if match is None:
            self.wanted("a whole number and s, m, h or d, as 30s, 1m, 3h or 7d")
            return None
        duration = int(match[1]) * DURATION_MS[match[2]]
        if duration > MAX_DAYS * DURATION_MS["d"]:
            self.wanted(f"at most {MAX_DAYS}d")
            return None
        return duration

    def items(self) -> list["Entry"]:
        """The values of a list."""
        if not isinstance(self.node, yaml.SequenceNode):
            self.wanted("a list")
            return []
        return [self._inner(node, node, self.key) for node in self.node.value]

    def entries(self) -> dict[str, "Entry"]:
        """The values of a map by key, in order; a repeated key is a problem."""
        if not isinstance(self.node, yaml.MappingNode):
            self.wanted("a map of names and values")
            return {}
        found: dict[str, Entry] = {}
        for key_node, value_node in self.node.value:
            key = self._inner(key_node, key_node)
            name = key.scalar("str")
            if name is None or not _is_text(name):
                key.problem(f"the key {key.found()} must be text: put it in quotes")
            elif name in found:
                first = found[name].line
                key.problem(f"'{name}' is in line {first} already: remove or rename one of them")
            else:
                found[name] = self._inner(key_node, value_node, name)
        return found

    def fields(self, required: Collection[str], optional: Collection[str]) -> dict[str, "Entry"]:
        """The values of a map that may hold these keys and no others."""
        found = self.entries()
        known = [*required, *optional]
        for name in [name for name in found if name not in known]:
            hint = did_you_mean(name, known) or f": known are {', '.join(known)}"
            replace(found.pop(name), key="").problem(f"unknown key '{name}'{hint}")
        if self.is_map:
            for name in required:
                if name not in found:
                    self.problem(f"'{name}' is missing: add it")
        return found

    def peek(self, name: str) -> str:
        """The scalar under a key of a map, unchecked, to call the map by; empty if none."""
        pairs = self.node.value if isinstance(self.node, yaml.MappingNode) else []
        named = (value.value for key, value in pairs if key.value == name)
        return next((value[:60] for value in named if isinstance(value, str)), "")

    @property
    def is_map(self) -> bool:
        """Whether it is a map, with keys or without."""
        return isinstance(self.node, yaml.MappingNode)

    def _inner(self, place: yaml.Node, node: yaml.Node, key: str = "") -> "Entry":
        return Entry(self.document, node, place.start_mark.line + 1, key, self.owner)


def did_you_mean(word: str, known: Collection[str]) -> str:
    """``: did you mean …?`` where ``word`` looks like something known, else nothing."""
    guesses = difflib.get_close_matches(word, known, n=1)
    return f": did you mean '{guesses[0]}'?" if guesses else ""


def _is_text(value: str) -> bool:
    """Whether it can be shown and written: YAML can spell escapes and half a surrogate pair."""
    return not re.search("[\0-\x08\x0b-\x1f\x7f\ud800-\udfff]", value)
