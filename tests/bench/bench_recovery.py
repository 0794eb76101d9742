"""How fast a worker whose disk is gone is ready again, from the changelog alone."""

import shutil
import time

from tests.bench import rig


def main() -> None:
    options = rig.arguments(__doc__, users=1_000_000, partitions=4)
    with rig.deployed(partitions=options.partitions) as service:
        service.send(rig.once_each(options.users, "u", days=1))
        rig.work_off(service)
        worker = service.workers["worker"]
        worker.stop()
        shutil.rmtree(worker.directory / "data")
        began = time.monotonic()
        service.start("worker")
        seconds, cpu_s = time.monotonic() - began, worker.cpu_s()
        records = int(worker.metric("tagstream_recovered_records_total"))
        recovering = worker.metric("tagstream_recovery_seconds")
    columns = ["", "records", "seconds", "records/s", "CPU s / million"]
    rows = [
        [name, f"{records:,}", f"{took:.1f}", f"{records / took:,.0f}", cpu]
        for name, took, cpu in (
            ("recovery alone", recovering, ""),
            ("start of the process to ready", seconds, f"{cpu_s / records * 1e6:.1f}"),
        )
    ]
    rig.show(f"recovery of {options.users:,} users from an empty disk", columns, rows)


if __name__ == "__main__":
    main()
