"""A midnight at which the tags of 200,000 users change at once, while events flow.

Every sleeper ordered once, two days before; at midnight the streak of all of them breaks.
Event time is driven by the live events and runs over that midnight.
"""

from tests.bench import live, rig
from tests.broker.purchases import DAY_MS

TAGS = """\
version: 1
timezone: Asia/Shanghai
max_lateness: 7d
allowed_delay: 1s
tags:
  - {name: lately, domain: purchases, when: purchase_streak_days >= 1}
  - {name: buyer, domain: purchases, when: orders_total >= 1}
"""
LEAD_S = 10


def main() -> None:
    options = rig.arguments(__doc__, sleepers=200_000, per_s=2_000, seconds=40, partitions=4)
    midnight_ms = rig.START_MS + 2 * DAY_MS
    with rig.deployed(partitions=options.partitions, tags=TAGS) as service:
        service.send(rig.once_each(options.sleepers, "sleeper-", days=1))
        rig.work_off(service)
        worker = service.workers["worker"]
        before_s = worker.cpu_s()
        latencies = live.measure(
            service,
            per_s=options.per_s,
            seconds=options.seconds,
            name="probe-",
            first_ts_ms=midnight_ms - LEAD_S * 1000,
            counted=lambda key: key.startswith(b"sleeper-"),
        )
        cpu_s = worker.cpu_s() - before_s
    assert len(latencies.others) == options.sleepers, "a sleeper's change is missing or repeated"
    first, last = latencies.others[0], latencies.others[-1]
    rig.show(
        f"{options.sleepers:,} deadlines at one midnight under {options.per_s:,} events/s: "
        f"{(last - first) / 1000:.1f} s, {cpu_s:.1f} CPU s in all",
        ["live events", "probes", "p50", "p99", "max"],
        [
            ["before the wave", *latencies.cells(before_ms=first - 1000)],
            ["during the wave", *latencies.cells(after_ms=first - 1000, before_ms=last)],
            ["after the wave", *latencies.cells(after_ms=last)],
        ],
    )


if __name__ == "__main__":
    main()
