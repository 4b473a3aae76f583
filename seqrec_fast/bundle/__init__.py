# SPDX-License-Identifier: Apache-2.0
"""The artefact on disk: everything that serving needs in one folder, without pickle.

``manifest.json`` names every other file with its size and SHA-256; weights, vocabulary and item
table are safetensors files, the rest is JSON (``docs/bundle.md`` describes each). Reading trusts
nothing: a missing, truncated, altered, newer or hostile bundle is refused with the reason before
anything big is allocated. Writing is atomic.
"""

from __future__ import annotations

from seqrec_fast.bundle.content import Bundle
from seqrec_fast.bundle.folder import stamp
from seqrec_fast.bundle.reader import info, load
from seqrec_fast.bundle.writer import save

__all__ = ["Bundle", "info", "load", "save", "stamp"]
