"""Definitions of tags: ``tags.yaml`` read, checked whole, and compiled.

Promise: a file is either used as it is or refused with every problem it has, each as
``file:line: tag 'name': reason`` with the remedy. What is loaded never changes.
Boundary: domains and their features are the caller's; what conditions may say and how they
run is in `stream/conditions.py`. No state, no clock, no broker.
"""

import hashlib
import json
import keyword
import operator
import re
import zoneinfo
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar

from stream import conditions
from stream.conditions import (
    Condition,
    ConditionError,
    Constants,
    Reader,
    Value,
    compile_tags,
)
from stream.document import DURATION_MS, Document, Entry, did_you_mean, read_text
from stream.errors import RulesError
from tables.features import evidence_of

PROFILE: Final = "profile"
"""The domain of tags made of tags: its conditions read other tags by name."""

DAILY_PREFIX: Final = "days_since_"
"""Features named so grow by one at every local midnight, for every user, for ever."""

PROBABILITY: Final = 0.4
"""What a predicted warning says at least, where ``churn`` does not say how sure it has to be."""

PARAMETERS: Final = {
    "m0": (-20.0, 20.0),
    "kappa0": (1e-9, 1e9),
    "a0": (1e-9, 1e9),
    "b0": (1e-9, 1e9),
    "a": (0.0, 1e9),
    "b": (1e-9, 1e9),
}
"""The parameters of predicted churn, and between which numbers each makes sense."""

_NAME = r"[A-Za-z][A-Za-z0-9_]{0,63}"
_NAME_IN_WORDS = "a name: a letter, then letters, digits and _, 64 at most, no word of Python"
_VALUE = r"\w[\w.-]{0,63}"

T = TypeVar("T")
D = TypeVar("D")


class DomainFeatures(Protocol):
    """What conditions of one domain may read.

    ``features`` gives for each name how to read it from a user; ``attribute_reader`` makes
    such a reader for a declared attribute, in the domain that keeps attributes.
    """

    @property
    def features(self) -> Mapping[str, Reader]: ...
    @property
    def attribute_reader(self) -> Callable[[str], Reader] | None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Churn:
    """When to warn that a user is about to be lost, ``lead_ms`` before a silence of ``after_ms``.

    In mode ``predicted`` once that has the ``probability``, going by the ``parameters`` of the
    population, by name; None: the generic ones.
    """

    mode: str
    after_ms: int
    lead_ms: int
    control: float
    probability: float = PROBABILITY
    parameters: Mapping[str, float] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Definition:
    """One tag as defined.

    ``title`` is what to show; ``titles`` has it by language where the file does. ``labels`` has
    the same of values of ``cases``: by value, then by language, "" where the file gives just one.
    ``cases`` are values and their conditions: a ``when`` tag has the one case True.
    ``values`` are all it can have, the one it starts with first. ``features`` are what its
    conditions read, in order of first use.
    """

    name: str
    title: str
    titles: Mapping[str, str]
    labels: Mapping[str, Mapping[str, str]]
    domain: str
    owner: str
    description: str
    use: str
    version: int
    control: float | None
    kind: str
    cases: tuple[tuple[Value, Condition], ...]
    values: tuple[Value, ...]
    features: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class DomainRules:
    """The tags of one domain, ready to run; all sequences are in the order of the file.

    ``evaluate(user)`` gives their values as of the user's clock. ``evidence[i](user)`` gives
    what tag i reads, infinity as None. ``thresholds`` has for every feature that a tag reads
    the sorted numbers that it is compared with, None where it is used in any other way.
    """

    tags: tuple[Definition, ...]
    defaults: tuple[Value, ...]
    evaluate: Callable[[Any], tuple[Value, ...]]
    evidence: tuple[Callable[[Any], dict[str, Any]], ...]
    thresholds: Mapping[str, Constants]


