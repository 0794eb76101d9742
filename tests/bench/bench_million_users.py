"""A million users at the default memory budget: throughput, resident memory, bytes on disk.

Users come at random and uniformly, the worst case for every cache.
"""

from tests.bench import rig
from tests.broker.purchases import DAY_MS


def main() -> None:
    options = rig.arguments(__doc__, users=1_000_000, events=2_000_000, days=30, partitions=4)
    users, events = options.users, options.events
    with rig.deployed(partitions=options.partitions) as service:
        service.send(rig.once_each(users, "u", days=1))
        later_ms = rig.START_MS + DAY_MS
        service.send(
            rig.orders(events - users, users, days=options.days, skew=1, start_ms=later_ms)
        )
        pace = rig.work_off(service)
        worker = service.workers["worker"]
        now, peak = worker.resident_mib(), worker.resident_mib("VmHWM")
        worker.stop()
        disk = rig.disk_bytes(worker.directory / "data")
    rig.show(
        f"{users:,} users",
        ["", *rig.Pace.COLUMNS, "resident", "at most", "disk, bytes/user"],
        [["", *pace.cells, f"{now:,.0f} MiB", f"{peak:,.0f} MiB", f"{disk / users:,.0f}"]],
    )


if __name__ == "__main__":
    main()
