"""Every column that the harness writes: its type, its unit, its meaning.

The Arrow schema, the axis titles and the documentation of a results folder come from here::

    trials     one row per trial:                   TrialRow = Settings + Outcome + Provenance
    epochs     one row per (trial, epoch):          EpochRow
    gradients  one row per (trial, reading, layer): GradientRow
    failures   one row per failed attempt:          FailureRow
    choices    one row per (arm, recipe) tuned:     ChoiceRow

Fractions are fractions (0.97, not 97), times are seconds, memory is bytes, and a number that does
not exist is NaN. Standard library only: `analysis` imports this module and no other of `harness`.
"""

from __future__ import annotations

from dataclasses import MISSING, dataclass, field, fields
from enum import StrEnum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datetime import datetime

SCHEMA_VERSION = 3
"""Increased when a column is added, dropped, or changes its meaning."""


def column(unit: str, meaning: str, *, default: Any = MISSING) -> Any:  # noqa: ANN401
    """Declare one column of a table.

    Units:
        "1" for a number without a unit, "" where the value is not a number.
    """
    return field(default=default, metadata={"unit": unit, "meaning": meaning})


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Everything that decides the result of a trial; two trials differ only if one of these does."""

    dataset: str = column("", "Name of the data set.", default="cifar10")
    architecture: str = column("", "How blocks make a network.")
    architecture_digest: str = column(
        "", "Digest of the user's file that builds the network; empty where it is ours.", default=""
    )
    placement: str = column("", "Where the norm stands among the operations of a block.")
    program: str = column("", "The operations of a block, in the order they run.")
    depth: int = column("1", "Weighted layers as the architecture counts them.")
    seed: int = column("1", "Index of the replicate.")
    stage: str = column(
        "", "'study', or 'tuning' for trials that only choose a recipe.", default="study"
    )
    recipe: str = column(
        "", "'common': one recipe for all arms; 'tuned': each arm's own best.", default="common"
    )
    width_factor: float = column("1", "Multiplies the architecture's channels.", default=1.0)
    growth: int = column("1", "Channels a densenet layer adds.", default=12)
    bottleneck: bool = column(
        "", "Densenet-BC: 1x1 bottlenecks, transitions halve the width.", default=True
    )
    norm: str = column(
        "",
        "Mean and variance are taken of: 'batch' each channel over the batch, 'layer' each image, 'group' groups of its channels, 'instance' each channel of each image.",
        default="batch",
    )
    norm_groups: int = column(
        "1",
        "Groups of 'group': their greatest common divisor with the channels.",
        default=8,
    )
    norm_affine: bool = column("", "A norm has a trained scale and shift.", default=True)
    final_norm: bool = column("", "One more norm ahead of the head, in every arm.", default=False)
    activation: str = column("", "The nonlinearity.", default="relu")
    flow: str = column(
        "",
        "'own', or the placement whose relative update sizes each layer borrows.",
        default="own",
    )
    flow_lr: float = column(
        "1",
        "Peak learning rate of the arm whose update sizes are borrowed; 0 where both have one recipe.",
        default=0.0,
    )
    flow_weight_decay: float = column(
        "1", "Its weight decay, where it has a recipe of its own.", default=0.0
    )
    epochs: int = column("1", "Passes over the training part.", default=200)
    train_images: int = column(
        "1",
        "Training images, each class by its share, the same in every trial; 0 for all.",
        default=0,
    )
    batch_size: int = column("1", "Images per optimizer step.", default=128)
    optimizer: str = column("", "'sgd' with Nesterov momentum, or 'adamw'.", default="sgd")
    lr: float = column("1", "Peak learning rate.", default=0.1)
    momentum: float = column("1", "Nesterov momentum of 'sgd'.", default=0.9)
    beta1: float = column("1", "Decay of the mean gradient of 'adamw'.", default=0.9)
    beta2: float = column("1", "Decay of the mean squared gradient of 'adamw'.", default=0.999)
    weight_decay: float = column(
        "1",
        "Decay of weights, never of norms or biases: L2 in 'sgd', decoupled in 'adamw'.",
        default=5e-4,
    )
    warmup_epochs: float = column("1", "Epochs of linear warm-up ahead of the cosine.", default=5.0)
    label_smoothing: float = column("1", "Probability mass spread over all classes.", default=0.0)
    augmentation: str = column(
        "", "'crop-flip': pad 4, crop, flip; or 'none'.", default="crop-flip"
    )
    precision: str = column("", "'float32', or 'bfloat16' autocast.", default="float32")
    memory_format: str = column(
        "", "Layout of activations: 'channels_last' or 'contiguous'.", default="channels_last"
    )
    compile: bool = column("", "The network runs through torch.compile.", default=False)
    threads: int = column("1", "Intra-op CPU threads; another count changes the sums.", default=1)
    pack_size: int = column("1", "Seeds trained together as one grouped network.", default=1)
    probe_size: int = column("1", "Images in the batch that measures gradient flow.", default=256)
    snr_batches: int = column(
        "1", "Parts of the probe batch whose gradients are compared; 0 for none.", default=0
    )


def settings_of(row: Settings) -> dict[str, Any]:
    """Only the settings of a trial, or of a row that has more columns."""
    return {name: getattr(row, name) for name in _SETTINGS}


_SETTINGS = tuple(setting.name for setting in fields(Settings))
_ARM = "What is compared within a cell: the placement; whose flow it borrows, its recipe and stage where these are not the study's common ones."


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The result of training a trial. Accuracies and losses are those of the last epoch."""

    status: str = column("", "'done', or 'diverged' where the loss turned non-finite.")
    epochs_trained: int = column("1", "Epochs finished.")
    steps: int = column("1", "Optimizer steps taken.")
    train_loss: float = column("nat", "Mean training loss over the last epoch.")
    train_accuracy: float = column("1", "Share of training images right during the last epoch.")
    validation_loss: float = column("nat", "Mean loss on the validation part.")
    validation_accuracy: float = column("1", "Share of validation images right.")
    test_loss: float = column("nat", "Mean loss on the test part; NaN where the trial diverged.")
    test_accuracy: float = column("1", "Share of test images right; NaN where the trial diverged.")
    test_correct: bytes = column(
        "", "One bit per test image, most significant first: 1 where right; empty where diverged."
    )
    calibration_error: float = column(
        "1",
        "Expected calibration error on the test part, 15 bins of confidence; NaN where diverged.",
    )
    class_accuracy: bytes = column(
        "",
        "Share of test images right, class by class, as little-endian float64; empty where diverged.",
    )
    folded_norms: float = column(
        "1",
        "Share of batch norms that can be folded into a layer beside them; NaN where diverged or none.",
    )
    folding_error: float = column(
        "1",
        "RMS change of the probe batch's logits over their RMS when these are folded; NaN likewise.",
    )
    folding_flips: float = column(
        "1", "Share of probe images whose predicted class that changes; NaN likewise."
    )
    parameters: int = column("1", "Trained numbers of the network.")
    wall_time: float = column(
        "s", "From the first batch to the last evaluation, this trial's share of its pack."
    )
    probe_time: float = column("s", "The part of `wall_time` spent measuring gradient flow.")
    peak_memory: int = column(
        "B", "Peak memory of the device (GPU), or of the worker process (CPU)."
    )


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """Where, when and with what a trial was trained; none of it affects the result on a CPU."""

    attempt: int = column("1", "Starts of this trial in this run, this one included.", default=1)
    run: str = column("", "The invocation of harness.run that trained it.", default="")
    started: datetime = column("", "UTC time of the first batch.")
    finished: datetime = column("", "UTC time of the last evaluation.")
    host: str = column("", "Name of the machine.")
    worker: int = column("1", "Process id of the worker.")
    device_kind: str = column("", "'cpu' or 'cuda'.")
    device: str = column("", "Name of the processor or GPU.")
    driver: str = column("", "Version of the GPU driver; empty on a CPU.")
    python: str = column("", "Version of Python.")
    torch: str = column("", "Version of torch.")
    torchvision: str = column(
        "", "Version of torchvision, whose models a trial may rewrite; empty without."
    )
    cuda: str = column("", "Version of CUDA that torch was built with; empty without.")
    deterministic: str = column("", "Determinism flags that were set.")
    commit: str = column("", "Git commit of the code; empty outside a checkout.")
    dirty: bool = column("", "The checkout had changes that were not committed.")
    code_digest: str = column("", "Digest of the source of the training code.")
    training_version: int = column("1", "TRAINING_VERSION of the code.")