@dataclass(frozen=True, slots=True, kw_only=True)
class ProfileRules:
    """Tags made of tags, ready to run, in the order of the file.

    ``unset`` has what every tag of every domain is worth to somebody who never had it.
    ``cases[i](values)`` gives the value of tag i from those of all others by name: of the
    domains, and of the profile tags above it. ``reads`` are the tags that any of them reads.
    ``fingerprint`` is equal where the same tags of domains make the same of these.
    """

    tags: tuple[Definition, ...]
    unset: Mapping[str, Value]
    cases: tuple[Callable[[Mapping[str, Value]], Value], ...]
    reads: frozenset[str]
    fingerprint: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """One file of definitions.

    ``breakdown`` is the tag by whose value operating figures are counted.
    ``fingerprint`` is equal for files that make the same outputs of the same events, whatever
    their titles, descriptions and layout. ``source`` is the text itself. ``warnings`` and
    ``notes`` are lines for its author, of what is probably not meant and of what others will miss.
    """

    version: int
    timezone: str
    max_lateness_ms: int
    allowed_delay_ms: int
    attributes: tuple[str, ...]
    churn: Churn | None
    breakdown: str | None
    tags: tuple[Definition, ...]
    fingerprint: str
    source: str
    warnings: tuple[str, ...]
    notes: tuple[str, ...]
    domains: Mapping[str, DomainRules]
    profile: ProfileRules

    def domain(self, name: str) -> DomainRules:
        """The tags of one domain; KeyError where there is no such domain."""
        return self.domains[name]


def load(path: Path, domains: Mapping[str, DomainFeatures]) -> Rules:
    """The definitions in a file, for these domains.

    Raises:
        RulesError: the file cannot be used; it holds every problem, in the order of the file.
    """
    document = Document(str(path))
    text = read_text(path, document)
    if text is None:
        raise RulesError(document.lines(document.problems))
    return parse(text, document.name, domains)


def parse(text: str, name: str, domains: Mapping[str, DomainFeatures]) -> Rules:
    """The definitions that ``text`` holds; problems call it ``name``. Raises as `load` does."""
    document = Document(name)
    rules = _File(document, domains).rules(text)
    if rules is None:
        raise RulesError(document.lines(document.problems))
    return rules


