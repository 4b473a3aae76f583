# SPDX-License-Identifier: Apache-2.0
"""``seqrec-fast evaluate``: full-ranking metrics of a bundle on a log, popularity beside them."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from seqrec_fast.cli.console import (
    check_threads,
    cutoffs,
    print_json,
    say,
    weight_forms,
    whole_number,
)
from seqrec_fast.cli.evaluate_index import open_index, ranks_through
from seqrec_fast.cli.figures import figures_table
from seqrec_fast.cli.log_options import add_log_options, clean, open_log, split_log, with_recorded
from seqrec_fast.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from seqrec_fast.bundle import Bundle
    from seqrec_fast.data import Holdout
    from seqrec_fast.evaluation import Metrics

__all__ = ["EPILOG", "add_arguments", "run"]

EPILOG = """\
examples:
  seqrec-fast evaluate bundle events.csv --k 10
  seqrec-fast evaluate bundle events.csv --k 5,10,20 --json
  seqrec-fast evaluate bundle newer.parquet --split by-time --test 0.05
  seqrec-fast evaluate bundle events.csv --weights bfloat16,int8

Options of reading, cleaning and splitting that are not given are those that the bundle was trained
with, so that on the same log the figures are those of the training. Every item of the bundle that
was not removed is ranked for every user; items of the history are left out, ties count against the
model. Targets that the bundle does not know, or that were removed, count as misses; users
without any known event in their history get the most popular items, as recommend gives them. Both
are counted and reported.

Where the bundle has an index, the figures of the lists that it finds stand beside those of the
exact search, with its recall at each cut-off.

