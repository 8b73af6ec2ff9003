"""What is judged as a study of its own, and what it is called.

A claim about batch norm and ReLU says nothing of another norm, activation or optimizer: each of
these is judged apart, and the answers are shown side by side.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from analysis.load import BLOCK

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

_WORDS = {
    "norm": {name: f"{name} norm" for name in ("batch", "layer", "group", "instance")},
    "activation": {
        "relu": "ReLU",
        "leaky_relu": "leaky ReLU",
        "gelu": "GELU",
        "silu": "SiLU",
        "tanh": "tanh",
    },
    "optimizer": {"sgd": "SGD", "adamw": "AdamW"},
    "train_images": {"0": "all"},
    "final_norm": {"True": "final norm", "False": ""},
}
"""How the values of settings are written for readers; what is not there is not said."""
_PHRASES = {
    "architecture_digest": "file {}",
    "batch_size": "batches of {}",
    "beta1": "\N{GREEK SMALL LETTER BETA}1 {}",
    "beta2": "\N{GREEK SMALL LETTER BETA}2 {}",
    "epochs": "{} epochs",
    "final_norm": "{}",
    "lr": "learning rate {}",
    "pack_size": "packs of {}",
    "probe_size": "{} images in the probe",
    "train_images": "{} images",
    "warmup_epochs": "{} epochs of warm-up",
    "width_factor": "width {}",
}
"""How a setting is written beside its value, where its name would not do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Study:
    """What all trials of a study share; every number that is taken from them carries it."""

    dataset: str
    recipe: str
    norm: str = "batch"
    norm_groups: int = 0
    """Of group norm; 0 of every other."""
    activation: str = "relu"
    optimizer: str = "sgd"

    @property
    def identity(self) -> dict[str, Any]:
        """The fields by name: equal where two numbers come from one study."""
        return {name: getattr(self, name) for name in STUDY}

    @property
    def identity_key(self) -> tuple[Any, ...]:
        """The same, to look a study up."""
        return tuple(self.identity.values())

    @property
    def is_papers(self) -> bool:
        """Is it about batch norm and ReLU, as the paper's claims are?"""
        return (self.norm, self.activation) == ("batch", "relu")

    @property
    def norm_name(self) -> str:
        """The norm in words."""
        return name_value("norm", self.norm)

    @property
    def activation_name(self) -> str:
        """The activation in words."""
        return name_value("activation", self.activation)


STUDY = tuple(field.name for field in fields(Study))
"""The columns that name a study."""


def split_studies(planned: pd.DataFrame) -> list[tuple[Study, pd.DataFrame]]:
    """The rows of each study, data sets and recipes as planned, in each the paper's own first.

    Networks without norms are trained once, and belong to the study of every norm.
    """
    planned = _share_bare(planned)
    keys = planned[list(STUDY)].assign(norm_groups=count_groups)
    first = dict.fromkeys(zip(keys["dataset"], keys["recipe"], strict=True))
    place = {pair: number for number, pair in enumerate(first)}
    found = [
        (Study(**dict(zip(STUDY, values, strict=True))), rows)
        for values, rows in keys.groupby(list(STUDY)).indices.items()
    ]
    found.sort(key=lambda it: (place[it[0].dataset, it[0].recipe], not it[0].is_papers, it[1][0]))
    return [(study, planned.iloc[rows]) for study, rows in found]


def _share_bare(planned: pd.DataFrame) -> pd.DataFrame:
    """The rows, those of networks without norms once for every norm that is asked beside them."""
    is_bare = ~planned["program"].str.contains("norm") & ~planned["final_norm"]
    if not is_bare.any():
        return planned
    asked = planned.loc[~is_bare, [*_OF_OTHERS, *_OF_NORMS]].drop_duplicates()
    bare = planned[is_bare].assign(place=np.flatnonzero(is_bare))
    shared = bare.drop(columns=_OF_NORMS).merge(asked, on=_OF_OTHERS)
    alone = bare[~bare["place"].isin(shared["place"])]
    normed = planned[~is_bare].assign(place=np.flatnonzero(~is_bare))
    every = pd.concat([normed, shared, alone]).sort_values("place", kind="stable")
    return every[planned.columns].reset_index(drop=True)