class _File:
    """One reading of a file: what is already known of it while the rest is checked."""

    def __init__(self, document: Document, domains: Mapping[str, DomainFeatures]) -> None:
        self.document = document
        self.domains = domains
        self.readers: dict[str, dict[str, Reader]] = {
            name: dict(domain.features) for name, domain in domains.items()
        }
        # What a tag made of tags may read: those of the domains, and of its own above it.
        self.tags: set[str] = set()

    def rules(self, text: str) -> Rules | None:
        """Everything; None where a problem leaves a gap. Problems are in the document."""
        root = self.document.root(text)
        if root is None:
            return None
        found = root.fields(
            ("version", "timezone", "tags"),
            ("max_lateness", "allowed_delay", "attributes", "churn", "breakdown"),
        )
        version = _read(found, "version", Entry.whole, None)
        timezone = _read(found, "timezone", _timezone, None)
        max_lateness_ms = _duration(found, "max_lateness", 7 * DURATION_MS["d"], least_ms=1)
        allowed_delay_ms = _duration(found, "allowed_delay", DURATION_MS["m"], least_ms=0)
        attributes = _read(found, "attributes", self._attributes, ())
        churn = _read(found, "churn", _churn, None)
        tags = _read(found, "tags", self._tags, ())
        breakdown = _read(found, "breakdown", lambda entry: self._breakdown(entry, tags), None)
        if self.document.problems or version is None or timezone is None:
            return None
        read = {name for tag in tags for name in tag.features}
        if unread := [name for name in attributes if name not in read]:
            found["attributes"].note(f"no tag reads {', '.join(unread)}: look-ups show them")
        churn_key = _deciding_of(churn) if churn else None
        deciding = [version, timezone, max_lateness_ms, allowed_delay_ms, attributes, churn_key]
        return Rules(
            version=version,
            timezone=timezone,
            max_lateness_ms=max_lateness_ms,
            allowed_delay_ms=allowed_delay_ms,
            attributes=attributes,
            churn=churn,
            breakdown=breakdown,
            tags=tags,
            fingerprint=_fingerprint([*deciding, [_deciding(tag) for tag in tags]]),
            source=text,
            warnings=tuple(self.document.lines(self.document.remarks)),
            notes=tuple(self.document.lines(self.document.notes)),
            domains={
                name: _compiled([tag for tag in tags if tag.domain == name], readers)
                for name, readers in self.readers.items()
            },
            profile=_profile(tags),
        )

    def _breakdown(self, entry: Entry, tags: Sequence[Definition]) -> str | None:
        name = entry.text("the name of a tag")
        names = [tag.name for tag in tags]
        if name is not None and name not in names:
            entry.problem(f"no tag '{name}' is defined{did_you_mean(name, names)}")
        return name

    def _attributes(self, entry: Entry) -> tuple[str, ...]:
        keepers = {
            name: domain.attribute_reader
            for name, domain in self.domains.items()
            if domain.attribute_reader is not None
        }
        declared: list[str] = []
        for item in entry.items():
            name = _name(item)
            if name is None:
                continue
            taken = [domain for domain in keepers if name in self.readers[domain]]
            if name in declared:
                item.problem(f"'{name}' is declared twice: remove one")
            elif taken:
                item.problem(f"'{name}' is a feature of {taken[0]}: choose another name")
            else:
                declared.append(name)
        for domain, reader in keepers.items():
            self.readers[domain] |= {name: reader(name) for name in declared}
        return tuple(declared)

    def _tags(self, entry: Entry) -> tuple[Definition, ...]:
        definitions: list[Definition] = []
        lines: dict[str, int] = {}
        items = entry.items()
        self.tags = {item.peek("name") for item in items if item.peek("domain") != PROFILE}
        for number, item in enumerate(items, 1):
            name = item.peek("name")
            tag = replace(item, key="", owner=f"tag '{name}'" if name else f"tag {number}")
            if name in lines:
                tag.problem(f"is in line {lines[name]} already: rename or remove one of them")
            elif name:
                lines[name] = item.line
            definition = self._definition(tag)
            if definition is not None:
                definitions.append(definition)
            self.tags.add(name)
        return tuple(definitions)

    def _definition(self, entry: Entry) -> Definition | None:
        if not entry.is_map:
            entry.wanted("a map: name, domain, when")
            return None
        found = entry.fields(
            ("name", "domain"),
            (
                *("title", "labels", "owner", "description", "use"),
                *("version", "when", "cases", "control"),
            ),
        )
        name = _read(found, "name", _name, None)
        domain = _read(found, "domain", self._domain, None)
        titles = _read(found, "title", _titles, {})
        if "title" not in found:
            entry.remark("has no title: people will see its name")
        version = _read(found, "version", Entry.whole, 1)
        control = _read(found, "control", Entry.share, None)
        owner, description, use = (
            _read(found, key, Entry.text, None) or "" for key in ("owner", "description", "use")
        )
        missing = [key for key in ("owner", "description") if key not in found]
        if missing:
            entry.note(f"has no {' and no '.join(missing)}: add what others should know of it")
        cases = self._cases(entry, found, domain)
        labels = _labels(found.get("labels"), [value for value, _ in cases])
        if name is None or domain is None or version is None:
            return None
        kind = "cases" if "cases" in found else "when"
        return Definition(
            name=name,
            title=next(iter(titles.values()), name),
            titles={language: title for language, title in titles.items() if language},
            labels=labels,
            domain=domain,
            owner=owner,
            description=description,
            use=use,
            version=version,
            control=control,
            kind=kind,
            cases=cases,
            values=(False if kind == "when" else None, *(value for value, _ in cases)),
            features=tuple(dict.fromkeys(name for _, case in cases for name in case.reads)),
        )

    def _domain(self, entry: Entry) -> str | None:
        name = entry.text()
        known = [*self.domains, PROFILE]
        if name is None or name in known:
            return name
        hint = did_you_mean(name, known) or f": known are {', '.join(known)}"
        entry.problem(f"unknown domain '{name}'{hint}")
        return None

    def _cases(
        self, entry: Entry, found: Mapping[str, Entry], domain: str | None
    ) -> tuple[tuple[Value, Condition], ...]:
        if "when" in found and "cases" in found:
            entry.problem("has both 'when' and 'cases': keep one")
        named: dict[Value, Condition | None] = {}
        if "when" in found:
            named[True] = self._condition(found["when"], domain)
        if "cases" in found:
            named |= self._named_cases(found["cases"], domain)
        if "when" not in found and "cases" not in found:
            entry.problem("'when' or 'cases' is missing: add one")
        read = {value: condition for value, condition in named.items() if condition}
        if True in read and not read[True].reads:
            entry.remark("reads nothing: it is the same for all users")
        for feature, constants in _thresholds(read.values()).items():
            if constants is None and feature.startswith(DAILY_PREFIX):
                entry.remark(
                    f"{feature} is not just compared with numbers, which costs every user an "
                    "evaluation at every midnight: compare it with numbers alone"
                )
        return tuple(read.items())

    def _named_cases(self, entry: Entry, domain: str | None) -> dict[Value, Condition | None]:
        named: dict[Value, Condition | None] = {}
        if entry.is_map and not entry.node.value:
            entry.problem("holds no case: add a value and its condition")
        for value, case in entry.entries().items():
            if not re.fullmatch(_VALUE, value):
                case.problem("is no value: use letters, digits, _, - and ., 64 at most")
            named[value] = self._condition(case, domain)
        return named

    def _condition(self, entry: Entry, domain: str | None) -> Condition | None:
        text = entry.text("a condition (one that always holds is 1 == 1)")
        if text is None:
            return None
        try:
            condition = conditions.parse(text, lambda name: self._refusal(name, domain))
        except ConditionError as error:
            for reason in error.reasons:
                entry.problem(reason)
            return None
        for remark in condition.remarks:
            entry.remark(remark)
        return condition

    def _refusal(self, name: str, domain: str | None) -> str | None:
        """Why a condition of ``domain`` (None: unknown) may not read ``name``."""
        readable = self.tags if domain == PROFILE else self.readers.get(domain or "")
        if readable is None or name in readable:
            return None
        if name.lower() in _SPELLINGS:
            return f"'{name}' is no feature: write {_SPELLINGS[name.lower()]}"
        if domain == PROFILE:
            return self._no_tag(name)
        for owner, features in self.readers.items():
            if name in features:
                return f"'{name}' is a feature of {owner}: a tag reads those of its own domain only"
        hint = did_you_mean(name, readable) or f": {domain} has {', '.join(readable)}"
        return f"unknown feature '{name}'{hint}"

    def _no_tag(self, name: str) -> str:
        """Why a condition made of tags may not read ``name``."""
        for owner, features in self.readers.items():
            if name in features:
                return f"'{name}' is a feature of {owner}: a tag of the profile reads tags alone"
        hint = did_you_mean(name, self.tags)
        return f"no tag '{name}' is defined, or not above{hint or ': define it first'}"