@dataclass(frozen=True, slots=True, kw_only=True)  # a dict of eighty keys takes five kilobytes
class TrialRow(Settings, Outcome, Provenance):
    """Table `trials`: one row per finished trial."""

    arm: str = column("", _ARM)
    trial_id: str = column("", "Digest of all settings and the training version.")


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedTrial(Settings):
    """File `plan.parquet`: one row per trial of the whole grid, finished or not."""

    arm: str = column("", _ARM)
    trial_id: str = column("", "Digest of all settings and the training version.")


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochRow:
    """Table `epochs`: one row per (trial, epoch)."""

    trial_id: str = column("", "Joins to `trials.trial_id`.")
    epoch: int = column("1", "Epochs finished, from 1.")
    step: int = column("1", "Optimizer steps taken by then.")
    lr: float = column("1", "Learning rate of the epoch's last step.")
    train_loss: float = column("nat", "Mean training loss over the epoch.")
    train_accuracy: float = column("1", "Share of training images right during the epoch.")
    validation_loss: float = column("nat", "Mean loss on the validation part.")
    validation_accuracy: float = column("1", "Share of validation images right.")
    wall_time: float = column("s", "Duration of the epoch, this trial's share of its pack.")


@dataclass(frozen=True, slots=True, kw_only=True)
class GradientRow:
    """Table `gradients`: one row per (trial, reading, layer), on the fixed probe batch.

    z is the layer's output, g the gradient of the mean loss by z, W the layer's weight.
    """

    trial_id: str = column("", "Joins to `trials.trial_id`.")
    step: int = column("1", "Optimizer steps taken before the reading.")
    epoch: float = column("1", "The same in epochs; whole at an epoch's end.")
    layer: str = column("", "Dotted name of the layer, as in `named_modules()`.")
    layer_index: int = column("1", "Place of the layer in the forward pass, 0 next to the input.")
    actgrad_total: float = column("1", "L2 norm of g over the probe batch.")
    actgrad_rel: float = column(
        "1",
        "rms(g) times the standard deviation of z within channels: sensitivity to a relative change.",
    )
    wgrad_norm: float = column(
        "1", "L2 norm of the weight gradient; NOT comparable across placements."
    )
    wgrad_snr: float = column(
        "1",
        "||mean of gW||^2 over its variance across `snr_batches` parts of the probe batch; NaN where off.",
    )
    weight_norm: float = column("1", "L2 norm of W.")
    effective_grad: float = column(
        "1", "weight_norm * wgrad_norm: unchanged when a scale-invariant W is rescaled."
    )
    update_ratio: float = column(
        "1", "||dW|| / ||W|| of the optimizer step just taken; NaN at step 0."
    )
    zero_fraction: float = column(
        "1", "Zeros at the output of the ReLU that it runs into; NaN where that is none."
    )
    dead_fraction: float = column(
        "1", "Channels of that ReLU that are zero on the whole batch; NaN without one."
    )
    act_mean: float = column("1", "Mean of z.")
    act_var: float = column("1", "Variance of z within channels, averaged over channels.")
    qa_sum: float = column(
        "1",
        "Sum of the gradient at the input of the norm that it runs into, over what that gives mean 0, relative; zero to rounding, NaN without one.",
    )
    qa_dot: float = column(
        "1",
        "<W, gW> of the filters that a norm makes scale-invariant, relative; zero up to the norm's epsilon, NaN where it makes none.",
    )


