"""A second, naive answer to what events should lead to, written from the contract alone.

Promise: given every event in the order in which its partition has it, and the definitions,
`Reference` says which changes, warnings and dead letters follow, and which tags users have in
the end. It keeps all events of a user for ever, computes every feature from all of them at every
evaluation, and walks every instant at which time might change something one by one. Nothing of
`tables/` is used, and of `stream/` only what the definitions say: the text of a condition is
handed to Python's own `eval`.

    reference = Reference(rules, partitions=8)
    reference.run([(3, {"event_id": "e1", "user_id": "u1", "type": "order", ...}), ...])
    assert by_user(records_read_from_tag_changes) == by_user(reference.changes)

The type of an event says its domain; an ``erase`` goes to all of them, or to the one named with
it: ``(3, {...}, "service")``. Partitions and users have no order between them, hence `by_user`;
nor have the domains of a user, hence `by_domain` and `settled` for what ran by itself.
Out of its reach: wall time, and all dead letters but ``too_late``.
"""

from tests.reference.conditions import names_in
from tests.reference.domains import CHANNELS, DOMAINS, domain_of
from tests.reference.engine import Life, Person, Reference, run
from tests.reference.records import Record, by_domain, by_user, settled, telling, values
from tests.reference.times import first_instant, instant, local, local_date

__all__ = [
    "CHANNELS",
    "DOMAINS",
    "Life",
    "Person",
    "Record",
    "Reference",
    "by_domain",
    "by_user",
    "domain_of",
    "first_instant",
    "instant",
    "local",
    "local_date",
    "names_in",
    "run",
    "settled",
    "telling",
    "values",
]