_SPELLINGS: Final = {
    "null": "None",
    "none": "None",
    "nil": "None",
    "true": "the name itself",
    "false": "`not` and the name",
}


def _read(found: Mapping[str, Entry], key: str, read: Callable[[Entry], T], default: D) -> T | D:
    """What ``read`` makes of the value under ``key``; ``default`` where it is not given."""
    entry = found.get(key)
    return default if entry is None else read(entry)


def _name(entry: Entry) -> str | None:
    name = entry.word(_NAME, _NAME_IN_WORDS)
    if name is not None and keyword.iskeyword(name):
        entry.problem(f"'{name}' is a word of Python: choose another name")
        return None
    return name


def _titles(entry: Entry) -> dict[str, str]:
    """Titles by language; under the empty one where the file gives just a title."""
    if not entry.is_map:
        title = entry.text("text, or a map of zh and en")
        return {"": title} if title else {}
    found = entry.fields((), ("zh", "en"))
    titles = {language: title.text() for language, title in found.items()}
    return {language: title for language, title in titles.items() if title}


def _labels(entry: Entry | None, values: Sequence[Value]) -> dict[str, dict[str, str]]:
    """What to show for values of ``cases``, by value and language."""
    labels: dict[str, dict[str, str]] = {}
    named = {} if entry is None else entry.entries()
    for value, label in named.items():
        if value in values:
            labels[value] = _titles(label)
        else:
            label.problem(f"labels no case '{value}': remove it, or name a case so")
    return labels


def _timezone(entry: Entry) -> str | None:
    name = entry.text("the name of a time zone, as Asia/Shanghai")
    if name is None:
        return None
    try:
        zoneinfo.ZoneInfo(name)
        known = name != "localtime"  # another one on every machine
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
        known = False
    if not known:
        hint = did_you_mean(name, zoneinfo.available_timezones()) or ": use one as Asia/Shanghai"
        entry.problem(f"unknown time zone '{name}'{hint}")
        return None
    return name


def _duration(found: Mapping[str, Entry], key: str, default_ms: int, *, least_ms: int) -> int:
    """The duration under ``key``; ``default_ms`` where it is not given or wrong."""
    duration_ms = _read(found, key, Entry.duration_ms, default_ms)
    if duration_ms is None:
        return default_ms
    if duration_ms < least_ms:
        found[key].problem("must be longer than 0")
    return duration_ms


