# SPDX-License-Identifier: Apache-2.0
"""The user embeddings that ``seqrec-fast index`` measures on: of a log, or else made up."""

from __future__ import annotations

from argparse import Namespace
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from seqrec_fast.cli.log_options import clean, open_log, split_log, with_recorded
from seqrec_fast.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from seqrec_fast.bundle import Bundle
    from seqrec_fast.engine.encoders import Encoder
    from seqrec_fast.jagged import JaggedBatch

__all__ = ["Queries", "float_vectors", "of_log", "sampled"]

_LONGEST = 50  # of a made-up history
_NEIGHBOURS = 50
_STRAY = 0.2  # share of a made-up history that has nothing to do with the rest


class Queries(NamedTuple):
    """float32 ``[users, dim]``, and in words whose they are."""

    embeddings: NDArray[np.float32]
    source: str


def of_log(
    args: Namespace, bundle: Bundle, encoder: Encoder, most: int, threads: int | None
) -> Queries:
    """Embeddings of users of a log, each after the history before their held-out events.

    Args:
        args: ``log`` and the options of :func:`seqrec_fast.cli.log_options.add_log_options`.
        bundle: the model; its recorded options stand for those not given.
        encoder: that of the bundle.
        most: users at most, drawn at random.
        threads: cores to use.

    Raises:
        InputError: the log can't be read, or fewer than two users have a history the bundle knows.
    """
    import numpy as np

    from seqrec_fast.jagged import JaggedBatch

    source = bundle.training.get("source")
    with_recorded(args, source.get("options") if isinstance(source, dict) else None)
    split = split_log(args, clean(args, open_log(args, args.log, threads=threads)))
    rows = split.test.histories
    known = bundle.items.encode(split.items.decode(np.arange(len(split.items))))[rows.values]
    starts = np.zeros(len(known) + 1, dtype=np.int64)
    np.cumsum(known >= 0, out=starts[1:])
    offsets = starts[rows.offsets]
    histories = JaggedBatch(known[known >= 0], offsets)
    there = np.flatnonzero(offsets[1:] > offsets[:-1])
    if len(there) < 2:
        raise InputError(
            f"--log: {len(there)} users of it have a history of items that the bundle knows, and 2 "
            f"are the least to measure with; this is a log of other items, or its ids are "
            f"written in another way"
        )
    chosen = np.sort(np.random.default_rng(args.seed).permutation(there)[:most])
    return Queries(
        _encoded(encoder, histories.select(chosen), threads),
        f"{len(chosen):,} users of {args.log}, before their held-out events",
    )


def sampled(bundle: Bundle, encoder: Encoder, most: int, seed: int, threads: int | None) -> Queries:
    """Embeddings of made-up histories: neighbours of an item drawn by popularity, and strays.

    Args:
        bundle: the model.
        encoder: that of the bundle.
        most: how many.
        seed: of the draw.
        threads: cores to use.
    """
    import numpy as np

    from seqrec_fast.jagged import JaggedBatch
    from seqrec_fast.native import score_topk

    rng = np.random.default_rng(seed)
    counts = bundle.popularity + 1.0
    cumulated = np.cumsum(counts / counts.sum())

    def popular(shape: Any) -> NDArray[np.int64]:
        places = np.searchsorted(cumulated, rng.random(shape), side="right")
        found: NDArray[np.int64] = np.minimum(places, len(counts) - 1)
        return found

    anchors = popular(most)
    vectors = float_vectors(encoder)
    lengths = np.sqrt(np.einsum("nd,nd->n", vectors, vectors))
    unit = vectors / np.where(lengths > 0, lengths, 1)[:, None]
    near = score_topk(unit[anchors], unit, min(_NEIGHBOURS, len(unit)), threads=threads)[1]
    longest = max(1, min(_LONGEST, int(bundle.config.get("max_length", _LONGEST))))
    events = rng.integers(1, longest + 1, most)
    users = np.repeat(np.arange(most), events)
    drawn = near[users, rng.integers(0, near.shape[1], len(users))]
    stray = rng.random(len(users)) < _STRAY
    drawn[stray] = popular(int(stray.sum()))
    histories = JaggedBatch.from_lengths(drawn.astype(np.int32), events)
    return Queries(
        _encoded(encoder, histories, threads),
        f"{most:,} made-up histories (neighbours of items drawn by popularity): no log was given, "
        f"so the recall for real users may differ",
    )


def _encoded(
    encoder: Encoder, histories: JaggedBatch[Any], threads: int | None
) -> NDArray[np.float32]:
    return encoder.encode(histories, threads=threads)


def float_vectors(encoder: Encoder) -> NDArray[np.float32]:
    """The item vectors of an encoder that was made from float32 weights."""
    return cast("NDArray[np.float32]", encoder.item_vectors)