class FailureKind(StrEnum):
    """How an attempt failed; the row holds the text."""

    EXCEPTION = "exception"
    OUT_OF_MEMORY = "out of memory"
    WORKER_LOST = "worker lost"
    TIMEOUT = "timeout"


_KINDS = [f"'{kind}'" for kind in FailureKind]


@dataclass(frozen=True, slots=True, kw_only=True)
class FailureRow:
    """Table `failures`: one row per failed attempt. A failure is not an outcome."""

    trial_id: str = column("", "The trial that was being trained.")
    trial: str = column("", "The same trial in words.")
    attempt: int = column("1", "Starts of this trial in this run, this one included.")
    run: str = column("", "The invocation of harness.run.")
    kind: str = column("", f"{', '.join(_KINDS[:-1])} or {_KINDS[-1]}.")
    message: str = column("", "Last line of the traceback, or what Ray said.")
    traceback: str = column("", "The whole traceback.")
    failed_at: datetime = column("", "UTC time.")
    host: str = column("", "Name of the machine; empty where it is not known.")
    code_digest: str = column("", "Digest of the source of the training code.")


@dataclass(frozen=True, slots=True, kw_only=True)
class ChoiceRow(Settings):
    """Table `choices`: one row per (arm, recipe) of the tuning stage; its `seed` has no meaning."""

    arm: str = column("", _ARM)
    seeds: int = column("1", "Trials of this recipe.")
    diverged: int = column("1", "How many of them diverged; each scores 0.")
    validation_accuracy: float = column("1", "Mean share of validation images right.")
    chosen: bool = column("", "The best recipe of its arm: the study runs at it.")
    at_edge: bool = column(
        "", "The rate is the smallest or largest tried: a better one may lie beyond."
    )


