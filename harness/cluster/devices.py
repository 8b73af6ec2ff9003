"""Which type of device trains which network, where a cluster has several.

Arms are compared in pairs, and another type of device gives other bits and other times. So not
only a cell stays on one type, but all arms and seeds of a network: were each arm on a type of its
own, the comparison would be one of devices.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence

from harness.study.errors import ClusterError
from harness.study.records import Settings
from harness.study.trials import Trial

Network = tuple[str, str, int]
"""(data set, architecture, depth): what all trials that are compared have in common."""


def network_of(trial: Settings) -> Network:
    """The network that the trial is an arm of."""
    return trial.dataset, trial.architecture, trial.depth


def assign_devices(
    trials: Sequence[Trial],
    estimate: Callable[[Trial], float],
    rooms: Mapping[str, int],
    known: Mapping[Network, str],
) -> dict[Network, str]:
    """A type of device for each network: the one that has trained it already, or the least busy.

    The longest work is given out first.

    Units:
        estimate: seconds of work in a trial; rooms: trials at a time, by type of device.
    Raises:
        ClusterError: a network has been trained on a type that is not among `rooms`.
    Source:
        Graham 1969, doi:10.1137/0117039 (longest processing time first).
    """
    work: dict[Network, float] = defaultdict(float)
    for trial in trials:
        work[network_of(trial)] += estimate(trial)
    seconds = dict.fromkeys(rooms, 0.0)
    chosen: dict[Network, str] = {}
    # Networks that have no choice come first, then by length.
    for network in sorted(work, key=lambda name: (name not in known, -work[name], name)):
        device = known.get(network)
        if device is None:
            device = min(
                rooms, key=lambda name: ((seconds[name] + work[network]) / rooms[name], name)
            )
        elif device not in rooms:
            dataset, architecture, depth = network
            raise ClusterError(
                f"--pin-device-type: {dataset} {architecture}-{depth} has been trained on {device}, "
                f"and no node has one; there is {', '.join(sorted(rooms))}. Add such a node, or "
                "train the rest on another type without --pin-device-type"
            )
        seconds[device] += work[network]
        chosen[network] = device
    return chosen


def find_type(device: str, types: Iterable[str]) -> str:
    """The type, as Ray calls it, of a device that torch calls `device`; its own name if none fits.

    >>> find_type("NVIDIA A10G", ["A10", "A10G", "L4"])
    'A10G'
    >>> find_type("Tesla T4", ["A10G", "L4"])
    'Tesla T4'
    """
    fitting = [name for name in types if name.replace("-", " ") in device.replace("-", " ")]
    return max(fitting, key=len, default=device)
