"""The profile of a user: the tags of all domains together, and the tags made of them.

Domains know nothing of each other. What one of them changes is folded in here, in the order in
which it is said, and tags of the domain ``profile`` are evaluated once after each event or
deadline that changed a tag, after the first event ever heard of the user, and after the first
one that is newer than an erasure. Between domains there is no order, so what is said in between
may differ from run to run; where it ends does not.

From the first domain's erasure until a newer event, the tags made of tags may only leave.

Here too is what operations ask of all domains together: on which days a user was active
(`tables/activity.py`).

Pure: no Kafka, files or wall clock here. One record per user, kept beside those of the domains.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Protocol

from msgspec import msgpack
from msgspec.json import encode

from tables import activity
from tables.calendar import NEVER, calendar_of
from tables.identity import identify, is_control
from tables.kept import HeldTag, Profile
from tables.outputs import Outputs

PROFILE: Final = "profile"

ERASED: Final = {"kind": "erase"}
SWITCHED: Final = {"kind": "rules"}

Change = dict[str, Any]
Dwelt = tuple[str, int]
"""A tag, and for how many ms a user had it with one value."""


class Definition(Protocol):
    """One tag."""

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


class Rules(Protocol):
    """The definitions, as far as profiles go."""

    @property
    def version(self) -> int: ...
    @property
    def timezone(self) -> str: ...
    @property
    def profile(self) -> ProfileRules: ...
    @property
    def tags(self) -> Sequence[Definition]: ...


def _hold(profile: Profile, name: str, value: Any, at_ms: int, dwelt: list[Dwelt]) -> None:
    """The user has the tag with this value from now on, or not at all."""
    before = profile.tags.pop(name, None)
    if before is not None:
        dwelt.append((name, max(0, at_ms - before.since_ms)))
    if value is not None and value is not False:
        profile.tags[name] = HeldTag(value, at_ms)


_REMEMBERED: Final = 1_000  # combinations of values of which it is remembered what they lead to

#: Where a row has the activity: behind the heads of an array and of a short binary.
_BEGIN: Final = 3
_END: Final = _BEGIN + activity.BYTES


def _json(value: Any) -> str:
    return encode(value).decode()


class Profiles:
    """The logic of profiles under ``rules``; holds no users.

    ``before`` are those under the definitions before a switch, until everybody is taken up.
    """

    def __init__(self, rules: Rules) -> None:
        self.before: Profiles | None = None
        self.encode: Callable[[Profile], bytes] = msgpack.Encoder().encode
        self.decode: Callable[[bytes], Profile] = msgpack.Decoder(Profile).decode
        self._rules = rules.profile
        read = [*self._rules.reads, *(tag.name for tag in self._rules.tags)]
        self._unset = {name: self._rules.unset[name] for name in read}
        self._version = rules.version
        self._calendar = calendar_of(rules.timezone)
        self._pieces: dict[str, dict[Any, str]] = {}  # of a tag and a value, what told() writes
        #: What tags made of tags are where all that is read has these values, in that order.
        self._decided: dict[tuple[Any, ...], list[Any]] = {}
        self._controls = {tag.name: tag.control for tag in rules.tags if tag.control}

    def is_control(self, profile: Profile, tag: str) -> bool:
        """Whether the user is in the tag's control group."""
        return is_control(tag, profile.user_id, self._controls.get(tag))

    @property
    def tags(self) -> Sequence[Definition]:
        """The tags made of tags, in order."""
        return self._rules.tags

    def new(self, user_id: str) -> Profile:
        """The profile of a user never heard of."""
        return Profile(activity.NOTHING, user_id)

    def activated(self, row: bytes, day: int, figures: list[tuple[str, str, int]]) -> bytes:
        """The row of a profile, encoded, after the user was active on a day: all that changed."""
        known = activity.activated(row[_BEGIN:_END], day, figures)
        return row[:_BEGIN] + known + row[_END:]

    def follow(
        self,
        profile: Profile,
        domain: str,
        said: Outputs,
        clock_ms: int,
        event_id: str | None,
        newest_ms: int = -NEVER,
    ) -> list[Change]:
        """Take in all that one domain says of the user; every change in order, ours too.

        ``event_id`` is that of the event applied, None where only time passed; ``clock_ms`` the
        user's in that domain. Warnings are told the tags that the user has when they are raised.
        ``newest_ms`` is the newest thing known in other domains, needed for an erasure.
        """
        changes, warnings, heard = said.changes, said.warnings, said.heard
        told: list[Change] = []
        change_from = warning_from = 0
        fresh = False
        for change_to, warning_to, at_ms in said.steps:
            group = changes[change_from:change_to]
            self._complete(warnings[warning_from:warning_to], profile)
            change_from, warning_from = change_to, warning_to
            told += group
            if not group or group[0]["cause"]["kind"] == "rules":
                told += self.take_up(profile, group, at_ms, said.dwelt)
                continue
            kind = group[0]["cause"]["kind"]
            if kind == "erase":
                continue
            if kind == "event" and heard is not None:
                fresh = self.heard(profile, domain, heard[0])
                heard = None
            # What was due until a switch is said under the definitions before it.
            logic = self
            if self.before is not None and group[0]["rules_version"] != self._version:
                logic = self.before
            told += logic.fold(profile, group, at_ms, said.dwelt, always=fresh)
            fresh = False
        self._complete(warnings[warning_from:], profile)
        if said.erased_ms is not None:
            erased = [change for change in changes if change["cause"]["kind"] == "erase"]
            told += self.erase(profile, domain, erased, *said.erased_ms, said.dwelt, newest_ms)
        elif heard is not None and self.heard(profile, domain, heard[0]) and event_id:
            cause = {"kind": "event", "event_id": event_id}
            told += self.evaluate(profile, clock_ms, cause, said.dwelt)
        if said.heard is not None:
            _, day, is_activity, is_registration = said.heard
            if is_registration:
                profile.activity = activity.registered(profile.activity, day, said.figures)
            if is_activity:
                profile.activity = activity.activated(profile.activity, day, said.figures)
        elif said.active_day is not None:
            profile.activity = activity.activated(profile.activity, said.active_day, said.figures)
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
        if profile.barred and ts_ms > profile.erased_ms:
            profile.barred = False
            fresh = True
        return fresh

    def bar(self, profile: Profile, erased_ms: Sequence[int]) -> None:
        """The user of a new profile is known to have been erased, up to then in each domain."""
        marks = [ts_ms for ts_ms in erased_ms if ts_ms > -NEVER]
        if marks:
            profile.erased_ms = max(marks)
            profile.forgotten = sum(marks)
            profile.barred = True

    def fold(
        self,
        profile: Profile,
        changes: Sequence[Change],
        at_ms: int,
        dwelt: list[Dwelt],
        *,
        always: bool = False,
    ) -> list[Change]:
        """Take in what one event or deadline changed in a domain; what changes in consequence.

        ``always``: the tags made of tags may change even if none of these is read by one.
        """
        reads = self._rules.reads
        concerned = always
        for change in changes:
            _hold(profile, change["tag"], change["value"], at_ms, dwelt)
            concerned = concerned or change["tag"] in reads
        profile.updated_ms = max(profile.updated_ms, at_ms)
        if not concerned or not self._rules.tags:
            return []
        cause = {"kind": "tag", "change_id": changes[-1]["change_id"]}
        return self.evaluate(profile, at_ms, cause, dwelt)

    def evaluate(
        self, profile: Profile, at_ms: int, cause: Mapping[str, str], dwelt: list[Dwelt]
    ) -> list[Change]:
        """Bring the tags made of tags up to date, in order; a record of each that changed."""
        rules, tags = self._rules, profile.tags
        values = self._unset.copy()
        for name, held in tags.items():
            if name in values:
                values[name] = held.value
        barred = profile.barred
        seen = tuple(values.values())
        decided = None if barred else self._decided.get(seen)
        deciding: list[Any] = []
        changes = []
        for position, tag in enumerate(rules.tags):
            name = tag.name
            previous = values[name]
            value = rules.cases[position](values) if decided is None else decided[position]
            deciding.append(value)
            if barred and value != previous:
                value = rules.unset[name]
            if value != previous:
                evidence = {read: values[read] for read in tag.features}
                values[name] = value
                _hold(profile, name, value, at_ms, dwelt)
                changes.append(self._change(profile, tag, value, previous, at_ms, cause, evidence))
        if decided is None and not barred:
            if len(self._decided) >= _REMEMBERED:
                self._decided.clear()
            self._decided[seen] = deciding
        return changes

    def take_up(
        self, profile: Profile, changes: Sequence[Change], at_ms: int, dwelt: list[Dwelt]
    ) -> list[Change]:
        """These definitions came into force for the user in a domain, which ``changes`` followed
        there; what follows here. Doing it for each domain again changes nothing more.
        """
        for change in changes:
            _hold(profile, change["tag"], change["value"], at_ms, dwelt)
            profile.updated_ms = max(profile.updated_ms, at_ms)
        said = []
        for tag in self.before.tags if self.before is not None else ():
            held = profile.tags.get(tag.name)
            if held is not None and tag.name not in self._rules.unset:
                value = False if held.value is True else None
                _hold(profile, tag.name, value, at_ms, dwelt)
                said.append(self._change(profile, tag, value, held.value, at_ms, SWITCHED, {}))
        return said + self.evaluate(profile, at_ms, SWITCHED, dwelt)

    def erase(
        self,
        profile: Profile,
        domain: str,
        changes: Sequence[Change],
        ts_ms: int,
        at_ms: int,
        dwelt: list[Dwelt],
        newest_ms: int = -NEVER,
    ) -> list[Change]:
        """The user was erased in ``domain`` by an event of ``ts_ms``; what follows from that.

        ``changes`` took back the tags of the domain, at ``at_ms``. Where it was the last one that
        knew the user, the tags made of tags go too, and nothing stays. Otherwise they may only
        leave, unless something newer is known already: domains have no order between them.
        """
        if domain in profile.domains:
            profile.domains.remove(domain)
        profile.erased_ms = max(profile.erased_ms, ts_ms)
        profile.barred = newest_ms <= profile.erased_ms
        said = self.fold(profile, changes, at_ms, dwelt) if changes else []
        if not profile.domains:
            for tag in self._rules.tags:
                held, value = profile.tags.get(tag.name), self._rules.unset[tag.name]
                if held is not None:
                    _hold(profile, tag.name, value, at_ms, dwelt)
                    said.append(self._change(profile, tag, value, held.value, at_ms, ERASED, {}))
            fresh = self.new(profile.user_id)
            for name in profile.__struct_fields__:
                setattr(profile, name, getattr(fresh, name))
        return said

    def told(self, profile: Profile) -> bytes | None:
        """The user's tags as the topic ``user-tags`` has them, JSON; None where none ever changed.

        Written by hand: it follows every change, and most of it is the same for many users.
        """
        if profile.updated_ms == -NEVER:
            return None
        calendar = self._calendar
        tags: list[str] = []
        for name, held in profile.tags.items():
            value: Any = held.value
            pieces = self._pieces.get(name)
            if pieces is None:
                pieces = self._pieces[name] = {}
            piece = pieces.get(value)
            if piece is None:
                piece = pieces[value] = f'{_json(name)}:{{"value":{_json(value)},"since":"'
            tags.append(f'{piece}{calendar.iso(held.since_ms)}"}}')
        written = (
            f'{{"user_id":{_json(profile.user_id)},"tags":{{{",".join(tags)}}},'
            f'"updated_at":"{calendar.iso(profile.updated_ms)}"}}'
        )
        return written.encode()

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
        # After an erasure changes may be counted anew, and what was forgotten may happen again.
        again = () if profile.erased_ms == -NEVER else (profile.erased_ms, profile.forgotten)
        profile.updated_ms = max(profile.updated_ms, at_ms)
        change = {
            "change_id": identify(user_id, PROFILE, name, number, value, at_ms, cause, *again),
            "user_id": user_id,
            "domain": PROFILE,
            "tag": name,
            "value": value,
            "previous": previous,
            "effective_at": self._calendar.iso(at_ms),
            "cause": cause,
            "features": evidence,
            "rules_version": self._version,
        }
        if is_control(name, user_id, tag.control):
            change["control"] = True
        return change
