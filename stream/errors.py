"""The errors of tagstream: one base class, one name per cause.

    TagstreamError                 what it says is one line for an operator, remedy included
    ├── SettingError               a setting holds what it may not (exit 2)
    ├── RulesError                 tags.yaml cannot be used; one line per problem
    ├── UsageError                 a command cannot do what was asked (exit 2)
    ├── StateError                 disk, changelog and source contradict each other
    │   ├── SourceTrimmed          records after our position are gone from a source
    │   ├── SourceRemade           the source is not the one our position was taken from
    │   └── LayoutChanged          partition count, partitioner or time zone differ from the state's
    ├── TopicError                 topics that are missing or would lose data
    └── JournalLost                the broker gave up a transaction of ours; start again, clean
        └── Fenced                 another worker owns the partition now

None of them carries a user id.
"""


class TagstreamError(Exception):
    """Anything that stops a command or a worker with one line to an operator."""

    exit_code = 1


class SettingError(TagstreamError):
    """A setting holds a value it may not."""

    exit_code = 2


class RulesError(TagstreamError):
    """Definitions that cannot be used.

    ``problems`` holds one line each: ``file:line: tag 'name': reason``.
    """

    exit_code = 2

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class UsageError(TagstreamError):
    """A command cannot do what it was asked."""

    exit_code = 2


class StateError(TagstreamError):
    """State that must not be guessed at: the message names the place and the remedy."""


class SourceTrimmed(StateError):
    """Records after our position have been deleted from a source topic."""


class SourceRemade(StateError):
    """A source topic was deleted and made anew, or cut, since our position was taken."""


class LayoutChanged(StateError):
    """Partition count, partitioner or time zone differ from those the state was made with."""


class TopicError(TagstreamError):
    """Topics are missing, or are set up so that they would lose data."""


class JournalLost(TagstreamError):
    """The broker gave up a transaction of ours; nothing of it became visible.

    ``in_commit``: all records had been acknowledged, the commit was not.
    """

    in_commit = False


class Fenced(JournalLost):
    """Another worker has opened the partition: we are not its owner any more."""
