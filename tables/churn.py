"""Churn warnings: who is about to be lost, and afterwards whether it was right to say so.

Mode *silence*, with the last order (the largest event time) at L: a warning is raised at
L + after - lead, the user is churned at L + after, where the warning is scored too: right if
no order applied by then lies in the open interval between the two. All exact instants. An
order at the very instant of a deadline comes after it.

The first order to arrive after a raised warning *returns* the user, a late one too. Each L
has one warning at most: an order that does not move L forward starts no new cycle, and does
not put off the churn at L + after. Warnings may overlap where an order refutes one that is
still to be scored.

The record of a user keeps a warning until it is scored and has returned or was replaced. What
else a record has to offer is ``Customer``; which instants are due, and when, is the table's to say.
"""

from collections.abc import Callable
from typing import Any, Final, Protocol

from msgspec import Struct

from tables.calendar import NEVER
from tables.identity import identify, is_control

NONE: Final = "none"
WARNED: Final = "warned"
CHURNED: Final = "churned"


class Warned(Struct, array_like=True, gc=False):
    """A raised warning. ``number`` counts a user's from 1; ``refuted``: it will not be right."""

    number: int
    raised_ms: int
    churn_ms: int
    matures_ms: int
    refuted: bool = False
    scored: bool = False
    returned_ms: int | None = None
    returned_from: str | None = None


class ChurnState(Struct, array_like=True, gc=False):
    """Where a user is. ``reached`` says what L led to already: nothing, the warning, the churn."""

    state: str = NONE
    reached: str = NONE
    raised: int = 0  # warnings ever
    warnings: list[Warned] = []


class Customer(Protocol):
    """What a warning reads of a user's record."""

    @property
    def user_id(self) -> str: ...
    @property
    def clock_ms(self) -> int: ...
    @property
    def last_ms(self) -> int | None: ...
    @property
    def churn(self) -> ChurnState: ...


class Silence:
    """Mode silence.

    ``describe(customer)`` gives a record its ``tags`` and ``evidence``, ``iso(ts_ms)`` its times.
    """

    mode: Final = "silence"

    def __init__(
        self,
        *,
        after_ms: int,
        lead_ms: int,
        control: float | None,
        iso: Callable[[int], str],
        describe: Callable[[Any], dict[str, Any]],
    ) -> None:
        self._after_ms = after_ms
        self._quiet_ms = after_ms - lead_ms
        self._control = control
        self._iso = iso
        self._describe = describe

    def next_ms(self, customer: Customer) -> int:
        """The next deadline; may lie before the clock where a late order moved L."""
        last_ms = customer.last_ms
        if last_ms is None:
            return NEVER
        churn = customer.churn
        if churn.reached == NONE:
            due_ms = last_ms + self._quiet_ms
        elif churn.reached == WARNED:
            due_ms = churn.warnings[-1].churn_ms
        else:
            due_ms = NEVER
        for warning in churn.warnings:
            if not warning.scored and warning.matures_ms < due_ms:
                due_ms = warning.matures_ms
        return due_ms

    def order(self, customer: Customer, ts_ms: int, *, moves: bool) -> list[dict[str, Any]]:
        """An order was applied; ``moves``: it is later than every one before it."""
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
        if moves:
            churn.reached = NONE
        return records

    def strike(self, customer: Customer, due_ms: int) -> list[dict[str, Any]]:
        """Fire what is due at exactly ``due_ms``: raised, then churned, then scored."""
        churn, last_ms = customer.churn, customer.last_ms
        records: list[dict[str, Any]] = []
        if last_ms is not None:
            if churn.reached == NONE and due_ms == last_ms + self._quiet_ms:
                records.append(self._raise(customer, last_ms))
            if churn.reached == WARNED and due_ms == churn.warnings[-1].churn_ms:
                churn.state = churn.reached = CHURNED
                records.append(self._record("churned", customer, churn.warnings[-1], due_ms))
        for warning in churn.warnings:
            if not warning.scored and warning.matures_ms == due_ms:
                warning.scored = True
                records.append(self._record("scored", customer, warning, due_ms))
        if records:
            self._tidy(churn)
        return records

    def _raise(self, customer: Customer, last_ms: int) -> dict[str, Any]:
        churn = customer.churn
        churn.raised += 1
        churn.state = churn.reached = WARNED
        churn_ms = last_ms + self._after_ms
        warning = Warned(churn.raised, last_ms + self._quiet_ms, churn_ms, churn_ms)
        churn.warnings.append(warning)
        return self._record("raised", customer, warning, warning.raised_ms)

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
        returned_ms = warning.returned_ms
        return {
            "warning_id": identify(user_id, "churn", warning.raised_ms, self.mode, warning.number),
            "status": status,
            "user_id": user_id,
            "at": iso(at_ms),
            "raised_at": iso(warning.raised_ms),
            "churn_at": iso(warning.churn_ms),
            "matures_at": iso(warning.matures_ms),
            "mode": self.mode,
            "probability": None,
            "level": "red",
            "control": is_control("churn", user_id, self._control),
            **self._describe(customer),
            "returned_at": None if returned_ms is None else iso(returned_ms),
            "returned_from": warning.returned_from,
            "right": not warning.refuted if status == "scored" else None,
        }
