"""The profile of a user: the tags of all domains together, and the tags made of them.

Domains know nothing of each other. What one of them changes is folded in here, in the order in
which it is said, and tags of the domain ``profile`` are evaluated once after each event or
deadline that changed a tag, after the first event ever heard of the user, and after the first
one that is newer than an erasure. Between domains there is no order, so what is said in between
may differ from run to run; where it ends does not.

From the first domain's erasure until a newer event, the tags made of tags may only leave.

Pure: no Kafka, files or wall clock here. One record per user, kept beside those of the domains.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Protocol

from msgspec import Struct, msgpack

from tables.calendar import NEVER, calendar_of
from tables.identity import identify, is_control

PROFILE: Final = "profile"

ERASED: Final = {"kind": "erase"}

Change = dict[str, Any]


class Definition(Protocol):
    """One tag made of tags."""

    @property
    def name(self) -> str: ...
    @property
    def control(self) -> float | None: ...
    @property
    def features(self) -> Sequence[str]: ...


class ProfileRules(Protocol):
    """Tags made of tags, in order: see ``stream/rules.py``."""

    @property
    def tags(self) -> Sequence[Definition]: ...
    @property
    def unset(self) -> Mapping[str, Any]: ...
    @property
    def cases(self) -> Sequence[Callable[[Mapping[str, Any]], Any]]: ...
    @property
    def reads(self) -> frozenset[str]: ...


class Said(Protocol):
    """What a domain says of a user (``tables/table.py``, Outputs)."""

    @property
    def changes(self) -> list[Change]: ...
    @property
    def warnings(self) -> list[dict[str, Any]]: ...
    @property
    def steps(self) -> list[tuple[int, int, int]]: ...
    @property
    def heard_ms(self) -> int | None: ...
    @property
    def erased_ms(self) -> tuple[int, int] | None: ...


class Rules(Protocol):
    """The definitions, as far as profiles go."""

    @property
    def version(self) -> int: ...
    @property
    def timezone(self) -> str: ...
    @property
    def profile(self) -> ProfileRules: ...


class Held(Struct, array_like=True, gc=False):
    """A tag that a user has: its value, and since when."""

    value: Any
    since_ms: int


class Profile(Struct, array_like=True, gc=False):
    """What is kept of a user over all domains. Times in epoch ms.

    ``tags`` are those set now, of all domains and made of tags. ``numbers`` counts the changes
    of each tag made of tags. ``domains`` are those with a record of the user.
    """

    user_id: str
    tags: dict[str, Held] = {}
    numbers: dict[str, int] = {}
    domains: list[str] = []
    updated_ms: int = -NEVER  # of the last change; before all time until the first
    erased_ms: int = -NEVER  # of an erasure that nothing newer has followed yet


class Profiles:
    """The logic of profiles under ``rules``; holds no users."""

    def __init__(self, rules: Rules) -> None:
        self.encode: Callable[[Profile], bytes] = msgpack.Encoder().encode
        self.decode: Callable[[bytes], Profile] = msgpack.Decoder(Profile).decode
        self._rules = rules.profile
        self._version = rules.version
        self._iso = calendar_of(rules.timezone).iso

    def new(self, user_id: str) -> Profile:
        """The profile of a user never heard of."""
        return Profile(user_id)

    def follow(
        self, profile: Profile, domain: str, said: Said, clock_ms: int, event_id: str | None
    ) -> list[Change]:
        """Take in all that one domain says of the user; every change in order, ours too.

        ``event_id`` is that of the event applied, None where only time passed; ``clock_ms`` the
        user's in that domain. Warnings are told the tags that the user has when they are raised.
        """
        changes, warnings, heard_ms = said.changes, said.warnings, said.heard_ms
        told: list[Change] = []
        change_from = warning_from = 0
        fresh = False
        for change_to, warning_to, at_ms in said.steps:
            group = changes[change_from:change_to]
            self._complete(warnings[warning_from:warning_to], profile)
            change_from, warning_from = change_to, warning_to
            told += group
            kind = group[0]["cause"]["kind"]
            if kind == "erase":
                continue
            if kind == "event" and heard_ms is not None:
                fresh = self.heard(profile, domain, heard_ms)
                heard_ms = None
            told += self.fold(profile, group, at_ms, always=fresh)
            fresh = False
        self._complete(warnings[warning_from:], profile)
        if said.erased_ms is not None:
            erased = [change for change in changes if change["cause"]["kind"] == "erase"]
            told += self.erase(profile, domain, erased, *said.erased_ms)
        elif heard_ms is not None and self.heard(profile, domain, heard_ms) and event_id:
            told += self.evaluate(profile, clock_ms, {"kind": "event", "event_id": event_id})
        return told

    def _complete(self, warnings: Sequence[dict[str, Any]], profile: Profile) -> None:
        for warning in warnings:
            warning["tags"] = {name: held.value for name, held in profile.tags.items()}

    def heard(self, profile: Profile, domain: str, ts_ms: int) -> bool:
        """An event was applied in ``domain``; whether the tags have to be evaluated for it alone.

        Call it before what the event changed is folded in.
        """
        fresh = not profile.domains
        if domain not in profile.domains:
            profile.domains.append(domain)
        if ts_ms > profile.erased_ms > -NEVER:
            profile.erased_ms = -NEVER
            fresh = True
        return fresh

    def fold(
        self, profile: Profile, changes: Sequence[Change], at_ms: int, *, always: bool = False
    ) -> list[Change]:
        """Take in what one event or deadline changed in a domain; what changes in consequence.

        ``always``: the tags made of tags may change even if none of these is read by one.
        """
        tags, reads = profile.tags, self._rules.reads
        concerned = always
        for change in changes:
            name, value = change["tag"], change["value"]
            if value is None or value is False:
                tags.pop(name, None)
            else:
                tags[name] = Held(value, at_ms)
            concerned = concerned or name in reads
        profile.updated_ms = max(profile.updated_ms, at_ms)
        if not concerned or not self._rules.tags:
            return []
        return self.evaluate(profile, at_ms, {"kind": "tag", "change_id": changes[-1]["change_id"]})

    def evaluate(self, profile: Profile, at_ms: int, cause: Mapping[str, str]) -> list[Change]:
        """Bring the tags made of tags up to date, in order; a record of each that changed."""
        rules, tags = self._rules, profile.tags
        values = {**rules.unset, **{name: held.value for name, held in tags.items()}}
        changes = []
        for tag, first_that_holds in zip(rules.tags, rules.cases, strict=True):
            name = tag.name
            previous, value = values[name], first_that_holds(values)
            if profile.erased_ms > -NEVER and value != previous:
                value = rules.unset[name]
            if value != previous:
                evidence = {read: values[read] for read in tag.features}
                values[name] = value
                changes.append(self._change(profile, tag, value, previous, at_ms, cause, evidence))
        return changes

    def erase(
        self, profile: Profile, domain: str, changes: Sequence[Change], ts_ms: int, at_ms: int
    ) -> list[Change]:
        """The user was erased in ``domain`` by an event of ``ts_ms``; what follows from that.

        ``changes`` took back the tags of the domain, at ``at_ms``. Where it was the last one that
        knew the user, the tags made of tags go too, and nothing stays.
        """
        if domain in profile.domains:
            profile.domains.remove(domain)
        profile.erased_ms = max(profile.erased_ms, ts_ms)
        said = self.fold(profile, changes, at_ms) if changes else []
        if not profile.domains:
            unset = self._rules.unset
            said += [
                self._change(profile, tag, unset[tag.name], held.value, at_ms, ERASED, {})
                for tag in self._rules.tags
                if (held := profile.tags.get(tag.name)) is not None
            ]
            fresh = self.new(profile.user_id)
            for name in profile.__struct_fields__:
                setattr(profile, name, getattr(fresh, name))
        return said

    def describe(self, profile: Profile) -> dict[str, Any]:
        """The user's tags as the topic ``user-tags`` has them."""
        iso = self._iso
        return {
            "user_id": profile.user_id,
            "tags": {
                name: {"value": held.value, "since": iso(held.since_ms)}
                for name, held in profile.tags.items()
            },
            "updated_at": iso(profile.updated_ms),
        }

    def _change(
        self,
        profile: Profile,
        tag: Definition,
        value: Any,
        previous: Any,
        at_ms: int,
        cause: Mapping[str, str],
        evidence: Mapping[str, Any],
    ) -> Change:
        name, user_id = tag.name, profile.user_id
        number = profile.numbers[name] = profile.numbers.get(name, 0) + 1
        if value is None or value is False:
            del profile.tags[name]
        else:
            profile.tags[name] = Held(value, at_ms)
        profile.updated_ms = max(profile.updated_ms, at_ms)
        change = {
            "change_id": identify(user_id, PROFILE, name, number, value, at_ms, cause),
            "user_id": user_id,
            "domain": PROFILE,
            "tag": name,
            "value": value,
            "previous": previous,
            "effective_at": self._iso(at_ms),
            "cause": cause,
            "features": evidence,
            "rules_version": self._version,
        }
        if is_control(name, user_id, tag.control):
            change["control"] = True
        return change
