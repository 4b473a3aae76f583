# SPDX-License-Identifier: Apache-2.0
"""User encoders on jagged batches."""

from __future__ import annotations

from typing import Any

from seqrec_fast.errors import InputError
from seqrec_fast.models.base import SequenceModel
from seqrec_fast.models.options import MODELS, ModelOptions
from seqrec_fast.models.recurrent import RecurrentModel
from seqrec_fast.models.sasrec import SASRec

__all__ = [
    "MODELS",
    "ModelOptions",
    "RecurrentModel",
    "SASRec",
    "SequenceModel",
    "build_model",
    "model_from_config",
]


def build_model(options: ModelOptions, num_items: int) -> SequenceModel:
    """A fresh, randomly initialised model (torch's global generator draws the weights)."""
    kind = SASRec if options.model == "sasrec" else RecurrentModel
    return kind(options, num_items)


def model_from_config(config: dict[str, Any]) -> SequenceModel:
    """A model of the shape that a bundle's ``model.json`` describes, weights not loaded.

    Raises:
        InputError: the configuration is not complete or out of range.
    """
    num_items = config.get("num_items")
    if not isinstance(num_items, int) or isinstance(num_items, bool):
        raise InputError(f"model.json: num_items must be a whole number, found {num_items!r}")
    return build_model(ModelOptions.from_config(config), num_items)
