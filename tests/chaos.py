"""python -m tests.chaos --faults 200: break everything at random, and count what is lost.

A cluster of small nodes trains real trials while workers, nodes and drivers are killed, trials
raise, hang and eat their memory, and the disk fills up. The driver is started again until the work
is done. Then every row is compared with those of the same trials trained without any of this.
"""

# ruff: noqa: T201  this file speaks to the terminal
from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.results import Store, find_differing_columns, to_tables
from harness.study.errors import HarnessError
from harness.study.trials import PROGRAMS, Trial

if TYPE_CHECKING:
    from harness.cluster.shards import Start

TRIALS_PER_FAULT = 3
TRIAL_LIMIT = 10.0
"""Seconds; a hundred times what a trial takes, for a machine with much else to do."""

EPOCHS = 2
PAUSE = 0.4
"""Seconds added to each trial, so that faults meet trials and not only the gaps between them: in
equal parts after its checkpoints, one an epoch, so that faults meet trials that can be gone on with."""

NODES = 2
STARTS = 60

ORDERED = ("raises", "hangs", "eats its memory")
"""Faults that a trial commits: whichever worker comes next takes the order."""

KILLS = (
    "worker killed",
    "worker killed",
    "worker killed",
    "node lost",
    "node drained",
    "driver killed",
)
DISK = ("disk full", "read-only")


@dataclass
class Toll:
    """What the faults came to."""

    faults: Counter[str] = field(default_factory=Counter)
    expected: int = 0
    found: int = 0
    lost: int = 0
    doubled: int = 0
    unequal: int = 0
    starts: int = 0
    """Of trainings."""
    resumed: int = 0
    """Of these, from a checkpoint."""
    repeated: int = 0
    """Trials that were trained more than once."""
    drivers: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0

    @property
    def wasted(self) -> int:
        """Trainings that led to no row of their own."""
        return self.starts - self.found

    def __str__(self) -> str:
        kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(self.faults.items()))
        noted = ", ".join(f"{count} {kind}" for kind, count in sorted(self.failures.items()))
        return "\n".join(
            [
                f"faults   {self.faults.total()}: {kinds}",
                (
                    f"rows     {self.expected} expected, {self.found} found, {self.lost} lost, "
                    f"{self.doubled} doubled, {self.unequal} unequal"
                ),
                (
                    f"work     {self.starts} trainings, {self.resumed} from a checkpoint; "
                    f"{self.repeated} trials trained more than once, {self.wasted} trainings "
                    f"wasted ({self.wasted / max(1, self.faults.total()):.2f} per fault)"
                ),
                f"noted    {noted or 'no failures'}",
                f"drivers  {self.drivers}, {self.seconds:.0f} s in all",
            ]
        )


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
        from harness.cluster.worker import train_with_torch

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
    from harness.progress import Progress

    trials = make_trials(count)
    forecast = Forecast()
    try:
        train_missing(
            trials,
            Store(folder / "results"),
            Request(address=address),
            run=f"run-{os.getpid()}",
            estimate=lambda _: PAUSE,
            limit=lambda _: TRIAL_LIMIT,
            watcher=Progress(trials, forecast),
            stop=threading.Event(),
            train=Disturbed(folder),
            keep_every=0.0,
        )
    except HarnessError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


class Rampage:
    """A cluster, a driver on it, and the faults that befall both."""

    def __init__(self, folder: Path, faults: int, rng: random.Random) -> None:
        from ray.cluster_utils import Cluster

        self.toll = Toll(expected=TRIALS_PER_FAULT * faults)
        self._folder = folder
        self._rng = rng
        self._store = Store(folder / "results")
        for name in ("orders", "taken", "results"):
            (folder / name).mkdir(exist_ok=True)
        (folder / "resumed").touch()
        self._can_mount = _mount("tmpfs", "-t", "tmpfs", "-o", "size=64m", at=folder / "results")
        kinds = ORDERED + KILLS + (DISK if self._can_mount else ())
        self._faults = [kinds[index % len(kinds)] for index in range(faults)]
        rng.shuffle(self._faults)
        small = {"num_cpus": 1, "object_store_memory": 80 << 20}
        self._small = small
        self._cluster = Cluster(
            initialize_head=True, head_node_args=small | {"num_cpus": 0, "include_dashboard": False}
        )
        self._nodes = [self._cluster.add_node(**small) for _ in range(NODES)]
        self._driver: subprocess.Popen[bytes] | None = None

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
        self.toll.seconds = time.monotonic() - begun
        self._count()
        return self.toll

    def close(self) -> None:
        """End every process of it."""
        if self._driver is not None and self._driver.poll() is None:
            self._driver.kill()
            self._driver.wait()
        self._cluster.shutdown()
        if self._can_mount:
            subprocess.run(["umount", "--lazy", self._folder / "results"], check=True)

    def _keep_driving(self) -> None:
        if self._driver is not None and self._driver.poll() is None:
            return
        self.toll.drivers += 1
        command = [sys.executable, "-m", "tests.chaos", "--drive", self._cluster.address]
        log = (self._folder / "driver.log").open("ab")
        with log:
            self._driver = subprocess.Popen(
                [*command, "--folder", self._folder, "--trials", str(self.toll.expected)],
                stdout=log,
                stderr=log,
            )

    def _wait_for_progress(self) -> None:
        """Until one more trial is finished, so that each fault meets a run that goes on."""
        before = len(self._store.finished_ids())
        until = time.monotonic() + 60
        while time.monotonic() < until and len(self._store.finished_ids()) == before:
            if self._driver is not None and self._driver.poll() is not None:
                self._keep_driving()
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
            case "disk full":
                ballast = self._folder / "results" / "ballast"
                with suppress(OSError), ballast.open("wb") as file:
                    while True:
                        file.write(bytes(1 << 16))
                        file.flush()
                assert self._driver.wait(timeout=90) == 3
                ballast.unlink()
            case "read-only":
                assert _mount("-o", "remount,ro,bind", at=self._folder / "results")
                assert self._driver.wait(timeout=90) == 3
                assert _mount("-o", "remount,rw,bind", at=self._folder / "results")
            case _:
                (self._folder / "orders" / f"{fault}-{self.toll.faults.total()}").touch()

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
        toll.failures = Counter(row.kind for row in store.read_failures())
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
    finally:
        rampage.close()


def _mount(*options: str, at: Path) -> bool:
    """Mount something, where that is allowed."""
    done = subprocess.run(["mount", *options, str(at)], capture_output=True, check=False)
    return done.returncode == 0


def main() -> int:
    """The command line; 0 where nothing was lost, doubled or unequal."""
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
    return int(bool(toll.lost or toll.doubled or toll.unequal))


if __name__ == "__main__":
    sys.exit(main())
