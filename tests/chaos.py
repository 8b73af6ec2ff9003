"""python -m tests.chaos --faults 200: break everything at random, and count what is lost.

A cluster of small nodes trains real trials while workers, nodes, drivers and Ray itself are killed,
trials raise, hang and eat their memory, the disk fills up, foreign files appear and ours are spoilt.
The driver is started again until the work is done. The last trials are left to a Ray of a driver's
own: one that is killed, and one that is not. Then every row is compared with those of the same trials
trained without any of this, and what is left on the machine is counted.
"""

# ruff: noqa: T201  this file speaks to the terminal
from __future__ import annotations

import argparse
import math
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.cluster.scratch import _is_in_use
from harness.results import Lease, Store, find_differing_columns, sweep, take_snapshot, to_tables
from harness.study.errors import HarnessError, RayLostError, StoreError
from harness.study.terminal import printable, say
from harness.study.trials import PROGRAMS, Trial
from tests.toll import Toll
from tests.vandal import FILES, Vandal

if TYPE_CHECKING:
    from harness.cluster.shards import Start

TRIALS_PER_FAULT = 3
TRIAL_LIMIT = 20.0
"""Seconds; two hundred times what a trial takes, for a machine with much else to do."""

EPOCHS = 2
PAUSE = 0.4
"""Seconds added to each trial, so that faults meet trials and not only the gaps between them: in
equal parts after its checkpoints, one an epoch, so that faults meet trials that can be gone on with."""

NODES = 2
STARTS = 100

LEFT_TO_THE_LAST = 12
"""Trials that are left to drivers with a Ray of their own."""

LEFTOVER = re.compile("harness-|tune-|session_")
"""Begins the names of what a run makes in the temporary folder; there may be more of Ray's."""

ORDERED = ("raises", "raises escapes", "hangs", "eats its memory")
"""Faults that a trial commits: whichever worker comes next takes the order."""

KILLS = (
    "worker killed",
    "node lost",
    "node drained",
    "driver killed",
    "raylet killed",
    "GCS killed",
)
DISK = ("disk full", "read-only")
OFTEN = ("worker killed",) * 4 + FILES + ("raises escapes", "worker killed")
"""Committed twice as often: they cost seconds, where the loss of a head costs a minute."""

ESCAPES = "\x1b]0;owned\x07\x1b[2J\x9b2J\u202e\udce9\0\r"
"""A trial's last words: they would change a terminal's title, clear it and turn its lines around."""


def make_trials(count: int) -> list[Trial]:
    """So many trials of a tenth of a second; every tenth one diverges."""
    small = {"dataset": "digits", "architecture": "mlp", "depth": 2, "epochs": EPOCHS}
    recipe = {"width_factor": 0.1, "warmup_epochs": 0.5, "augmentation": "none", "probe_size": 64}
    return [
        Trial(
            **small,
            **recipe,
            placement=arm,
            program=PROGRAMS["mlp"][arm],
            seed=index,
            lr=1e30 if index % 10 == 9 else 0.1,
        )
        for index in range(count)
        for arm in (("before", "after", "none")[index % 3],)
    ]


@dataclass(frozen=True)
class Disturbed:
    """Trains, unless there is an order to do otherwise; writes down each start."""

    folder: Path

    def __reduce__(self) -> tuple[Any, tuple[Path]]:
        return _arrive, (self.folder,)

    def __call__(self, start: Start) -> list[Any]:
        from harness.cluster.packs import train_with_torch

        with (self.folder / "starts").open("a", encoding="ascii") as starts:
            starts.write(f"{start.pack[0].id}\n")
        start.partial.read = _counted(start.partial.read, self.folder / "resumed")
        start.partial.write = _slowed(start.partial.write)
        for order in sorted((self.folder / "orders").iterdir()):
            with suppress(FileNotFoundError):  # another worker was faster
                order.rename(self.folder / "taken" / order.name)
                self._obey(order.name)
        return train_with_torch(start)

    def _obey(self, order: str) -> None:
        match order.partition("-")[0]:
            case "raises":
                raise ValueError("as ordered")
            case "raises escapes":
                raise ValueError(ESCAPES)
            case "hangs":
                time.sleep(3600)
            case "eats its memory":
                bytearray(1 << 46)


def _counted(read: Callable[[], bytes | None], notes: Path) -> Callable[[], bytes | None]:
    """Reads a checkpoint, and writes down that there was one."""

    def read_and_note() -> bytes | None:
        content = read()
        if content is not None:
            with notes.open("ab") as file:
                file.write(b"+")
        return content

    return read_and_note


def _slowed(write: Callable[[bytes], None]) -> Callable[[bytes], None]:
    """Writes a checkpoint, and rests."""

    def write_and_rest(content: bytes) -> None:
        write(content)
        time.sleep(PAUSE / EPOCHS)

    return write_and_rest


def _arrive(folder: Path) -> Disturbed:
    """In a new worker: import torch now, outside the time limit of a trial."""
    import harness.training.train  # noqa: F401

    return Disturbed(folder)


