# SPDX-License-Identifier: Apache-2.0
"""Sequential recommendation that is fast: from a log of user behaviour to recommendations.

``import seqrec_fast`` loads numpy and nothing heavier; every public name below is imported when it
is first used, so that serving never pays for (or needs) the training stack.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from seqrec_fast.errors import (
    BundleError,
    InputError,
    MissingExtraError,
    SeqrecError,
    TrainingError,
)
from seqrec_fast.jagged import JaggedBatch

if TYPE_CHECKING:
    from seqrec_fast import (
        batch,
        bundle,
        data,
        engine,
        evaluation,
        models,
        nn,
        ops,
        retrieval,
        serving,
        training,
    )
    from seqrec_fast.engine import Recommendation, Recommender
    from seqrec_fast.native import (
        build_info,
        get_num_threads,
        set_num_threads,
    )

__version__ = "0.1.0"

_MODULES = (
    "batch",
    "bundle",
    "data",
    "engine",
    "evaluation",
    "models",
    "nn",
    "ops",
    "retrieval",
    "serving",
    "training",
)
_NAMES = {
    "Recommendation": "seqrec_fast.engine",
    "Recommender": "seqrec_fast.engine",
    "build_info": "seqrec_fast.native",
    "get_num_threads": "seqrec_fast.native",
    "set_num_threads": "seqrec_fast.native",
}

__all__ = [
    "BundleError",
    "InputError",
    "JaggedBatch",
    "MissingExtraError",
    "Recommendation",
    "Recommender",
    "SeqrecError",
    "TrainingError",
    "__version__",
    "batch",
    "build_info",
    "bundle",
    "data",
    "engine",
    "evaluation",
    "get_num_threads",
    "models",
    "nn",
    "ops",
    "retrieval",
    "serving",
    "set_num_threads",
    "training",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return import_module(f"seqrec_fast.{name}")
    if name in _NAMES:
        value = getattr(import_module(_NAMES[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'seqrec_fast' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
