# SPDX-License-Identifier: Apache-2.0
"""Training of user encoders: objectives, optimisers, early stopping, checkpoints."""

from __future__ import annotations

try:
    import torch as _torch  # noqa: F401  (only to say clearly that it is missing)
except ImportError as _error:
    from seqrec_fast.errors import MissingExtraError

    raise MissingExtraError(
        "torch is not installed, training needs it; pip install 'seqrec-fast[train]'"
    ) from _error

from seqrec_fast.training.checkpoint import Checkpoint
from seqrec_fast.training.fit import fit
from seqrec_fast.training.losses import NegativeSampler, bce_with_negatives
from seqrec_fast.training.options import ModelOptions, TrainingOptions
from seqrec_fast.training.run import Run

__all__ = [
    "Checkpoint",
    "ModelOptions",
    "NegativeSampler",
    "Run",
    "TrainingOptions",
    "bce_with_negatives",
    "fit",
]
