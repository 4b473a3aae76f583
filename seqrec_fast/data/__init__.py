# SPDX-License-Identifier: Apache-2.0
"""From an event log to sequences: read, clean, encode, split.

Importing this module loads numpy alone; DuckDB and pyarrow are imported where a log is read.
"""

from __future__ import annotations

from seqrec_fast.data.items import ItemTable
from seqrec_fast.data.log import Log, log_from_columns, read_log
from seqrec_fast.data.prepare import prepare
from seqrec_fast.data.prepared import Prepared
from seqrec_fast.data.report import CleaningReport, CleaningStep
from seqrec_fast.data.splits import Holdout, Split, by_ratio, by_time, leave_one_out
from seqrec_fast.data.synthetic import synthetic_log, write_synthetic
from seqrec_fast.data.vocabulary import UNKNOWN, Vocabulary

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