def _churn(entry: Entry) -> Churn | None:
    found = replace(entry, key="", owner="churn").fields(
        ("mode", "after", "lead"), ("control", "probability", "parameters")
    )
    mode = _read(found, "mode", lambda entry: entry.one_of("silence", "predicted"), None)
    for key in ("probability", "parameters"):
        if mode == "silence" and key in found:
            found[key].problem("belongs to the mode predicted: remove it")
    after_ms = _duration(found, "after", 30 * DURATION_MS["d"], least_ms=1)
    lead_ms = _duration(found, "lead", 3 * DURATION_MS["d"], least_ms=1)
    if "after" in found and "lead" in found and lead_ms >= after_ms:
        found["lead"].problem("must be shorter than 'after'")
    control = _read(found, "control", Entry.share, 0.0)
    probability = _read(found, "probability", Entry.share, PROBABILITY)
    if probability in (0, 1):
        found["probability"].problem("must lie between 0 and 1: neither is ever reached")
    parameters = _read(found, "parameters", _parameters, None)
    if mode == "predicted" and "parameters" not in found:
        entry.remark(
            "has no parameters, so predictions go by generic ones: `tagstream churn fit` "
            "makes them from your own orders"
        )
    if mode is None or control is None or probability is None:
        return None
    return Churn(
        mode=mode,
        after_ms=after_ms,
        lead_ms=lead_ms,
        control=control,
        probability=probability,
        parameters=parameters,
    )


def _parameters(entry: Entry) -> dict[str, float]:
    """The parameters of predicted churn; some are missing where there is a problem."""
    found = replace(entry, key="", owner="churn: parameters").fields(tuple(PARAMETERS), ())
    given = {name: found[name].number(*PARAMETERS[name]) for name in PARAMETERS if name in found}
    return {name: value for name, value in given.items() if value is not None}


def _thresholds(conditions: Iterable[Condition]) -> dict[str, Constants]:
    """What all these conditions together compare each feature with, in order of first use."""
    merged: dict[str, Constants] = {}
    for condition in conditions:
        for feature, constants in condition.reads.items():
            known = merged.get(feature, ())
            if known is None or constants is None:
                merged[feature] = None
            else:
                merged[feature] = tuple(sorted({*known, *constants}))
    return merged


def _compiled(tags: Sequence[Definition], readers: Mapping[str, Reader]) -> DomainRules:
    return DomainRules(
        tags=tuple(tags),
        defaults=tuple(tag.values[0] for tag in tags),
        evaluate=compile_tags([(tag.values[0], tag.cases) for tag in tags], readers),
        evidence=tuple(
            evidence_of([(name, readers[name]) for name in tag.features]) for tag in tags
        ),
        thresholds=_thresholds(condition for tag in tags for _, condition in tag.cases),
    )


def _profile(tags: Sequence[Definition]) -> ProfileRules:
    made = tuple(tag for tag in tags if tag.domain == PROFILE)
    unset = {tag.name: tag.values[0] for tag in tags}
    reads = frozenset(name for tag in made for name in tag.features)
    return ProfileRules(
        tags=made,
        unset=unset,
        cases=tuple(_of_tags(tag) for tag in made),
        reads=reads,
        fingerprint=_fingerprint(
            [[_deciding(tag) for tag in made], sorted((name, unset[name]) for name in reads)]
        ),
    )


def _of_tags(tag: Definition) -> Callable[[Mapping[str, Value]], Value]:
    readers = {name: operator.itemgetter(name) for name in tag.features}
    evaluate = compile_tags([(tag.values[0], tag.cases)], readers)
    return lambda values: evaluate(values)[0]


def _deciding_of(churn: Churn) -> list[object]:
    """What of ``churn`` decides outputs."""
    shared: list[object] = [churn.mode, churn.after_ms, churn.lead_ms, churn.control]
    if churn.mode == "silence":
        return shared
    return [*shared, churn.probability, churn.parameters and sorted(churn.parameters.items())]


def _deciding(tag: Definition) -> list[object]:
    """What of a definition decides outputs."""
    cases = [[value, condition.normal] for value, condition in tag.cases]
    return [tag.name, tag.domain, tag.control, cases]


def _fingerprint(deciding: list[object]) -> str:
    text = json.dumps(deciding, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
