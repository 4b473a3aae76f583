# SPDX-License-Identifier: Apache-2.0
"""``seqrec-fast train``: reads and cleans a log, trains a model on it, writes a bundle."""

from __future__ import annotations

import os
import shutil
import sys
from argparse import ArgumentParser, Namespace
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from seqrec_fast.cli.console import check_output, check_threads, print_json, say
from seqrec_fast.cli.figures import figures_table
from seqrec_fast.cli.log_options import (
    add_log_options,
    clean,
    given_options,
    open_log,
    split_log,
)
from seqrec_fast.cli.model_options import add_dataclass_options, dataclass_values
from seqrec_fast.errors import InputError

if TYPE_CHECKING:
    from seqrec_fast.data import Split
    from seqrec_fast.training import Run

__all__ = ["EPILOG", "add_arguments", "run"]

EPILOG = """\
examples:
  seqrec-fast train events.csv --out bundle
  seqrec-fast train ratings.inter --items movies.item --min-rating 4 --out bundle
  seqrec-fast train clicks.parquet --user session_id --item sid --time ts \\
      --event type --event-weights view=1,cart=3,purchase=5 --split by-time --out bundle
  seqrec-fast train sequences.txt --model gru --hidden 128 --loss sampled_softmax --out bundle
  seqrec-fast train sequences.txt --refit --json --out bundle > result.json

Training stops early on validation NDCG@10. Each epoch leaves a checkpoint (OUT.checkpoint unless
--checkpoint names another place), which is removed once the bundle is written; --resume goes on
from it and gives the same result as a run that was never stopped. Ctrl-C writes the best model so
far (in the first epoch the model of that moment, unless OUT holds a bundle) and exits with code
130.
"""

_OWN = ("model",)


def add_arguments(parser: ArgumentParser) -> None:
    """Adds the options of the command; the hyper-parameters come from the library's dataclasses."""
    from seqrec_fast.training.options import ModelOptions, TrainingOptions

    parser.add_argument("log", metavar="LOG", help="file, folder of parquet files, or pattern")
    parser.add_argument("--out", required=True, metavar="BUNDLE", help="folder to write")
    kinds = next(field for field in fields(ModelOptions) if field.name == "model").metadata
    parser.add_argument(
        "--model", choices=kinds["choices"], default="sasrec", help="(default: sasrec)"
    )
    parser.add_argument(
        "--refit",
        action="store_true",
        help="train again with the validation events for the epochs that validation chose",
    )
    parser.add_argument("--checkpoint", metavar="FOLDER", help="(default: BUNDLE.checkpoint)")
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead")
    add_log_options(parser)
    add_dataclass_options(parser, ModelOptions, "model", skip=_OWN)
    add_dataclass_options(parser, TrainingOptions, "training")


def run(args: Namespace) -> int:
    """Carries the command out and returns the exit code."""
    from seqrec_fast.training.fit import training_device
    from seqrec_fast.training.options import ModelOptions, TrainingOptions, split_options

    options = dataclass_values(args, ModelOptions) | dataclass_values(args, TrainingOptions)
    # wrong values, and a device that is not there, are told before anything is read
    _, training_options = split_options(options)
    training_device(training_options)
    threads = check_threads(options.get("threads"))
    out = _checked_out(args.out)
    checkpoint = _checked_checkpoint(args.checkpoint, out, args.resume)

    log = open_log(args, args.log, threads=threads)
    prepared = clean(args, log)
    split = split_log(args, prepared)
    say(f"{split.report}\n\n{describe_split(split)}\n", quiet=args.json)

    from seqrec_fast import training

    try:
        result = training.fit(
            split, refit=args.refit, checkpoint=checkpoint, resume=args.resume, **options
        )
    except KeyboardInterrupt:
        print(_interrupted(checkpoint, None), file=sys.stderr)
        return 130
    if result.interrupted and not result.history and out.is_dir() and any(out.iterdir()):
        print(f"seqrec-fast: interrupted, {out} keeps the bundle that it held", file=sys.stderr)
        return 130
    save(result, out, {"log": str(args.log), "options": given_options(args)})
    if not result.interrupted:
        shutil.rmtree(checkpoint, ignore_errors=True)
    if args.json:
        print_json(summary(result, out))
    else:
        say(describe_run(result, out))
    if result.interrupted:
        print(_interrupted(checkpoint, out), file=sys.stderr)
        return 130
    return 0