@dataclass(frozen=True, slots=True)
class TrialRows:
    """All rows of one trial."""

    trial: TrialRow
    epochs: tuple[EpochRow, ...]
    gradients: tuple[GradientRow, ...]


CLAIMS = ("C1", "C2", "C3", "C4", "C5")
"""The claims that every study is asked, tested or not: the error rate is shared among them."""
FEWEST_PAIRS = 3
"""A cell with fewer pairs decides nothing, and is named: with two, any outlier is half the data."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AnalysisPlan:
    """The analysis settings that the grid fixes before anything runs; stored with the rows."""

    grid: str = column("", "Name of the grid.")
    margin_accuracy: float = column(
        "percentage points", "Smallest accuracy difference that matters.", default=0.5
    )
    margin_gradient: float = column(
        "1", "Smallest ratio of gradient flow that matters, above 1.", default=1.25
    )
    alpha: float = column("1", "Error rate of each family of tests.", default=0.05)
    gradient_column: str = column(
        "", "The gradient-flow quantity that decides.", default="actgrad_rel"
    )
    margin_risk: float = column(
        "1", "Smallest difference in the risk of a trial that does not train.", default=0.1
    )
    control: str = column(
        "",
        "An arm known to do worse or better than 'before': where that does not show, nothing is called equivalent.",
        default="",
    )
    epochs: int = column(
        "1",
        "Training length that decides, where the grid has several; the others are shown beside. 0: all decide together.",
        default=0,
    )
    looks: tuple[int, ...] = column(
        "1", "Seeds per cell at each planned look; empty: one look, at the end.", default=()
    )

    def __post_init__(self) -> None:
        object.__setattr__(self, "looks", tuple(self.looks))  # JSON has lists only
