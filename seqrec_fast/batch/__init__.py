# SPDX-License-Identifier: Apache-2.0
"""Recommendations for whole files of users: histories in, top-k lists out, in bounded memory.

Importing this module loads numpy alone; pyarrow and DuckDB are imported where a file is read.
"""

from __future__ import annotations

from seqrec_fast.batch.run import BatchSummary, recommend_users

__all__ = ["BatchSummary", "recommend_users"]