def count_groups(rows: pd.DataFrame) -> pd.Series:
    """`norm_groups` where it has a meaning, else 0."""
    return rows["norm_groups"].where(rows["norm"] == "group", 0)


def name_ingredients(rows: pd.DataFrame) -> list[str]:
    """Of each row norm, activation and optimizer in words: each where it is new anywhere.

    >>> rows = pd.DataFrame([Study(dataset="a", recipe="b", norm=n).identity for n in ("batch", "layer")])
    >>> name_ingredients(rows), name_ingredients(rows[:1])
    (['batch norm', 'layer norm'], [''])
    """
    groups = count_groups(rows)
    tells_groups = len(set(groups[groups > 0])) > 1
    parts = []
    for name in ("norm", "activation", "optimizer"):
        if (rows[name] == getattr(_DEFAULT, name)).all():
            continue
        words = [name_value(name, value) for value in rows[name]]
        if name == "norm" and tells_groups:
            words = [
                f"{word} of {count} groups" if count else word
                for word, count in zip(words, groups, strict=True)
            ]
        parts.append(words)
    return [", ".join(words) for words in zip(*parts, strict=True)] if parts else [""] * len(rows)


def name_value(setting: str, value: object) -> str:
    """The value of a setting as readers say it.

    >>> name_value("norm", "layer"), name_value("batch_size", 8)
    ('layer norm', '8')
    """
    return _WORDS.get(setting, {}).get(str(value), str(value))


def name_dataset(dataset: str) -> str:
    """A data set as readers say it.

    >>> name_dataset("fashion-mnist"), name_dataset("imagefolder:flowers:32@0123456789abcdef")
    ('Fashion-MNIST', 'flowers')
    """
    known = {"digits": "scikit-learn's digits", "svhn": "SVHN", "mnist": "MNIST"}
    known |= {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100", "fashion-mnist": "Fashion-MNIST"}
    if dataset.startswith("synthetic"):
        return "synthetic images"
    kind, _, rest = dataset.partition(":")
    own = rest.partition("@")[0].partition(":")[0] if kind in {"imagefolder", "arrays"} else ""
    return known.get(dataset) or own or dataset


def name_settings(settings: Mapping[str, object]) -> str:
    """What tells a network from its neighbours, as readers say it.

    >>> name_settings({"width_factor": 0.5, "epochs": 6, "final_norm": True})
    'width 0.5, 6 epochs, final norm'
    """
    words = []
    for name, value in settings.items():
        written = f"{value:g}" if isinstance(value, float) else name_value(name, value)
        words.append(_PHRASES.get(name, f"{name.replace('_', ' ')} {{}}").replace("{}", written))
    return ", ".join(filter(None, words))


def find_told(rows: pd.DataFrame, names: Sequence[str], within: Sequence[str]) -> pd.DataFrame:
    """Of each row and setting: does it tell the row from others that are equal in `within`?

    What only goes with the length of the training is not told beside it.
    """
    differs = rows.groupby(list(within), sort=False)[list(names)].transform("nunique") > 1
    if {"epochs", "warmup_epochs"} <= set(names):
        of_length = rows.groupby([*within, "epochs"], sort=False)["warmup_epochs"]
        differs["warmup_epochs"] &= of_length.transform("nunique") > 1
    return differs


def frame_studies(numbers: Iterable[Study]) -> pd.DataFrame:
    """The study of each number, as rows."""
    return pd.DataFrame([number.identity for number in numbers], columns=pd.Index(STUDY))


_OF_NORMS = ["norm", "norm_groups", "norm_affine"]
_OF_OTHERS = [n for n in BLOCK if n not in {*_OF_NORMS, "flow", "flow_lr", "flow_weight_decay"}]
_DEFAULT = Study(dataset="", recipe="")
