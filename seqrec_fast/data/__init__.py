# SPDX-License-Identifier: Apache-2.0
"""From an event log to sequences: read, clean, encode, split.

Every name below is imported when it is first used: serving takes the vocabulary and the item table
from here and pays for nothing else. DuckDB and pyarrow are imported where a log is read.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from seqrec_fast.data.items import ItemTable
    from seqrec_fast.data.log import Log, log_from_columns, read_log
    from seqrec_fast.data.preparation import prepare
    from seqrec_fast.data.prepared import Prepared
    from seqrec_fast.data.report import CleaningReport, CleaningStep
    from seqrec_fast.data.splits import Holdout, Split, by_ratio, by_time, leave_one_out
    from seqrec_fast.data.synthetic import synthetic_log, write_synthetic
    from seqrec_fast.data.vocabulary import UNKNOWN, Vocabulary

_PLACES = {
    "UNKNOWN": "vocabulary",
    "CleaningReport": "report",
    "CleaningStep": "report",
    "Holdout": "splits",
    "ItemTable": "items",
    "Log": "log",
    "Prepared": "prepared",
    "Split": "splits",
    "Vocabulary": "vocabulary",
    "by_ratio": "splits",
    "by_time": "splits",
    "leave_one_out": "splits",
    "log_from_columns": "log",
    "prepare": "preparation",
    "read_log": "log",
    "synthetic_log": "synthetic",
    "write_synthetic": "synthetic",
}

__all__ = [
    "UNKNOWN",
    "CleaningReport",
    "CleaningStep",
    "Holdout",
    "ItemTable",
    "Log",
    "Prepared",
    "Split",
    "Vocabulary",
    "by_ratio",
    "by_time",
    "leave_one_out",
    "log_from_columns",
    "prepare",
    "read_log",
    "synthetic_log",
    "write_synthetic",
]


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'seqrec_fast.data' has no attribute {name!r}")
    value = getattr(import_module(f"seqrec_fast.data.{_PLACES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
