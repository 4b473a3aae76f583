# SPDX-License-Identifier: Apache-2.0
"""Whole models on a GPU, for ``bench gpu``: a step of training, and recommending.

A step is what the trainer does: forward and loss over all items, backward, AdamW. Its gradients are
judged without dropout, by the root mean square of each parameter's, as the many roundings of a
model leave no single element to look at; it is timed with dropout. ``torch`` is the same model by
plain torch on the same jagged batch.

Recommending is the engine's whole request, from histories in numpy to items in numpy: its scores,
and the exact scores of the items it chose, are judged.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from seqrec_fast import native
from seqrec_fast.benchmarks import shapes
from seqrec_fast.benchmarks.case import OURS, STANDARD, why
from seqrec_fast.benchmarks.gpu_cases import Calls, Errors, OursFailed
from seqrec_fast.benchmarks.gpu_layouts import DTYPES, TF32, math_of, rounding
from seqrec_fast.engine.encoders import build_encoder
from seqrec_fast.jagged import JaggedBatch
from seqrec_fast.models import ModelOptions, SequenceModel, build_model
from seqrec_fast.models.device_engine import DeviceEngine
from seqrec_fast.training.losses import make_objective
from seqrec_fast.training.optimizers import make_optimizer
from seqrec_fast.training.options import TrainingOptions
from seqrec_fast.training.precision import Precision

__all__ = ["RecommendCase", "StepCase", "model_cases"]

_VARIABLE = "SEQREC_FAST_BACKEND"
#: types of a step: float16 needs scaled gradients, which this does not judge
_STEP_DTYPES = ("float32", TF32, "bfloat16")
_DROPOUT = 0.2


@contextmanager
def _plain_torch() -> Iterator[None]:
    """The operations run by plain torch."""
    before = os.environ.get(_VARIABLE)
    os.environ[_VARIABLE] = "reference"
    try:
        yield
    finally:
        if before is None:
            del os.environ[_VARIABLE]
        else:
            os.environ[_VARIABLE] = before


def _plainly(run: Callable[[], Any]) -> Callable[[], Any]:
    def plain() -> Any:
        with _plain_torch():
            return run()

    return plain


@dataclass(frozen=True)
class _ModelCase:
    """A model, its size and its batch."""

    shape: shapes.ModelShape
    dtype_name: str

    @property
    def name(self) -> str:
        """Shape and type."""
        return f"{self.shape}, {self.dtype_name}"

    def lacks(self, device: torch.device) -> str | None:
        """Nothing: what has no kernels runs by plain torch, as for every user."""
        return None

    def cost(self) -> None:
        """Is not counted."""

    def _batch(self) -> JaggedBatch[Any]:
        shape = self.shape
        lengths = shapes.row_lengths(shape.lengths, shape.rows, shape.time)
        items = np.random.default_rng(0).integers(0, shape.items, sum(lengths))
        return JaggedBatch.from_lengths(items, lengths)

    def _model(self, dropout: float) -> SequenceModel:
        shape = self.shape
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            options = ModelOptions(
                model=shape.model, dim=shape.dim, max_length=shape.time, dropout=dropout
            )
            return build_model(options, shape.items)


@dataclass(frozen=True)
class StepCase(_ModelCase):
    """A step of training.

    Attributes:
        shape: model and batch.
        dtype_name: of its products; weights are float32.
    """

    operation = "train_step"

    def facts(self) -> dict[str, Any]:
        """What is known before measuring."""
        return {
            "operation": self.operation,
            "case": self.name,
            "shape": dict(self.shape._asdict()),
            "dtype": self.dtype_name,
            "backward": True,
            "counts": {"tokens": self._batch().tokens},
        }

    def errors(self, device: torch.device) -> Errors:
        """Of loss and gradients; see ``GpuCase.errors``."""
        with math_of(self.dtype_name):
            with _plain_torch():
                exact = self._gradients(device, exactly=True)
                theirs = self._gradients(device)
            try:
                ours = self._gradients(device)
            except Exception as failure:
                raise OursFailed from failure
        found: Errors = {}
        for name, truth in exact.items():
            error, mine = (_rms(one[name].double() - truth) for one in (theirs, ours))
            loose = 5.0 if name != "loss" else 2.0
            allowed = max(loose * error, rounding(self.dtype_name) * _rms(truth))
            found[name] = {"ours": mine, "torch": error, "allowed": allowed}
        return found

    def calls(self, device: torch.device, errors: Errors, without: Sequence[str]) -> Calls:
        """Steps by ours and by plain torch, each with a model of its own."""
        found = Calls({OURS: self._step(device)}, {})
        for _ in range(3):
            found.run[OURS]()
        if any(STANDARD.startswith(word) for word in without):
            found.missing[STANDARD] = "not wanted"
            return found
        try:
            run = _plainly(self._step(device))
            for _ in range(3):
                run()
            found.run[STANDARD] = run
        except Exception as error:
            found.missing[STANDARD] = why(error)
        return found

    @property
    def _autocast(self) -> torch.dtype | None:
        return None if DTYPES[self.dtype_name] == torch.float32 else DTYPES[self.dtype_name]

    def _options(self) -> TrainingOptions:
        return TrainingOptions(precision="float32" if self._autocast is None else self.dtype_name)

    def _inputs(self, device: torch.device) -> tuple[JaggedBatch[Tensor], Tensor]:
        batch = self._batch()
        targets = np.random.default_rng(1).integers(0, self.shape.items, batch.tokens)
        return batch.to_torch(device), torch.from_numpy(targets).to(device)

    def _gradients(self, device: torch.device, exactly: bool = False) -> dict[str, Tensor]:
        model = self._model(0.0).to(device).train()
        if exactly:
            model.double()
        batch, targets = self._inputs(device)
        options = TrainingOptions() if exactly else self._options()
        objective = make_objective(options, np.ones(self.shape.items, dtype=np.int64))
        with Precision(options.precision, device).context():
            loss = objective(model, model(batch), targets, None, np.random.default_rng(0))
        parameters = dict(model.named_parameters())
        gradients = torch.autograd.grad(loss, list(parameters.values()))
        return {"loss": loss.detach(), **dict(zip(parameters, gradients, strict=True))}

    def _step(self, device: torch.device) -> Callable[[], Any]:
        options = self._options()
        model = self._model(_DROPOUT).to(device).train()
        optimizer = make_optimizer(model, options)
        for group in optimizer.param_groups:
            # so that the step can be recorded into a graph
            group["capturable"] = device.type == "cuda"
        precision = Precision(options.precision, device)
        objective = make_objective(options, np.ones(self.shape.items, dtype=np.int64))
        batch, targets = self._inputs(device)
        generator = np.random.default_rng(0)

        def step() -> Tensor:
            with precision.context():
                loss = objective(model, model(batch), targets, None, generator)
            precision.backward(loss)
            precision.step(optimizer, model.parameters(), 0.0)
            optimizer.zero_grad(set_to_none=True)
            return loss.detach()

        return step


@dataclass(frozen=True)
class RecommendCase(_ModelCase):
    """A request of the engine.

    Attributes:
        shape: model and histories.
        dtype_name: ``"float32"``.
    """

    operation = "recommend"
    k = 100

    def facts(self) -> dict[str, Any]:
        """What is known before measuring."""
        return {
            "operation": self.operation,
            "case": self.name,
            "shape": dict(self.shape._asdict()),
            "dtype": self.dtype_name,
            "backward": False,
            "counts": {"users": self.shape.rows},
        }

    def errors(self, device: torch.device) -> Errors:
        """Of the scores, and of the exact scores of the items that were chosen."""
        model, batch = self._model(0.0).eval(), self._batch()
        k = min(self.k, self.shape.items)
        with _plain_torch(), torch.no_grad():
            plain = self._engine(model, device).recommend(*self._request(batch, k))
            exactly = model.double()
            last = torch.from_numpy(batch.offsets[1:] - 1)
            users = exactly(batch.to_torch(torch.device("cpu"))).index_select(0, last)
            exact = users @ exactly.output_table.T
            model.float()
        best = exact.topk(k).values
        try:
            ours = self._engine(model, device).recommend(*self._request(batch, k))
        except Exception as failure:
            raise OursFailed from failure
        largest = float(best.abs().max())
        found: Errors = {}
        for name in ("scores", "chosen"):
            mine, error = (_distance(name, given, exact, best) for given in (ours, plain))
            allowed = max(2.0 * error, rounding(self.dtype_name) * largest)
            found[name] = {"ours": mine, "torch": error, "allowed": allowed}
        return found

    def calls(self, device: torch.device, errors: Errors, without: Sequence[str]) -> Calls:
        """Requests of ours, of plain torch on the GPU, and of the native engine on the CPU."""
        model, batch = self._model(0.0).eval(), self._batch()
        request = self._request(batch, min(self.k, self.shape.items))
        engines: dict[str, Callable[[], Any]] = {OURS: lambda: self._engine(model, device)}
        engines[STANDARD] = lambda: self._engine(model, device)
        threads = native.get_num_threads()
        on_cpu = f"native engine, {threads} thread{'s' if threads > 1 else ''} of the CPU"
        engines[on_cpu] = lambda: build_encoder(model.config(), _arrays(model)).engine
        found = Calls({}, {}, frozenset(engines))
        for name, make in engines.items():
            if name != OURS and any(name.startswith(word) for word in without):
                found.missing[name] = "not wanted"
                continue
            made = _plainly(make)() if name == STANDARD else make()

            def ask(engine: Any = made) -> Any:
                return engine.recommend(*request)

            run = _plainly(ask) if name == STANDARD else ask
            for _ in range(3):
                run()
            found.run[name] = run
        return found

    def _request(self, batch: JaggedBatch[Any], k: int) -> tuple[Any, Any, None, None, None, int]:
        return batch.values.astype(np.int32), batch.offsets, None, None, None, k

    def _engine(self, model: SequenceModel, device: torch.device) -> DeviceEngine:
        return DeviceEngine(model.config(), _arrays(model), str(device))


def _arrays(model: SequenceModel) -> dict[str, Any]:
    return {name: tensor.detach().numpy() for name, tensor in model.state_dict().items()}


def _distance(name: str, given: Any, exact: Tensor, best: Tensor) -> float:
    """How far a ranking's scores are from exact ones, or the items chosen from the best."""
    scores, ids = (torch.from_numpy(array) for array in given)
    if ids.shape != best.shape or bool((ids < 0).any() | (ids >= exact.shape[1]).any()):
        return float("inf")
    if bool((ids.sort(1).values.diff(dim=1) == 0).any()):
        return float("inf")
    chosen = exact.gather(1, ids)
    difference = scores.double() - chosen if name == "scores" else best - chosen
    error = float(difference.abs().max())
    return error if error == error else float("inf")


def _rms(values: Tensor) -> float:
    found = float(values.square().mean().sqrt()) if values.numel() else 0.0
    return found if found == found else float("inf")


def model_cases(
    operations: Sequence[str] = (), match: str = "", dtypes: Sequence[str] = ()
) -> list[Any]:
    """The steps of training, then the requests.

    Args:
        operations: ``"train_step"`` and ``"recommend"``; both where none is named.
        match: text that the name of a case has to have in it.
        dtypes: keys of ``gpu_layouts.DTYPES``.
    """
    found: list[Any] = [
        StepCase(shape, dtype) for shape in shapes.TRAIN_STEP for dtype in _STEP_DTYPES
    ]
    found += [RecommendCase(shape, "float32") for shape in shapes.RECOMMEND]
    return [
        case
        for case in found
        if (not operations or case.operation in operations)
        and (not dtypes or case.dtype_name in dtypes)
        and match in case.name
    ]