--weights measures what smaller weights would cost: the figures of each form stand beside those of
float32, and the NDCG that is lost is given for each cut-off.
"""

_ROWS = 2048  # users encoded at once: bounds the memory of the encoder


def add_arguments(parser: ArgumentParser) -> None:
    """Adds the options of the command."""
    parser.add_argument("bundle", metavar="BUNDLE", help="folder written by train")
    parser.add_argument("log", metavar="LOG", help="file, folder of parquet files, or pattern")
    parser.add_argument(
        "--k", type=cutoffs, default=(10,), metavar="N,...", help="cut-offs (default: 10)"
    )
    parser.add_argument(
        "--on", choices=("test", "validation"), default="test", help="(default: test)"
    )
    parser.add_argument(
        "--include-seen", action="store_true", help="rank the items of the history too"
    )
    parser.add_argument(
        "--weights",
        type=weight_forms,
        action="extend",
        metavar="FORM,...",
        help="float32, bfloat16 (all matrices), int8 (item vectors); may be repeated; the loss is "
        "told against float32 (default: float32)",
    )
    parser.add_argument(
        "--index", action="store_true", help="fail where the bundle has no index that can be used"
    )
    parser.add_argument("--threads", type=whole_number(1), metavar="N", help="(default: all cores)")
    parser.add_argument(
        "--device", default="cpu", metavar="NAME", help="users are encoded on: cpu, cuda or cuda:N"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead")
    add_log_options(parser)


@dataclass(frozen=True)
class _Task:
    """The held-out events in the item indices of the bundle.

    Attributes:
        known: histories and targets that the bundle knows; a row may be empty.
        target_known: bool, aligned with the targets of the log: what can be recommended.
        target_offsets: int64 ``[users + 1]``, of the targets of the log.
        removed_targets: targets that the bundle knows and does not recommend any more.
        unknown_events: events of the histories that are not in the bundle.
        empty: users without a known event in the history.
    """

    known: Holdout
    target_known: NDArray[np.bool_]
    target_offsets: NDArray[np.int64]
    removed_targets: int
    unknown_events: int
    empty: int


def run(args: Namespace) -> int:
    """Carries the command out and returns the exit code."""
    from seqrec_fast import bundle as bundles
    from seqrec_fast.engine.devices import checked_device

    threads = check_threads(args.threads)
    checked_device(args.device)  # before the log is read
    bundle = bundles.load(args.bundle)
    source = bundle.training.get("source")
    filled = with_recorded(args, source.get("options") if isinstance(source, dict) else None)
    split = split_log(args, clean(args, open_log(args, args.log, threads=threads)))

    from seqrec_fast.evaluation import describe_protocol

    task = _translate(split.test if args.on == "test" else split.validation, split.items, bundle)
    protocol = describe_protocol(split, refit=bool(bundle.training.get("refitted")))
    if args.on == "validation":
        protocol += ", validation events"
    forms = tuple(dict.fromkeys(("float32", *(args.weights or ()))))
    found_index: dict[str, Any] = {}
    figures = _figures(bundle, task, args, protocol, threads, forms, found_index)
    plain, popular = figures["float32"], figures["popularity"]
    losses = {form: _losses(plain, figures[form], args.k) for form in forms[1:]}
    index = _index_result(found_index, figures.get("index"))
    unknown_targets = int((~task.target_known).sum()) - task.removed_targets
    removed = 0 if bundle.removed is None else int(bundle.removed.sum())
    result: dict[str, Any] = {
        "bundle": str(args.bundle),
        "log": str(args.log),
        "model": bundle.config["model"],
        "interests": bundle.config.get("interests", 1),
        "protocol": plain.protocol,
        "users": plain.users,
        "items": len(bundle.items) - removed,
        "removed": {"items": removed, "targets": task.removed_targets},
        "metrics": plain.values,
        "weights": {
            form: {"metrics": figures[form].values, "ndcg_loss": loss}
            for form, loss in losses.items()
        },
        "index": index,
        "popularity": popular.values,
        "unknown": {
            "targets": unknown_targets,
            "history_events": task.unknown_events,
            "users_without_known_history": task.empty,
        },
        "options_from_bundle": filled,
    }
    if args.json:
        print_json(result)
        return 0
    if filled:
        chosen = ", ".join(f"{name.replace('_', '-')}={value}" for name, value in filled.items())
        say(f"as in training: {chosen}")
    if result["interests"] > 1:
        say(f"{result['interests']} interests a user: an item's score is the best of them")
    columns = {bundle.config["model"]: plain, **{form: figures[form] for form in losses}}
    if "index" in figures:
        columns["through the index"] = figures["index"]
    columns["popularity"] = popular
    say(figures_table({title: one.to_dict() for title, one in columns.items()}))
    if "recall" in found_index:
        told = ", ".join(f"{name} {value:.4f}" for name, value in found_index["recall"].items())
        say(f"index {found_index['kind']} against the exact search: {told}")
    elif "reason" in found_index:
        say(f"the index is not measured: {found_index['reason']}")
    for form, loss in losses.items():
        told = ", ".join(
            f"{name} {lost['absolute']:+.5f}"
            + ("" if lost["share"] is None else f" ({lost['share']:+.2%})")
            for name, lost in loss.items()
        )
        say(f"loss of {form} against float32: {told}")
    if removed:
        say(
            f"removed from the catalogue, not ranked: {removed:,} items, "
            f"{task.removed_targets:,} targets among them (counted as misses)"
        )
    if unknown_targets or task.unknown_events or task.empty:
        say(
            f"not in the bundle: {unknown_targets:,} targets (counted as misses), "
            f"{task.unknown_events:,} events of histories (ignored); "
            f"{task.empty:,} users without a known history (given the most popular items)"
        )
    return 0


def _translate(holdout: Holdout, items: Any, bundle: Bundle) -> _Task:
    """Item indices of the log become those of the bundle; unknown ones are taken out and counted.

    Raises:
        InputError: nothing was held out, or the bundle knows none of the targets.
    """
    import numpy as np

    from seqrec_fast.data import Holdout
    from seqrec_fast.jagged import JaggedBatch

    if not holdout.targets.tokens:
        raise InputError(
            "the log has no held-out events of this kind; give a longer log or another --split"
        )
    index = bundle.items.encode(items.decode(np.arange(len(items))))

    def keep(rows: Any, gone: NDArray[np.bool_] | None) -> tuple[Any, NDArray[np.bool_]]:
        values = index[rows.values]
        known = values >= 0
        if gone is not None:
            known &= ~gone[values]
        starts = np.zeros(len(values) + 1, dtype=np.int64)
        np.cumsum(known, out=starts[1:])
        return JaggedBatch(values[known], starts[rows.offsets]), known

    histories, history_known = keep(holdout.histories, None)
    targets, target_known = keep(holdout.targets, bundle.removed)
    removed = int((index[holdout.targets.values] >= 0).sum()) - int(target_known.sum())
    if removed and not target_known.any():
        raise InputError(
            f"all {removed:,} held-out items that the bundle knows were removed from it"
        )
    if not target_known.any():
        raise InputError(
            f"none of the {len(target_known):,} held-out items is in the bundle; this is a log "
            "of other items, or its ids are written in another way"
        )
    wanted = np.diff(holdout.targets.offsets) > 0
    return _Task(
        known=Holdout(users=holdout.users, histories=histories, targets=targets),
        target_known=target_known,
        target_offsets=holdout.targets.offsets,
        removed_targets=removed,
        unknown_events=int((~history_known).sum()),
        empty=int((wanted & (np.diff(histories.offsets) == 0)).sum()),
    )


def _index_result(facts: dict[str, Any], figures: Metrics | None) -> dict[str, Any] | None:
    """What ``--json`` prints of the index; ``None`` where there is none."""
    if not facts:
        return None
    return facts if figures is None else {"metrics": figures.values, **facts}


def _losses(
    plain: Metrics, rounded: Metrics, cuts: Sequence[int]
) -> dict[str, dict[str, float | None]]:
    """What is lost of each NDCG: the difference, and its share of the float32 figure."""
    found: dict[str, dict[str, float | None]] = {}
    for name in (f"NDCG@{k}" for k in cuts):
        lost = plain[name] - rounded[name]
        found[name] = {"absolute": lost, "share": lost / plain[name] if plain[name] else None}
    return found


def _figures(
    bundle: Bundle,
    task: _Task,
    args: Namespace,
    protocol: str,
    threads: int | None,
    forms: Sequence[str],
    found_index: dict[str, Any],
) -> dict[str, Metrics]:
    """Figures of the model in each form of weights, through the index, and of popularity, by name.

    ``found_index`` is filled with what was found out about the index.
    """
    import numpy as np

    from seqrec_fast.evaluation import (
        Metrics,
        evaluate,
        evaluate_lists,
        evaluate_popularity,
        metrics_from_ranks,
        rank_targets,
        ranks_in_lists,
    )

    known, items = task.known, len(bundle.items)
    options: dict[str, Any] = {
        "k": args.k,
        "exclude_seen": not args.include_seen,
        "blocked": bundle.removed,
        "protocol": protocol,
        "threads": threads,
    }
    seen = None if args.include_seen else known.histories
    common: dict[str, Any] = {
        "targets": known.targets,
        "seen": seen,
        "blocked": bundle.removed,
        "threads": threads,
    }
    partly_known = not task.target_known.all() or task.empty > 0
    users = int((np.diff(task.target_offsets) > 0).sum())

    def counted(found: Metrics, part: NDArray[np.int64]) -> Metrics:
        # A target that can't be ranked is behind every item: its user stays in the averages.
        ranks = np.full(len(task.target_known), items + 1, dtype=np.int64)
        ranks[task.target_known] = part
        values = metrics_from_ranks(ranks, task.target_offsets, args.k)
        return Metrics({**found.values, **values}, users, found.protocol)

    popularity = evaluate_popularity(known, bundle.popularity, **options)
    if partly_known:
        counts = np.unique(bundle.popularity, return_inverse=True)[1].reshape(-1).astype(np.float32)
        nothing = np.zeros((len(known.histories), 1), np.float32), np.zeros((items, 1), np.float32)
        popular = rank_targets(*nothing, counts, **common)
        popularity = counted(popularity, popular)
        without = np.repeat(np.diff(known.histories.offsets) == 0, np.diff(known.targets.offsets))
    found: dict[str, Metrics] = {}
    for form in forms:
        queries, vectors, bias = _vectors(bundle, known, form, args.device)
        figures = evaluate(queries, vectors, bias, known, popularity=bundle.popularity, **options)
        if partly_known:
            ranked = rank_targets(queries, vectors, bias, **common)
            figures = counted(figures, np.where(without, popular, ranked))
        found[form] = figures
        if form != "float32":
            continue
        ranker = open_index(bundle.index, vectors, bias, bundle.removed, wanted=args.index)
        if isinstance(ranker, str):
            found_index["reason"] = ranker
        elif ranker is not None:
            lists = ranks_through(
                ranker,
                queries,
                vectors,
                bias,
                known,
                args.k,
                blocked=bundle.removed,
                exclude_seen=not args.include_seen,
                threads=threads,
            )
            found_index.update(recall=lists.recall, **ranker.describe())
            figures = evaluate_lists(
                lists.scores,
                lists.ids,
                known,
                items=items,
                k=args.k,
                popularity=bundle.popularity,
                blocked=bundle.removed,
                protocol=f"{figures.protocol}, of the lists that the index found",
            )
            if partly_known:
                ranked = ranks_in_lists(lists.scores, lists.ids, known)
                figures = counted(figures, np.where(without, popular, ranked))
                figures.values.pop("MRR", None)
            found["index"] = figures
    return {**found, "popularity": popularity}


def _vectors(
    bundle: Bundle, known: Holdout, form: str, device: str
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32] | None]:
    """User embeddings (zeros without a known history), item vectors and biases in one form."""
    import numpy as np

    from seqrec_fast.engine.encoders import build_encoder
    from seqrec_fast.engine.precision import apply_weights, checked_weights

    weights = apply_weights(bundle.tensors, checked_weights(form))
    encoder = build_encoder(bundle.config, weights, device)
    queries = np.zeros((len(known.histories), *encoder.embedding_shape), dtype=np.float32)
    rows = np.flatnonzero(np.diff(known.histories.offsets))
    for begin in range(0, len(rows), _ROWS):
        part = rows[begin : begin + _ROWS]
        queries[part] = encoder.encode(known.histories.select(part))
    vectors = encoder.item_vectors
    assert isinstance(vectors, np.ndarray)  # apply_weights leaves no compact tables
    return queries, vectors, encoder.item_bias
