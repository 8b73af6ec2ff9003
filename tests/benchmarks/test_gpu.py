"""The GPU benchmark runs from end to end without a GPU, and counts right what it counts."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from harness.study.trials import PROGRAMS, Trial
from tests.benchmarks import ceilings, gpu
from tests.test_architecture import import_without

CPU = torch.device("cpu")


def test_it_runs_on_a_cpu_and_says_what_needs_cuda(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(gpu, "SECONDS_OF_TIMING", 0.0)
    file = tmp_path / "gpu.json"
    arguments = ["--device", "cpu", "--minutes", "0.05", "--json", str(file)]
    monkeypatch.setattr(sys, "argv", ["gpu", *arguments])
    gpu.main()
    said = capsys.readouterr().out
    assert "graph, 5 streams, float32 (needs CUDA)" in said
    results = json.loads(Path(file).read_text(encoding="utf-8"))
    assert results["machine"]["torch"] == torch.__version__
    for architecture, depth in gpu.ON_CPU.subjects:
        name = f"{architecture}-{depth} 8x8"
        rows = [row for row in results["rows"] if row["network"] == name]
        assert {"DataLoader", "plain steps"} <= {row["side"] for row in rows}
        for row in rows:
            assert row["images/s"] > 0
            assert row["floor %"] > 0
            loop = row["side"] == "DataLoader"  # which has its record from every step
            reading = 0.0 if loop else results[name]["counted"]["seconds of a reading"]
            assert reading > 0 or loop
            epoch = 45_000 / row["images/s"] + reading
            assert row["trials/h"] == pytest.approx(3_600 / (200 * epoch))
        assert len(results[name]["seconds per step"]) == len(rows)


def make_mlp():
    return Trial(
        architecture="mlp",
        placement="none",
        program=PROGRAMS["mlp"]["none"],
        depth=2,
        seed=0,
        width_factor=0.25,
        batch_size=8,
    )


def test_flop_are_those_of_the_matrix_products():
    images = gpu.make_images(replace(gpu.ON_CPU, side=4))
    work = ceilings.count_work(make_mlp(), images, CPU)
    first, hidden, head = 48 * 128, 128 * 128, 128 * 10
    # A multiplication and an addition: forward, for each weight, and for each input but the images.
    assert work["FLOP"] == 2 * (3 * (first + hidden + head) - first)
    assert 0 < work["bfloat16 bytes"] < 2 * work["bytes"]


@pytest.mark.parametrize(
    ("act", "moved"),
    [
        (torch.relu, 2 * 400),
        (lambda x: x.t().view(-1), 0),
        (lambda x: x + x.expand(3, 100), 400 + 400 + 1_200),
        (torch.empty_like, 0),
    ],
)
def test_bytes_are_those_that_each_operation_reads_and_writes(act, moved):
    x = torch.ones(1, 100)
    with ceilings.Traffic() as traffic:
        act(x)
    assert traffic.bytes == moved


def test_tf32_is_left_as_it_was():
    found = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    with ceilings.allow_tf32("TF32"):
        assert torch.backends.cudnn.allow_tf32
        assert torch.backends.cuda.matmul.allow_tf32
    assert (torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32) == found


def test_it_needs_nothing_that_a_bare_gpu_machine_lacks():
    absent = {"ray", "pydantic", "altair", "rich"}
    broken, _ = import_without(absent, ["tests.benchmarks.gpu"])
    assert broken == {}
