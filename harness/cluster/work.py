"""What one image asks of a network, counted by torch on the meta device, which computes nothing.

`python -m harness.cluster.work` counts in a process of its own, so that a driver need not load
torch: the settings of trials and the files of users' own networks come in on stdin, their work, or
why they have none, goes out on stdout, both as JSON.
"""

# ruff: noqa: T201  what is printed is what the driver reads
from __future__ import annotations

import json
import signal
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from typing import NamedTuple, NoReturn

from harness.study.errors import HarnessError
from harness.study.facts import look_up_facts
from harness.study.own import is_own, remember
from harness.study.trials import Trial

IMAGES = 8
"""In the batch that is counted."""

WIDE = 64
"""Channels from which on a convolution keeps a core's vector units busy."""

LANES = 8
"""A map whose channels are no multiple of this is laid out anew for each convolution."""


class Work(NamedTuple):
    """Of a forward pass: per image, and in the last two what it costs however few they are."""

    flop: float = 0.0
    narrow_flop: float = 0.0
    """Of convolutions, over their output channels, `WIDE` at most."""
    odd_numbers: float = 0.0
    """Written to maps whose channels are no multiple of `LANES`."""
    parameters: float = 0.0
    operations: float = 0.0


def count_work(trial: Trial) -> Work:
    """The work of the network of `trial` on its data set.

    Raises:
        HarnessError: there can be no such network.
    """
    import torch  # noqa: PLC0415 - the driver reads `Work` without it
    from torch.utils._python_dispatch import TorchDispatchMode  # noqa: PLC0415
    from torch.utils.flop_counter import FlopCounterMode  # noqa: PLC0415

    from harness.training.networks import build_network  # noqa: PLC0415

    class Traffic(TorchDispatchMode):
        narrow_flop = odd_numbers = operations = 0.0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # noqa: ANN001, ANN204 - torch's own signature
            result = func(*args, **(kwargs or {}))
            out = result[0] if isinstance(result, tuple) else result
            if isinstance(out, torch.Tensor) and not func.is_view:
                self.operations += 1
                if out.ndim == 4 and out.shape[1] % LANES:
                    self.odd_numbers += out.numel()
                if func is torch.ops.aten.convolution.default:
                    weight = args[1]
                    self.narrow_flop += 2 * out.numel() * weight[0].numel() / min(WIDE, len(weight))
            return result

    facts = look_up_facts(trial.dataset)
    with torch.device("meta"):
        network = build_network(trial, facts.shape, facts.classes)
    layout = getattr(torch, trial.memory_format.replace("contiguous", "contiguous_format"))
    x_NCHW = torch.empty(IMAGES, *facts.shape, device="meta").to(memory_format=layout)
    flop, traffic = FlopCounterMode(display=False), Traffic()
    with torch.no_grad(), flop, traffic:
        network.to("meta").to(memory_format=layout)(x_NCHW)
    return Work(
        flop.get_total_flops() / IMAGES,
        traffic.narrow_flop / IMAGES,
        traffic.odd_numbers / IMAGES,
        sum(parameter.numel() for parameter in network.parameters()),
        traffic.operations,
    )


def count_or_explain(trial: Trial) -> Work | str:
    """The work of the network of `trial`, or why there can be no such network."""
    try:
        return count_work(trial)
    except HarnessError as error:
        return str(error)
    except KeyboardInterrupt:  # no Ctrl-C comes here: the main thread's, or another process's
        return f"{trial.architecture} raises KeyboardInterrupt"


def count_in_time(trials: Sequence[Trial], seconds: int = 120) -> list[Work | str]:
    """The same of each trial, a user's own network in so many seconds; for a main thread."""
    overdue: set[str] = set()  # once is enough to wait

    def count(trial: Trial) -> Work | str:
        if not is_own(trial.architecture):
            return count_or_explain(trial)
        late = f"building {trial.architecture} took over {seconds / 60:.2g} minutes"

        def give_up(*_: object) -> NoReturn:
            overdue.add(trial.architecture)
            raise HarnessError(late)

        if trial.architecture in overdue:
            return late
        usual = signal.signal(signal.SIGALRM, give_up)
        signal.alarm(seconds)
        try:
            return count_or_explain(trial)
        finally:
            signal.alarm(0)
            signal.signal(signal.SIGALRM, usual)

    return [count(trial) for trial in trials]


def main() -> None:
    """Read trials, write their work, in one order."""
    request = json.load(sys.stdin)
    for source in request["networks"]:
        remember(source)
    trials = [Trial(**settings) for settings in request["trials"]]
    with redirect_stdout(sys.stderr):  # a user's file may print
        counted = count_in_time(trials)
    print(json.dumps(counted))


if __name__ == "__main__":
    main()
