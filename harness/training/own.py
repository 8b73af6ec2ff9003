"""Build a user's own network: run its file, call its function, refuse what the study cannot read.

The file has been read and parsed (`study.own`); this module runs it. Whatever goes wrong in it
becomes one line that names the file, the line and what happened.
"""

from __future__ import annotations

import copy
import linecache
import random
import sys
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from types import CodeType, ModuleType

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.fx.proxy import TraceError
from torch.nn.parameter import is_lazy

from harness.study.errors import GridError, HarnessError
from harness.study.own import is_own, recall, split_name
from harness.study.trials import Trial, derive_seed
from harness.training.kinds import LAYERS, MODULES, Unfit

_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict, nn.ParameterList, nn.ParameterDict)

_INSTEAD = {
    "LayerNorm": "; nn.GroupNorm(1, channels) normalises the same numbers of an image",
    "SyncBatchNorm": "; write nn.BatchNorm2d",
}
"""A refused layer -> what to write in its place."""

_RANDOM = {"rand", "randn", "randint", "randperm", "rand_like", "randn_like", "randint_like"} | {
    *("normal", "bernoulli", "multinomial", "poisson", "rrelu", "gumbel_softmax"),
    *("normal_", "bernoulli_", "uniform_", "exponential_", "random_", "rrelu_"),
}
"""Functions that draw from torch's global stream, which no seed of a trial decides."""


def load_own(trial: Trial, shape: tuple[int, int, int], classes: int) -> nn.Module:
    """The network of the user's function, on the CPU, with what its constructors gave it.

    Random numbers drawn there come from a stream of the trial's block, so that every placement
    and every replay gets the same.

    Raises:
        GridError: the file or its function raises, or the network has what cannot be compared.
    """
    file, function = split_name(trial.architecture)
    with explained(trial), torch.device("cpu"), _globals_of_its_own(trial):
        build = getattr(_run_file(file, trial.architecture_digest), function)
        try:
            model = build(shape, classes, trial.depth)
        except TypeError as error:
            if error.__traceback__ and error.__traceback__.tb_next is None:  # not from inside it
                call = f"{function}(shape, classes, depth), shape = (channels, height, width)"
                raise Unfit(f"is called as {call}: TypeError: {error}") from error
            raise
        if not isinstance(model, nn.Module):
            raise Unfit(f"returns {type(model).__name__}, and should return a torch.nn.Module")
        _refuse_modules(model)
        _refuse_frozen(model)
        model = model.to("cpu", torch.float32).requires_grad_(requires_grad=True).train()
        _refuse_frozen(model)
        return model


@contextmanager
def _globals_of_its_own(trial: Trial) -> Iterator[None]:
    """Seed every global stream from the trial's block; put them and torch's settings back."""
    seed = derive_seed(trial.block_seed, "own")
    python, arrays = random.getstate(), np.random.get_state()  # noqa: NPY002 - a user's may draw from it
    dtype, threads = torch.get_default_dtype(), torch.get_num_threads()
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        try:
            torch.set_rng_state(torch.Generator().manual_seed(seed).get_state())
            random.seed(seed)
            np.random.seed(seed % 2**32)  # noqa: NPY002, TID251
            yield
        finally:
            random.setstate(python)
            np.random.set_state(arrays)  # noqa: NPY002
            torch.set_default_dtype(dtype)
            torch.set_num_threads(threads)


@contextmanager
def explained(trial: Trial) -> Iterator[None]:
    """Turn what keeps a network from being used, and whatever a user's raises, into one line."""
    try:
        yield
    except HarnessError:
        raise
    except Unfit as error:
        raise GridError([f"{trial.architecture} {error}"]) from error
    except BaseException as error:  # anything may be raised by a file of a user's
        if not is_own(trial.architecture) or isinstance(error, KeyboardInterrupt):
            raise
        raise GridError([_describe(error, trial.architecture)]) from error


def refuse_graph(network: fx.GraphModule, in_evaluation: fx.GraphModule) -> None:
    """Refuse a graph that trains, measures or repeats otherwise than it seems; dropout is gone.

    Raises:
        Unfit: with the reason.
    """
    inputs = [node for node in network.graph.nodes if node.op == "placeholder"]
    if len(inputs) != 1:
        raise Unfit(f"takes {len(inputs)} arguments in its forward(), and should take the images")
    calls = Counter(
        str(node.target)
        for node in network.graph.nodes
        if node.op == "call_module" and isinstance(network.get_submodule(node.target), LAYERS)
    )
    for name, times in calls.items():
        if times > 1:
            raise Unfit(f"runs its layer {name!r} {times} times; each place needs one of its own")
    for node in network.graph.nodes:
        name = getattr(node.target, "__name__", str(node.target))
        if node.op in {"call_function", "call_method"} and name in _RANDOM:
            raise Unfit(
                f"calls {name!r}, which no seed of a trial decides: it would not train alike"
            )
    if _spell(network) != _spell(in_evaluation):
        raise Unfit("does other operations in evaluation than in training (`self.training`)")


