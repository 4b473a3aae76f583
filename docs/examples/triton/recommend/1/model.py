# SPDX-License-Identifier: Apache-2.0
"""A bundle under NVIDIA Triton's Python backend.

Triton hands over the requests of one dynamic batch as a list. Those that want as many items share
one native call, ragged as they are; a request that cannot be answered harms no other.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from seqrec_fast import InputError, Recommender

DEFAULT_K = 10


class TritonPythonModel:
    """What Triton looks for in this file."""

    def initialize(self, args: dict[str, str]) -> None:
        """Loads the bundle that config.pbtxt names."""
        parameters = json.loads(args["model_config"])["parameters"]
        bundle = parameters["bundle"]["string_value"]
        threads = int(parameters["threads"]["string_value"])
        self._recommender = Recommender.load(bundle, threads=threads)

    def execute(self, requests: list[Any]) -> list[Any]:
        """One response a request, in their order."""
        responses: list[Any] = [None] * len(requests)
        groups: dict[int, list[tuple[int, list[list[str]]]]] = {}
        for number, request in enumerate(requests):
            try:
                histories, k = _read(request)
                groups.setdefault(k, []).append((number, histories))
            except (ValueError, UnicodeDecodeError) as error:
                responses[number] = _refusal(error)
        for k, group in groups.items():
            rows = [history for _, histories in group for history in histories]
            try:
                found = self._recommender.recommend(rows, k=k)
            except InputError as error:
                for number, _ in group:
                    responses[number] = _refusal(error)
                continue
            at = 0
            for number, histories in group:
                responses[number] = _response(found[at : at + len(histories)], k)
                at += len(histories)
        return responses

    def finalize(self) -> None:
        """Lets go of the bundle."""
        del self._recommender


def _read(request: Any) -> tuple[list[list[str]], int]:
    """Histories ``[rows, any]`` without the empty texts that fill them up, and how many items."""
    ids = pb_utils.get_input_tensor_by_name(request, "HISTORY").as_numpy()
    histories = [[raw.decode("utf-8") for raw in row if raw] for row in ids.tolist()]
    wanted = pb_utils.get_input_tensor_by_name(request, "K")
    k = DEFAULT_K if wanted is None else int(wanted.as_numpy().reshape(-1)[0])
    if k < 1:
        raise ValueError(f"K: must be at least 1, found {k}")
    return histories, k


def _response(found: list[Any], k: int) -> Any:
    items = np.full((len(found), k), b"", dtype=np.object_)
    scores = np.full((len(found), k), -np.inf, dtype=np.float32)
    for row, answer in enumerate(found):
        names = [str(item).encode("utf-8") for item in answer.items.tolist()]
        items[row, : len(names)] = names
        scores[row, : len(names)] = answer.scores
    return pb_utils.InferenceResponse(
        output_tensors=[pb_utils.Tensor("ITEMS", items), pb_utils.Tensor("SCORES", scores)]
    )


def _refusal(error: Exception) -> Any:
    return pb_utils.InferenceResponse(output_tensors=[], error=pb_utils.TritonError(str(error)))
