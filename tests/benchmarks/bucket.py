"""A run with nothing left to do on a bucket of many trials, against moto on this machine.

`python -m tests.benchmarks.bucket TRIALS` is that server; it prints its address, and the number of
requests since it last did so for each line on standard input.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from tests.benchmarks.scale import CELLS, GRID

SIZES = (1_000, 10_000)
BUCKET = "results"

COMMANDS = {
    "run, row by row": "harness.run",
    "run, from the index": "harness.run",
    "status, from the index": "harness.status",
}
"""In the order in which they are given: the first writes the index."""

MEASURED = """
import importlib, sys, time
from tests.benchmarks.timing import read_peak_memory
importlib.import_module(sys.argv[1]).main(sys.argv[2:])
print(time.process_time(), read_peak_memory())
"""


def measure_bucket() -> list[dict[str, Any]]:
    """Seconds, requests and peak memory of each command; each in its own process."""
    return [row for size in SIZES for row in _measure(size)]


def _measure(size: int) -> Iterator[dict[str, Any]]:
    environment = os.environ | {
        "PYTHONPATH": str(Path.cwd()),
        "AWS_ACCESS_KEY_ID": "anyone",
        "AWS_SECRET_ACCESS_KEY": "anything",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    with (
        tempfile.TemporaryDirectory() as folder,
        subprocess.Popen(
            [sys.executable, "-m", "tests.benchmarks.bucket", str(size)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        ) as server,
    ):
        assert server.stdin
        assert server.stdout
        environment["AWS_ENDPOINT_URL"] = server.stdout.readline().strip()
        grid = Path(folder, "grid.yaml")
        grid.write_text(GRID.format(seeds=size // CELLS), encoding="utf-8")
        results = f"s3://{BUCKET}/rows"
        for name, module in COMMANDS.items():
            arguments = [str(grid), "--quiet", "--results"] if module == "harness.run" else []
            begun = time.perf_counter()
            done = subprocess.run(
                [sys.executable, "-c", MEASURED, module, *arguments, results],
                check=True,
                stdout=subprocess.PIPE,
                text=True,
                env=environment,
            )
            seconds = time.perf_counter() - begun
            print(file=server.stdin, flush=True)
            requests, cpu = server.stdout.readline().split()
            own, peak = map(float, done.stdout.split()[-2:])
            yield {
                "trials": size,
                "command": name,
                "seconds": seconds,
                "own CPU s": own,
                "moto's CPU s": float(cpu),
                "requests": int(requests),
                "peak MB": peak / 1e6,
            }
        server.terminate()


def _serve(size: int) -> None:
    from moto.core.models import DEFAULT_ACCOUNT_ID
    from moto.s3.models import s3_backends
    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import WSGIRequestHandler, make_server

    from harness.results import to_tables
    from harness.results.tables import encode
    from harness.study.grid import load_grid
    from tests.builders import make_rows

    requests = 0

    class Handler(WSGIRequestHandler):
        protocol_version = "HTTP/1.1"  # connections stay open, as those to a real bucket do

        def log_request(self, *_: object) -> None:
            nonlocal requests
            requests += 1

    backend = s3_backends[DEFAULT_ACCOUNT_ID]["aws"]
    backend.create_bucket(BUCKET, "us-east-1")
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as grid:
        grid.write(GRID.format(seeds=size // CELLS))
        grid.flush()
        trials = load_grid(grid.name).trials
    written = datetime.now(UTC).replace(tzinfo=None) - timedelta(hours=1)
    for trial in trials:
        rows = to_tables(make_rows(trial, dataset=trial.dataset))["trials"]
        # Of the others a start sees only that they are there.
        content = {"trials": encode(rows), "epochs": b"some", "gradients": b"some"}
        for table, held in content.items():
            key = backend.put_object(BUCKET, f"rows/{table}/{trial.id}.parquet", held)
            key.last_modified = written
    app = DomainDispatcherApplication(create_backend_app)
    server = make_server("127.0.0.1", 0, app, threaded=True, request_handler=Handler)
    print(f"http://127.0.0.1:{server.port}", flush=True)
    import threading

    threading.Thread(target=server.serve_forever, daemon=True).start()
    before = time.process_time()
    for _ in sys.stdin:
        now = time.process_time()
        print(requests, now - before, flush=True)
        requests, before = 0, now


if __name__ == "__main__":
    _serve(int(sys.argv[1]))