def refuse_cut_gradients(features: fx.GraphModule, out: Tensor) -> None:
    """Refuse layers that the loss sends no gradient to, such as those ahead of a `detach`.

    Raises:
        Unfit: names the first of them.
    """
    layers = {
        name: module.weight
        for name, module in features.named_modules()
        if isinstance(module, nn.Conv2d | nn.Linear)
    }
    if layers and out.requires_grad:
        grads = torch.autograd.grad(out.sum(), [*layers.values()], allow_unused=True)
    else:
        grads = [None] * len(layers)
    for name, grad in zip(layers, grads, strict=True):
        if grad is None:
            raise Unfit(f"sends no gradient to its layer {name!r}, which would not be trained")


def refuse_other_numbers(
    model: nn.Module,
    rewrite: Callable[[nn.Module], nn.Module],
    shape: tuple[int, int, int],
) -> None:
    """Refuse a model whose graph, `rewrite(model)`, gives other numbers; leaves it as it is.

    A graph has neither hooks nor operations in place, and drops those that nothing reads.

    Raises:
        Unfit: they differ on a few random images.
    """
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad(), torch.device("cpu"), torch.random.fork_rng(devices=[]):
        own = copy.deepcopy(model)
        for parameter in own.parameters():  # none may hide what is behind it, as a zero would
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
        network = rewrite(copy.deepcopy(own))
        x = torch.randn(4, *shape, generator=generator)
        torch.set_rng_state(generator.get_state())  # of dropout
        try:
            ours = network(x.clone())
        except (RuntimeError, ValueError, TypeError, IndexError):
            return  # that it does not take such images is told later
        torch.set_rng_state(generator.get_state())
        theirs = own(x.clone())
    if isinstance(ours, Tensor) and not torch.allclose(ours, theirs, 1e-4, 1e-5, equal_nan=True):
        raise Unfit(
            "computes something else once its operations are out of place: write `x = relu(x)`, "
            "without inplace operations, hooks or frozen norms"
        )


def _refuse_frozen(model: nn.Module) -> None:
    for name, module in model.named_modules():
        if isinstance(module, LAYERS) and module.training != model.training:
            raise Unfit(f"has in {name!r} a layer in evaluation mode; every norm is trained here")


def _spell(network: fx.GraphModule) -> list[str]:
    return [f"{node.op} {node.target} {node.args} {node.kwargs}" for node in network.graph.nodes]


def _refuse_modules(model: nn.Module) -> None:
    for name, module in model.named_modules():
        kind = type(module).__name__
        if any(map(is_lazy, (*module.parameters(recurse=False), *module.buffers(recurse=False)))):
            raise Unfit(f"has a lazy layer, {name!r}; give it its sizes")
        is_torchs = type(module).__module__.startswith("torch.nn")
        if isinstance(module, LAYERS):
            if not is_torchs:
                raise Unfit(f"has in {name!r} its own kind of layer, {kind}; use torch's own ones")
            if module.weight is not None and "weight" not in dict(module.named_parameters()):
                raise Unfit(f"computes the weight of {name!r} from others, as {kind}")
        elif is_torchs and not isinstance(module, _CONTAINERS) and [*module.parameters()]:
            known = dict.fromkeys(layer.__name__ for layer in MODULES if issubclass(layer, LAYERS))
            raise Unfit(
                f"has a {kind}, {name!r}; of torch's layers with weights it may have "
                f"{', '.join(known)}{_INSTEAD.get(kind, '')}"
            )
    owners: dict[int, str] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if (other := owners.setdefault(id(parameter), name)) != name:
            raise Unfit(f"has one weight at two places, {other!r} and {name!r}")
        if parameter.ndim == 0:
            raise Unfit(f"has a parameter without an axis, {name!r}; write torch.ones(1)")


def _run_file(file: str, digest: str) -> ModuleType:
    """The file as a module, run anew: what one network leaves in it reaches no other.

    It stands among the modules of Python, where dataclasses look.
    """
    source = recall(digest)
    if source is None:
        raise Unfit(f"is not at hand: this process was given no file with the digest {digest}")
    module = ModuleType(f"own_{digest}")
    module.__file__ = file
    sys.modules[module.__name__] = module
    linecache.cache[file] = len(source), None, source.splitlines(keepends=True), file
    exec(_compile(source, file), module.__dict__)  # noqa: S102 - the user's own file
    return module


@cache
def _compile(source: str, file: str) -> CodeType:
    return compile(source, file, "exec")


def _describe(error: BaseException, architecture: str) -> str:
    """'nets/mine.py:14: what happened', from the last frame that lies in the file."""
    file, _ = split_name(architecture)
    inside = [
        frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file
    ]
    try:
        said = str(error).strip().partition("\n")[0]
    except Exception:  # noqa: BLE001 - of a class of the user's
        said = ""
    what = f"{type(error).__name__}: {said}" if said else type(error).__name__
    if isinstance(error, TraceError):
        what = (
            "what is computed depends on the images, or on their number; placements rewrite the "
            "graph of a network, so that it has to do the same with every batch"
        )
    if not inside:
        return f"{architecture}: {what}"
    line = f" `{code}`" if (code := (inside[-1].line or "").strip()) else ""
    return f"{file}:{inside[-1].lineno}:{line}: {what}"
