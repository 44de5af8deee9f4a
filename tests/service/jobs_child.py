"""A process with jobs on fake loops: `python -m tests.service.jobs_child DATABASE JOBS FOLDER POINT`.

It asks for one job, `resumed`: ingest, then mine. With a POINT of `bombs.POINTS` it dies there by SIGKILL; without one
it waits for the job that an earlier process left behind, and prints how it ended.
"""

import json
import sys
import time
from dataclasses import asdict
from pathlib import Path

from hardloop.service.database import connect, migrate
from hardloop.service.jobs import Jobs
from tests.fakes.loops import fake_loop
from tests.service.bombs import POINTS

JOB = "resumed"


def main(database_url: str, jobs_url: str, folder: Path, point: str) -> None:
    """See above."""
    engine = connect(database_url)
    migrate(engine)
    loop = fake_loop(engine, folder).loop
    if point:
        POINTS[point](loop)
    jobs = Jobs({loop.name: loop}, jobs_url, tick_s=3600, poll_s=3600)
    jobs.start()
    if point:
        jobs.submit(loop.name, ["ingest", "mine"], {"budget": 6}, JOB)
    deadline = time.monotonic() + 60
    while (job := jobs.job(JOB)).state in ("waiting", "running") and time.monotonic() < deadline:
        time.sleep(0.05)
    print(json.dumps(asdict(job)), flush=True)
    jobs.stop()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]), sys.argv[4] if len(sys.argv) > 4 else "")
