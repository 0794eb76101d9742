"""Churn warnings: who is about to be lost, and afterwards whether it was right to say so.

Mode *silence*, with the last order (the largest event time) at L: a warning is raised at
L + after - lead, the user is churned at L + after, where the warning is scored too.

Mode *predicted*, with the last occasion (``tables/rhythm.py``) begun at L: a warning is raised
at the first instant w from which no order for lead + after has the probability asked for, going
by the user's own rhythm. It says that he will be lost at w + lead, which nobody can know before
w + lead + after: there he is churned, and there it is scored.

In both: right is a warning where no order applied by then lies in the open interval from its
raising to its maturity. All exact instants. An order at the very instant of a deadline comes
after it.

The first order to arrive after a raised warning *returns* the user, a late one too. Each L
has one warning at most: an order that does not move L forward starts no new cycle, and does
not put off the churn. Warnings may overlap where an order refutes one that is still to be
scored; and where definitions change the mode, one that was raised ends as it began.

The record of a user keeps a warning until it is scored and has returned or was replaced. Which
instants are due, and when, is the table's to say.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from librt.strings import BytesWriter
from msgspec import msgpack
from mypy_extensions import mypyc_attr

from tables.calendar import NEVER
from tables.identity import identify, is_control
from tables.kept import Warned
from tables.packing import Reader, put, put_optional, put_optional_instant, put_packed
from tables.record import DayCounts, Values
from tables.rhythm import QUIET_MS, Model, Rhythm

NONE: Final = "none"
WARNED: Final = "warned"
CHURNED: Final = "churned"

RED_FROM: Final = 0.6  # a prediction less probable than that is yellow


_STATES: Final = (NONE, WARNED, CHURNED)
_unpack_warnings: Callable[[bytes], list[Warned]] = msgpack.Decoder(list[Warned]).decode


@mypyc_attr(acyclic=True)
class ChurnState:
    """Where a user is. ``reached`` says what L led to already: nothing, the warning, the churn.

    ``due_ms`` is when it leads to the warning, once a prediction was made (``NEVER``: not at all).
    ``raised`` counts the warnings there ever were.
    """

    def __init__(self, raised: int = 0) -> None:
        self.state = NONE
        self.reached = NONE
        self.raised = raised
        self.warnings: list[Warned] = []
        self.due_ms: int | None = None

    def write(self, to: BytesWriter) -> None:
        """Append the state as bytes."""
        put(to, _STATES.index(self.state))
        put(to, _STATES.index(self.reached))
        put(to, self.raised)
        put_optional(to, self.due_ms)
        put_packed(to, self.warnings)

    def read(self, row: Reader) -> None:
        """Take over what ``write`` wrote."""
        self.state = _STATES[row.number()]
        self.reached = _STATES[row.number()]
        self.raised = row.number()
        self.due_ms = row.optional()
        warnings = row.bytes()
        self.warnings = _unpack_warnings(warnings) if warnings else []


@mypyc_attr(acyclic=True)
class Customer(DayCounts):
    """A user who orders: what a warning reads of his record. ``last_ms`` is his latest order."""

    def __init__(self, user_id: str, rules: int, values: Values, columns: int) -> None:
        super().__init__(user_id, rules, values, columns)
        self.last_ms: int | None = None
        self.churn = ChurnState()
        self.rhythm = Rhythm()

    def write(self, to: BytesWriter) -> None:
        """Append the record as bytes."""
        super().write(to)
        put_optional_instant(to, self.last_ms)
        self.churn.write(to)
        self.rhythm.write(to)

    def read(self, row: Reader) -> None:
        """Take over what ``write`` wrote."""
        super().read(row)
        self.last_ms = row.optional_instant()
        self.churn.read(row)
        self.rhythm.read(row)


@dataclass(frozen=True)
class Terms:
    """What both modes go by: see `tables/table.py`, Churn, for the spans.

    ``describe(customer)`` gives a record its ``tags`` and ``evidence``, ``iso(ts_ms)`` its times.
    """

    after_ms: int
    lead_ms: int
    control: float | None
    iso: Callable[[int], str]
    describe: Callable[[Any], dict[str, Any]]


class Mode:
    """What both modes share: the life of a warning once it is raised."""

    def __init__(self, terms: Terms) -> None:
        self._control = terms.control
        self._iso = terms.iso
        self._describe = terms.describe
        self._after_ms = terms.after_ms

    # -- what a mode adds

    def _due_ms(self, customer: Customer) -> int:
        """When L leads to a warning; ``NEVER`` if it does not."""
        raise NotImplementedError

    def _warning(self, customer: Customer, number: int, raised_ms: int) -> Warned:
        """The warning that L leads to."""
        raise NotImplementedError

    def order(
        self, customer: Customer, ts_ms: int, *, latest: bool, begins: bool
    ) -> list[dict[str, Any]]:
        """An order was applied, ``latest`` by event time so far; it ``begins`` an occasion."""
        raise NotImplementedError

    # -- what is the same

    def next_ms(self, customer: Customer) -> int:
        """The next deadline; may lie before the clock where a late order moved L."""
        churn = customer.churn
        if churn.reached == NONE:
            due_ms = self._due_ms(customer)
        elif churn.reached == WARNED:
            due_ms = churn.warnings[-1].matures_ms
        else:
            due_ms = NEVER
        return _earliest_ms(churn, due_ms)

    def floor_ms(self, customer: Customer) -> int:
        """An instant before which no deadline lies: for those who ask often."""
        return self.next_ms(customer)

    def strike(self, customer: Customer, due_ms: int) -> list[dict[str, Any]]:
        """Fire what is due at exactly ``due_ms``: raised, then churned, then scored."""
        churn = customer.churn
        records: list[dict[str, Any]] = []
        if churn.reached == NONE and due_ms == self._due_ms(customer):
            churn.raised += 1
            churn.state = churn.reached = WARNED
            churn.warnings.append(self._warning(customer, churn.raised, due_ms))
            records.append(self._record("raised", customer, churn.warnings[-1], due_ms))
        if churn.reached == WARNED and due_ms == churn.warnings[-1].matures_ms:
            churn.state = churn.reached = CHURNED
            records.append(self._record("churned", customer, churn.warnings[-1], due_ms))
        for warning in churn.warnings:
            if not warning.scored and warning.matures_ms == due_ms:
                warning.scored = True
                records.append(self._record("scored", customer, warning, due_ms))
        if records:
            self._tidy(churn)
        return records

    def erased(self, customer: Customer) -> list[dict[str, Any]]:
        """What to count, not to tell: the customer is erased, open warnings end unscored."""
        return [
            self._record("erased", customer, warning, customer.clock_ms)
            for warning in customer.churn.warnings
            if not warning.scored
        ]

    def _welcome(self, customer: Customer, ts_ms: int, *, restarts: bool) -> list[dict[str, Any]]:
        """What an order says of the warnings there are; ``restarts``: it moved L."""
        churn = customer.churn
        records: list[dict[str, Any]] = []
        if churn.warnings:
            for warning in churn.warnings:
                if not warning.scored and warning.raised_ms < ts_ms < warning.matures_ms:
                    warning.refuted = True
            latest = churn.warnings[-1]
            if latest.returned_ms is None:
                latest.returned_ms = customer.clock_ms
                latest.returned_from = churn.state
                records.append(self._record("returned", customer, latest, customer.clock_ms))
                self._tidy(churn)
        churn.state = NONE
        if restarts:
            churn.reached = NONE
        return records

    def _tidy(self, churn: ChurnState) -> None:
        latest = churn.warnings[-1]
        churn.warnings = [
            warning
            for warning in churn.warnings
            if not warning.scored or (warning is latest and warning.returned_ms is None)
        ]

    def _record(
        self, status: str, customer: Customer, warning: Warned, at_ms: int
    ) -> dict[str, Any]:
        iso, user_id = self._iso, customer.user_id
        returned_ms, probability = warning.returned_ms, warning.probability
        # The warning's own mode: definitions may have changed since.
        mode = Silence.name if probability is None else Predicted.name
        # After an erasure warnings are counted anew, and what was forgotten may happen again.
        again = () if customer.erased_ms == -NEVER else (customer.erased_ms,)
        named = user_id, "churn", warning.raised_ms, mode, warning.number
        return {
            "warning_id": identify(*named, *again),
            "status": status,
            "user_id": user_id,
            "at": iso(at_ms),
            "raised_at": iso(warning.raised_ms),
            "churn_at": iso(warning.churn_ms),
            "matures_at": iso(warning.matures_ms),
            "mode": mode,
            "probability": probability,
            "level": "red" if probability is None or probability >= RED_FROM else "yellow",
            "control": is_control("churn", user_id, self._control),
            **self._describe(customer),
            "returned_at": None if returned_ms is None else iso(returned_ms),
            "returned_from": warning.returned_from,
            "right": not warning.refuted if status == "scored" else None,
        }


class Silence(Mode):
    """Warned ``lead_ms`` before the silence has lasted ``after_ms``, and churned then."""

    name: Final = "silence"

    def __init__(self, terms: Terms) -> None:
        super().__init__(terms)
        self._quiet_ms = terms.after_ms - terms.lead_ms

    def order(
        self, customer: Customer, ts_ms: int, *, latest: bool, begins: bool
    ) -> list[dict[str, Any]]:
        """L is the latest order."""
        return self._welcome(customer, ts_ms, restarts=latest)

    def _due_ms(self, customer: Customer) -> int:
        last_ms = customer.last_ms
        return NEVER if last_ms is None else last_ms + self._quiet_ms

    def _warning(self, customer: Customer, number: int, raised_ms: int) -> Warned:
        churn_ms = raised_ms - self._quiet_ms + self._after_ms
        return Warned(number, raised_ms, churn_ms, churn_ms)


class Predicted(Mode):
    """Warned once ``model`` says that nothing will come; churned when nothing did.

    The model is asked once for each L, and only where nothing came before its earliest answer.
    """

    name: Final = "predicted"

    def __init__(self, terms: Terms, model: Model) -> None:
        super().__init__(terms)
        self._model = model
        self._lead_ms = terms.lead_ms

    def order(
        self, customer: Customer, ts_ms: int, *, latest: bool, begins: bool
    ) -> list[dict[str, Any]]:
        """L is the last occasion's beginning."""
        if begins:
            customer.churn.due_ms = None
        return self._welcome(customer, ts_ms, restarts=begins)

    def floor_ms(self, customer: Customer) -> int:
        """Without asking the model."""
        churn, last_ms = customer.churn, customer.rhythm.last_ms
        if churn.reached == NONE and churn.due_ms is None and last_ms is not None:
            return _earliest_ms(churn, last_ms + QUIET_MS)
        return self.next_ms(customer)

    def _due_ms(self, customer: Customer) -> int:
        churn, rhythm = customer.churn, customer.rhythm
        due_ms = churn.due_ms
        if due_ms is None:
            if rhythm.last_ms is None:
                return NEVER
            delay_ms = self._model.delay_ms(rhythm)
            due_ms = NEVER if delay_ms == NEVER else rhythm.last_ms + delay_ms
            churn.due_ms = due_ms
        return due_ms

    def _warning(self, customer: Customer, number: int, raised_ms: int) -> Warned:
        rhythm = customer.rhythm
        elapsed_ms = raised_ms - (raised_ms if rhythm.last_ms is None else rhythm.last_ms)
        # Rounded, so that machines whose logarithms differ in the last bit say the same.
        probability = round(self._model.still(rhythm, elapsed_ms), 6)
        lost_ms = raised_ms + self._lead_ms
        return Warned(number, raised_ms, lost_ms, lost_ms + self._after_ms, probability=probability)


def _earliest_ms(churn: ChurnState, due_ms: int) -> int:
    """``due_ms``, or the maturity of a warning where one comes first."""
    for warning in churn.warnings:
        if not warning.scored and warning.matures_ms < due_ms:
            due_ms = warning.matures_ms
    return due_ms