def save(result: Run, out: Path, source: dict[str, Any]) -> None:
    """Writes the bundle; what was read and how is recorded, for ``evaluate`` to repeat."""
    from seqrec_fast import bundle as bundles

    content = result.bundle()
    content.training["source"] = source
    bundles.save(content, out)


def summary(result: Run, out: Path) -> dict[str, Any]:
    """What ``--json`` prints."""
    return {
        "bundle": os.fspath(out),
        "model": result.model.config(),
        "metrics": result.metrics,
        "best_epoch": result.best_epoch,
        "epochs": len([r for r in result.history if r["phase"] == "select"]),
        "refitted": result.refitted,
        "interrupted": result.interrupted,
        "seconds": result.seconds,
        "history": result.history,
        "cleaning": result.split.report.to_dict(),
    }


def describe_split(split: Split) -> str:
    """A split in one line, and its notes."""
    lines = [
        f"split {split.protocol}: {split.train.tokens:,} events to train on, "
        f"{split.validation.targets.tokens:,} held out for validation, "
        f"{split.test.targets.tokens:,} for the test; {len(split.items):,} items"
    ]
    return "\n".join([*lines, *(f"note: {note}" for note in split.notes)])


def describe_run(result: Run, out: Path) -> str:
    """The figures of a run as a table, and where the bundle is."""
    columns = {"validation": "validation", "test": "test"}
    if result.refitted:
        columns["test_refit"] = "test, refit"
    columns["popularity"] = "popularity"
    shown = {title: result.metrics[key] for key, title in columns.items() if key in result.metrics}
    return "\n".join(
        [
            "",
            figures_table(shown, cutoff=10),
            "",
            _describe_epochs(result) + _describe_interests(result.model.options.interests),
            f"bundle {out} (other cut-offs: metrics.json, training curve: curve.png)",
        ]
    )


def _describe_epochs(result: Run) -> str:
    if not result.history:
        return "stopped before the first epoch was finished"
    last = result.history[-1]["epoch"]
    if result.refitted:
        return f"refit for {last} epochs, as validation chose"
    return f"best epoch {result.best_epoch} of {last}"


def _describe_interests(interests: int) -> str:
    return f"; {interests} interests a user" if interests > 1 else ""


def _checked_out(path: str) -> Path:
    """The place of the bundle, checked before hours of training instead of after them."""
    from seqrec_fast import bundle as bundles

    out = check_output(path, "--out", marker="manifest.json")
    if out.is_dir() and any(out.iterdir()):
        known = {"manifest.json", *bundles.info(out)["files"]}
        foreign = sorted({entry.name for entry in out.iterdir()} - known)
        if foreign:
            raise InputError(
                f"--out: the bundle {out} also holds {foreign[0]!r}, which would be lost; "
                "move it away or choose another name"
            )
    return out


def _checked_checkpoint(given: str | None, out: Path, resume: bool) -> Path:
    path = out.with_name(f"{out.name}.checkpoint") if given is None else Path(given)
    place = check_output(path, "--checkpoint", marker="state.json")
    if place == out or out in place.parents or place in out.parents:
        raise InputError(
            f"--checkpoint: {place} and the bundle {out} would overwrite one another; give a "
            "folder beside the bundle"
        )
    if resume and not place.is_dir():
        raise InputError(f"--resume: there is no checkpoint {place}; start without --resume")
    return place


def _interrupted(checkpoint: Path, out: Path | None) -> str:
    left = "no bundle was written" if out is None else f"{out} holds the best model so far"
    go_on = "; --resume goes on from here" if checkpoint.is_dir() else ""
    return f"seqrec-fast: interrupted, {left}{go_on}"
