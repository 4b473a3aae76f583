# SPDX-License-Identifier: Apache-2.0
"""The worked examples of the documentation: Ray Serve for real, Triton's model by a stand-in."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from seqrec_fast.engine import Recommender
from tests.serving.conftest import ROOT

EXAMPLES = ROOT / "docs" / "examples"
TRITON = EXAMPLES / "triton" / "recommend"


# ------------------------------------------------------------------------------- Ray Serve


def test_ray_serve_answers_over_http_and_by_handle(folder: Path, recommender: Recommender) -> None:
    for needed in ("httpx", "ray", "grpc"):  # grpc comes with ray[serve], not with ray
        if importlib.util.find_spec(needed) is None:
            pytest.skip(f"Ray Serve is not installed: there is no {needed}")
    # In a process of its own: Ray changes signal handlers, logging and the environment.
    code = f"""
        import json, socket, sys
        import httpx, ray
        from ray import serve
        from ray_serve import build

        ray.init(num_cpus=2, object_store_memory=80 * 2**20, include_dashboard=False,
                 log_to_driver=False, configure_logging=False)
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        serve.start(http_options={{"host": "127.0.0.1", "port": port}})
        handle = serve.run(build({{"bundle": {str(folder)!r}}}))
        url = f"http://127.0.0.1:{{port}}/"
        bodies = [{{"history": ["i1", "i2"], "k": 5}}, {{"history": ["zz"]}}, {{"histroy": []}}]
        answers = [httpx.post(url, json=body, timeout=30) for body in bodies]
        by_handle = handle.recommend.remote(["i1", "i2"], k=5).result(timeout_s=30)
        print(json.dumps([[a.status_code, a.json()] for a in answers] + [[200, by_handle]]))
        serve.shutdown()
        ray.shutdown()
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
        env={
            **os.environ,
            "PYTHONPATH": f"{ROOT}{os.pathsep}{EXAMPLES}",
            "RAY_USAGE_STATS_ENABLED": "0",
        },
    )
    assert done.returncode == 0, done.stderr[-3000:]
    # Ray itself writes to standard output as well.
    (printed,) = [line for line in done.stdout.splitlines() if line.startswith("[[")]
    good, popular, wrong, by_handle = json.loads(printed)
    expected, fallback = recommender.recommend([["i1", "i2"], ["zz"]], k=10)
    for status, answer in (good, by_handle):
        assert status == 200
        assert answer["items"] == expected.items[:5].tolist()
        np.testing.assert_allclose(answer["scores"], expected.scores[:5], rtol=1e-5)
    assert popular[1]["items"] == fallback.items.tolist()
    assert popular[1]["fallback"] == "popularity"
    assert wrong[0] == 422


# ---------------------------------------------------------------------------------- Triton


class _Tensor:
    def __init__(self, name: str, values: Any) -> None:
        self.name, self._values = name, values

    def as_numpy(self) -> Any:
        return self._values


class _Response:
    def __init__(self, output_tensors: list[_Tensor], error: Any = None) -> None:
        self.error = error
        self.outputs = {tensor.name: tensor.as_numpy() for tensor in output_tensors}


def stand_in() -> ModuleType:
    """As much of ``triton_python_backend_utils`` as a model needs."""
    module: Any = ModuleType("triton_python_backend_utils")
    module.Tensor, module.InferenceResponse = _Tensor, _Response
    module.TritonError = str
    module.get_input_tensor_by_name = lambda request, name: request.get(name)
    return module  # type: ignore[no-any-return]


def request(histories: list[list[str]], k: int | None = None) -> dict[str, _Tensor]:
    """A request as Triton makes one: rows of equal length, bytes, ``[rows, 1]`` of K."""
    longest = max(map(len, histories))
    rows = [[one.encode() for one in row] + [b""] * (longest - len(row)) for row in histories]
    ids = np.array(rows, dtype=np.object_).reshape(len(rows), longest)
    tensors = {"HISTORY": _Tensor("HISTORY", ids)}
    if k is not None:
        tensors["K"] = _Tensor("K", np.full((len(rows), 1), k, np.int32))
    return tensors


@pytest.fixture
def triton(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", stand_in())
    spec = importlib.util.spec_from_file_location("triton_model", TRITON / "1" / "model.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    model = module.TritonPythonModel()
    values = {"bundle": str(folder), "threads": "1"}
    parameters = {key: {"string_value": value} for key, value in values.items()}
    model.initialize({"model_config": json.dumps({"parameters": parameters})})
    yield model
    model.finalize()


def test_triton_model_answers_a_batch_of_ragged_requests(
    triton: Any, recommender: Recommender
) -> None:
    asked = [
        (request([["i1", "i2", "i3"]], 4), [["i1", "i2", "i3"]], 4),
        (request([["i1"], ["i2", "zz", "i4"], []]), [["i1"], ["i2", "zz", "i4"], []], 10),
        (request([["i9"]], 4), [["i9"]], 4),
        (request([["i9"]], 500), [["i9"]], 500),
    ]
    responses = triton.execute([one for one, _, _ in asked])
    for response, (_, histories, k) in zip(responses, asked, strict=True):
        assert response.error is None
        items, scores = response.outputs["ITEMS"], response.outputs["SCORES"]
        assert items.shape == scores.shape == (len(histories), k)
        for row, expected in enumerate(recommender.recommend(histories, k=k)):
            count = len(expected)
            assert [one.decode() for one in items[row, :count]] == expected.items.tolist()
            np.testing.assert_allclose(scores[row, :count], expected.scores, rtol=1e-5, atol=1e-5)
            assert set(items[row, count:]) <= {b""}
            assert np.isneginf(scores[row, count:]).all()


def test_triton_model_refuses_one_request_and_answers_the_others(triton: Any) -> None:
    wrong = request([["i1"]], 0)
    garbled = {"HISTORY": _Tensor("HISTORY", np.array([[b"\xff"]], dtype=np.object_))}
    first, second, third = triton.execute([wrong, request([["i1"]]), garbled])
    assert "K: must be at least 1, found 0" in first.error
    assert second.error is None
    assert third.error is not None


def test_triton_configuration_names_what_the_model_reads_and_writes() -> None:
    config = (TRITON / "config.pbtxt").read_text(encoding="utf-8")
    source = (TRITON / "1" / "model.py").read_text(encoding="utf-8")
    assert re.search(r'^name: "recommend"$', config, re.MULTILINE)
    names = dict(re.findall(r'name: "([A-Z]+)"\s+data_type: (TYPE_\w+)', config))
    assert names == {
        "HISTORY": "TYPE_STRING", "K": "TYPE_INT32", "ITEMS": "TYPE_STRING", "SCORES": "TYPE_FP32"
    }  # fmt: skip
    for name in (*names, *re.findall(r'key: "(\w+)"', config)):
        assert f'"{name}"' in source
    assert config.count("{") == config.count("}")
    assert config.count("[") == config.count("]")
