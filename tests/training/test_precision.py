# SPDX-License-Identifier: Apache-2.0
"""Mixed precision and devices in training, on the CPU, where autocast and scaler work too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from seqrec_fast import data
from seqrec_fast.errors import DeviceError, InputError
from seqrec_fast.training import fit
from seqrec_fast.training.checkpoint import Checkpoint
from seqrec_fast.training.options import TrainingOptions
from seqrec_fast.training.precision import Precision

CPU = torch.device("cpu")
OPTIONS: dict[str, Any] = {
    "dim": 16,
    "dropout": 0.1,
    "learning_rate": 1e-2,
    "batch_size": 32,
    "max_length": 8,
    "threads": 1,
    "patience": 12,
    "progress": False,
}


@pytest.mark.parametrize("model", ["sasrec", "gru"])
@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_mixed_precision_learns_what_float32_learns(
    model: str, precision: str, split: data.Split
) -> None:
    run = fit(split, model, epochs=8, precision=precision, clip_norm=1.0, **OPTIONS)
    assert max(record["NDCG@10"] for record in run.history) > 0.5
    assert all(p.dtype == torch.float32 for p in run.model.parameters())
    assert run.training_options.precision == precision


@pytest.mark.parametrize("loss", ["sampled_softmax", "bce"])
def test_other_losses_in_mixed_precision(loss: str, split: data.Split) -> None:
    run = fit(split, "sasrec", epochs=2, loss=loss, negatives=8, precision="float16", **OPTIONS)
    assert run.history[1]["loss"] < run.history[0]["loss"]


def test_resuming_goes_on_with_the_scale(split: data.Split, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint"
    given = {**OPTIONS, "precision": "float16"}
    whole = fit(split, "sasrec", epochs=4, **given)
    fit(split, "sasrec", epochs=2, checkpoint=folder, **given)
    state = Checkpoint.load(folder).facts["precision"]
    assert state["scale"] > 0
    assert state["_growth_tracker"] > 0
    resumed = fit(split, "sasrec", epochs=4, checkpoint=folder, resume=True, **given)
    assert [r["loss"] for r in resumed.history] == [r["loss"] for r in whole.history]
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], tensor), name
    with pytest.raises(InputError, match="precision was 'float16', now 'float32'"):
        fit(split, "sasrec", epochs=4, checkpoint=folder, resume=True, **OPTIONS)


def test_a_step_that_overflows_is_left_out_and_the_scale_falls() -> None:
    weight = torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    precision = Precision("float16", CPU)
    before = precision.state()["scale"]
    precision.backward((weight * torch.inf).sum())
    precision.step(optimizer, [weight], 0.0)
    assert weight.tolist() == [1.0, 1.0]
    assert precision.state()["scale"] == before / 2
    optimizer.zero_grad()
    precision.backward((weight * torch.tensor([3.0, 4.0])).sum())
    precision.step(optimizer, [weight], 1.0)
    # the clipped norm is of the gradient without its factor
    assert weight.tolist() == pytest.approx([1 - 0.6, 1 - 0.8], rel=1e-5)


def test_states_and_their_refusals() -> None:
    assert Precision("bfloat16", CPU).state() == {}
    Precision("float32", CPU).restore({})
    scaled = Precision("float16", CPU)
    scaled.restore({**scaled.state(), "scale": 8.0})
    assert scaled.state()["scale"] == 8.0
    with pytest.raises(InputError, match="holds no state of scaled gradients"):
        Precision("float16", CPU).restore({})


def test_gpus_without_bfloat16_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation
    )
    with pytest.raises(InputError, match="precision: this GPU does not compute bfloat16; choose"):
        Precision("bfloat16", torch.device("cuda"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_missing_gpu_is_told_before_anything_is_trained(split: data.Split) -> None:
    with pytest.raises(DeviceError, match=r"device: 'cuda' needs a GPU.*device=\"cpu\""):
        fit(split, "sasrec", device="cuda", progress=False)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "gpu"}, "device: found 'gpu'; choose cpu, cuda or cuda:N"),
        ({"precision": "fp8"}, "precision: unknown precision 'fp8'; choose float32, bfloat16, flo"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        TrainingOptions(**options)