def drive(folder: Path, address: str, count: int) -> int:
    """What harness.run does, with disturbed training; its exit code."""
    from harness.cluster.fanout import train_missing
    from harness.cluster.forecast import Forecast
    from harness.cluster.request import Request
    from harness.progress import LineProgress
    from harness.run import describe_failures

    trials = make_trials(count)
    store, run, stop = Store(folder / "results"), f"run-{os.getpid()}", threading.Event()
    try:
        with Lease(store, run, join=True, stop=stop) as lease:
            sweep(store, lease)
            train_missing(
                trials,
                store,
                Request(address=address),
                run=run,
                estimate=lambda _: PAUSE,
                limit=lambda _: TRIAL_LIMIT,
                watcher=LineProgress(trials, Forecast(), sys.stderr, "chaos", verbose=True),
                stop=stop,
                train=Disturbed(folder),
                keep_every=0.0,
            )
        tally = take_snapshot(store).tally(trials)
        for line in describe_failures(
            tally, [t for t in trials if t.id in tally.failures], str(folder)
        ):
            say(line, is_error=True)
    except HarnessError as error:
        say(error, is_error=True)
        return error.exit_code
    return 0


class Rampage:
    """A cluster, a driver on it, and the faults that befall both."""

    def __init__(self, folder: Path, faults: int, rng: random.Random) -> None:
        self.toll = Toll(expected=TRIALS_PER_FAULT * faults)
        self._folder = folder
        self._rng = rng
        self._store = Store(folder / "results")
        self._vandal = Vandal(folder / "results", rng)
        for name in ("orders", "taken", "results", "t"):
            (folder / name).mkdir(exist_ok=True)
        (folder / "resumed").touch()
        self._can_mount = _mount("tmpfs", "-t", "tmpfs", "-o", "size=64m", at=folder / "results")
        kinds = ORDERED + KILLS + FILES + (DISK if self._can_mount else ()) + OFTEN
        self._faults = [kinds[index % len(kinds)] for index in range(faults)]
        rng.shuffle(self._faults)
        self._driver: subprocess.Popen[bytes] | None = None
        self._start_cluster()

    def _start_cluster(self) -> None:
        from ray.cluster_utils import Cluster

        self._small = {"num_cpus": 1, "object_store_memory": 80 << 20}
        self._cluster = Cluster(
            initialize_head=True,
            head_node_args=self._small | {"num_cpus": 0, "include_dashboard": False},
        )
        self._nodes = [self._cluster.add_node(**self._small) for _ in range(NODES)]

    def run(self) -> Toll:
        """Commit all faults, let the work be finished, and count."""
        begun = time.monotonic()
        for fault in self._faults:
            self._keep_driving()
            self._wait_for_progress()
            self._commit(fault)
            self.toll.faults[fault] += 1
        while len(self._store.finished_ids()) < self.toll.expected:
            self._keep_driving()
            assert self.toll.drivers < STARTS, "the work comes to no end"
            time.sleep(0.2)
        assert self._driver is not None
        self._driver.wait(timeout=120)
        self._finish_alone()
        self.toll.seconds = time.monotonic() - begun
        self._count()
        return self.toll

    def _finish_alone(self) -> None:
        """Train the last trials by a Ray of the driver's own: one that is killed, then another."""
        self.toll.expected += LEFT_TO_THE_LAST
        self._keep_driving("local")
        self._wait_for_progress("local")
        assert self._driver is not None
        self._driver.kill()
        self._driver.wait()
        temporary = self._folder / "t"
        until = time.monotonic() + 60
        while time.monotonic() < until and any(map(_is_in_use, temporary.glob("ray/session_2*"))):
            time.sleep(0.5)  # workers outlive their driver for some seconds
        self._keep_driving("local")
        assert self._driver.wait(timeout=300) == 0
        names = [path.name for path in (*temporary.iterdir(), *temporary.glob("ray/session_2*"))]
        self.toll.leftovers = sorted(name for name in names if LEFTOVER.match(name))

    def close(self) -> None:
        """End every process of it."""
        if self._driver is not None and self._driver.poll() is None:
            self._driver.kill()
            self._driver.wait()
        self._cluster.shutdown()
        if self._can_mount:
            subprocess.run(["umount", "--lazy", self._folder / "results"], check=True)

    def _keep_driving(self, address: str = "") -> None:
        if self._driver is not None and self._driver.poll() is None:
            return
        self.toll.drivers += 1
        address = address or self._cluster.address
        command = [sys.executable, "-m", "tests.chaos", "--drive", address]
        log = (self._folder / "driver.log").open("ab")
        with log:
            self._driver = subprocess.Popen(
                [*command, "--folder", self._folder, "--trials", str(self.toll.expected)],
                stdout=log,
                stderr=log,
                env=os.environ | {"TMPDIR": str(self._folder / "t")},
            )

    def _wait_for_progress(self, address: str = "") -> None:
        """Until one more trial is finished, so that each fault meets a run that goes on."""
        before = len(self._store.finished_ids())
        until = time.monotonic() + 60
        while time.monotonic() < until and len(self._store.finished_ids()) == before:
            if self._driver is not None and self._driver.poll() is not None:
                self._keep_driving(address)
            time.sleep(0.05)
        time.sleep(self._rng.uniform(0, PAUSE))

    def _commit(self, fault: str) -> None:
        assert self._driver is not None
        match fault:
            case "worker killed":
                if pids := self._list_workers():
                    with suppress(ProcessLookupError):
                        os.kill(self._rng.choice(pids), signal.SIGKILL)
            case "node lost" | "node drained":
                node = self._nodes.pop(self._rng.randrange(len(self._nodes)))
                self._cluster.remove_node(node, allow_graceful=fault == "node drained")
                self._nodes.append(self._cluster.add_node(**self._small))
            case "driver killed":
                self._driver.kill()
                self._driver.wait()
            case "raylet killed":
                self._end_ray("raylet")
            case "GCS killed":
                self._end_ray("gcs_server")
            case "disk full" | "read-only":
                self._break_disk(fault)
            case _ if fault in FILES:
                self._vandal.commit(fault)
            case _:
                (self._folder / "orders" / f"{fault}-{self.toll.faults.total()}").touch()

    def _end_ray(self, process: str) -> None:
        """Kill what a driver cannot do without; then have another cluster."""
        assert self._driver is not None
        for started in self._cluster.head_node.all_processes[process]:
            started.process.kill()
        assert self._driver.wait(timeout=150) == RayLostError.exit_code
        self._cluster.shutdown()
        self._start_cluster()

    def _break_disk(self, fault: str) -> None:
        """Let nothing be written until the driver has given up."""
        assert self._driver is not None
        results = self._folder / "results"
        if fault == "disk full":
            with suppress(OSError), (results / "ballast").open("wb") as file:
                while True:
                    file.write(bytes(1 << 16))
                    file.flush()
        else:
            assert _mount("-o", "remount,ro,bind", at=results)
        assert self._driver.wait(timeout=90) == StoreError.exit_code
        if fault == "disk full":
            (results / "ballast").unlink()
        else:
            assert _mount("-o", "remount,rw,bind", at=results)

    def _list_workers(self) -> list[int]:
        """The processes in training: children of our raylets that are actors."""
        raylets = {
            process.process.pid
            for node in self._nodes
            for process in node.all_processes.get("raylet", ())
        }
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            with suppress(OSError, IndexError, ValueError):
                parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
                if parent in raylets and (folder / "cmdline").read_bytes().startswith(b"ray::Wor"):
                    found.append(int(folder.name))
        return found

    def _count(self) -> None:
        import torch

        from harness.training.images import load_images
        from harness.training.train import prepare_worker, train_pack

        toll, store = self.toll, self._store
        trials = make_trials(toll.expected)
        rows = [row.trial_id for row in store.read_trial_rows()]
        toll.found = len(set(rows))
        toll.lost = len({trial.id for trial in trials} - set(rows))
        toll.doubled = len(rows) - len(set(rows))
        starts = Counter((self._folder / "starts").read_text(encoding="ascii").split())
        toll.starts = starts.total()
        toll.repeated = sum(times > 1 for times in starts.values())
        toll.resumed = len((self._folder / "resumed").read_bytes())
        failures = store.read_failures()
        toll.failures = Counter(row.kind for row in failures)
        said = [(self._folder / "driver.log").read_text(encoding="utf-8")]
        said += [text for row in failures for text in (row.message, row.traceback)]
        lines = [line for text in said for line in text.split("\n")]
        toll.escapes = sum(printable(line) != line for line in lines)
        toll.foreign, toll.harmed = self._vandal.left, self._vandal.count_harmed()
        toll.damaged = self._vandal.count_damaged(take_snapshot(store, whole_up_to=math.inf))
        prepare_worker(1)
        images = load_images("digits")
        for trial in trials:
            [calm] = train_pack([trial], images, device=torch.device("cpu"))
            wanted = to_tables(calm)
            stored = store.read_tables(trial.id)
            toll.unequal += any(find_differing_columns(stored[n], wanted[n]) for n in wanted)


@contextmanager
def rampaging(folder: Path, faults: int, seed: int) -> Iterator[Rampage]:
    """A rampage whose processes end with the block."""
    rampage = Rampage(folder, faults, random.Random(seed))
    try:
        yield rampage
    except BaseException:
        said = (folder / "driver.log").read_text(encoding="utf-8", errors="replace")
        say(said[-2_000:], is_error=True)
        raise
    finally:
        rampage.close()


def _mount(*options: str, at: Path) -> bool:
    """Mount something, where that is allowed."""
    done = subprocess.run(["mount", *options, str(at)], capture_output=True, check=False)
    return done.returncode == 0


def main() -> int:
    """The command line; 0 where nothing was lost, changed, left or let through."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--faults", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--drive", metavar="ADDRESS", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--trials", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.drive:
        return drive(options.folder, options.drive, options.trials)
    with (
        tempfile.TemporaryDirectory(prefix="chaos-") as folder,
        rampaging(Path(folder), options.faults, options.seed) as rampage,
    ):
        toll = rampage.run()
        print(toll)
    return int(not toll.is_clean)


if __name__ == "__main__":
    sys.exit(main())
