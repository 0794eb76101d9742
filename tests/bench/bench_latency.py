"""How long an event takes from its append to its committed output, at parts of the peak rate.

The peak is measured first, over events that wait. Event time is the wall clock.
"""

import time

from tests.bench import live, rig
from tests.broker.purchases import DAY_MS


def main() -> None:
    options = rig.arguments(__doc__, events=500_000, users=20_000, partitions=4, seconds=20)
    rows = []
    with rig.deployed(
        partitions=options.partitions, settings={"TAGSTREAM_TIME": "wall"}
    ) as service:
        start_ms = _now_ms() - 30 * DAY_MS
        service.send(rig.orders(options.events, options.users, start_ms=start_ms))
        peak = rig.work_off(service)
        worker = service.workers["worker"]
        for share in (10, 2):
            before_s = worker.cpu_s()
            latencies = live.measure(
                service,
                per_s=peak.per_s / share,
                seconds=options.seconds,
                name=f"probe-{share}-",
                first_ts_ms=_now_ms(),
            )
            pace = rig.Pace(latencies.sent, options.seconds, worker.cpu_s() - before_s)
            rows.append([f"1/{share} of the peak", *pace.cells, *latencies.cells()])
    rig.show(
        f"append to committed output; peak {peak.per_s:,.0f} events/s",
        ["", *rig.Pace.COLUMNS, "probes", "p50", "p99", "max"],
        rows,
    )


def _now_ms() -> int:
    return int(time.time() * 1000)


if __name__ == "__main__":
    main()
