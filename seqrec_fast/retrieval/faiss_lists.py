# SPDX-License-Identifier: Apache-2.0
"""What faiss' inverted lists have in common, on the CPU and on a GPU."""

from __future__ import annotations

from typing import Any, ClassVar

from seqrec_fast.retrieval.faiss_index import FaissIndex

__all__ = ["ListsIndex", "QuantisedListsIndex"]


class ListsIndex(FaissIndex):
    """Lists of items by their nearest centroid, some of which a search looks into."""

    _searched: ClassVar[tuple[str, ...]] = ("nprobe",)

    def _smallest(self, items: int) -> int:
        return int(self._options.lists(items))

    def _follows_size(self) -> bool:
        return self._options.nlist is None

    def _probes(self, lists: int) -> int:
        """How many lists a search looks into."""
        return int(self._options.probes(lists))

    def _facts(self) -> dict[str, Any]:
        lists = int(self._structure.nlist)
        return {"nlist": lists, "nprobe": self._probes(lists)}

    def _code_bytes(self) -> int:
        """Bytes of an item in its list, without its id."""
        return 4 * self.dim

    def _structure_bytes(self) -> int:
        made = self._structure
        return int(made.ntotal * (self._code_bytes() + 8) + made.nlist * self.dim * 4)


class QuantisedListsIndex(ListsIndex):
    """The same with vectors of a few bytes, product quantised; the best are ranked again."""

    def _check_options(self) -> None:
        self._options.parts(self.dim)

    def _smallest(self, items: int) -> int:
        return max(super()._smallest(items), int(2**self._options.nbits))

    def _refine(self) -> int:
        return int(self._options.refine)

    def _facts(self) -> dict[str, Any]:
        return {**super()._facts(), "m": self._options.parts(self.dim)}

    def _code_bytes(self) -> int:
        return -(-int(self._options.parts(self.dim) * self._options.nbits) // 8)

    def _structure_bytes(self) -> int:
        return super()._structure_bytes() + int(self.dim * 2**self._options.nbits * 4)
