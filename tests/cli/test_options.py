# SPDX-License-Identifier: Apache-2.0
"""Options: made from dataclasses, parsed from text, remembered in a bundle."""

from __future__ import annotations

from argparse import ArgumentParser, ArgumentTypeError, Namespace
from dataclasses import dataclass, field, fields
from typing import Any

import pytest

from seqrec_fast.cli import train
from seqrec_fast.cli.log_options import add_log_options, given_options, with_recorded
from seqrec_fast.cli.model_options import add_dataclass_options, dataclass_values
from seqrec_fast.errors import InputError
from seqrec_fast.training.options import ModelOptions, TrainingOptions


@dataclass
class Sample:
    """One field of each kind."""

    width: int = field(default=3, metadata={"help": "100% of it"})
    rate: float | None = None
    kind: str = field(default="a", metadata={"choices": ("a", "b")})
    bold: bool = True
    hidden_name: str = "x"


def parsed(*arguments: str) -> Namespace:
    parser = ArgumentParser()
    add_dataclass_options(parser, Sample, "sample", skip=("hidden_name",))
    return parser.parse_args(arguments)


def test_fields_become_options_and_only_given_ones_are_passed_on() -> None:
    assert dataclass_values(parsed(), Sample) == {}
    args = parsed("--width", "-2", "--rate", "0.5", "--kind", "b", "--no-bold")
    assert dataclass_values(args, Sample) == {
        "width": -2,
        "rate": 0.5,
        "kind": "b",
        "bold": False,
    }
    assert not hasattr(args, "hidden_name")


def test_help_shows_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parsed("--help")
    shown = capsys.readouterr().out
    assert "100% of it (default: 3)" in shown
    assert "(default: yes)" in shown
    assert "hidden" not in shown


def test_train_has_an_option_for_every_hyper_parameter() -> None:
    parser = ArgumentParser()
    train.add_arguments(parser)
    flags = {flag for action in parser._actions for flag in action.option_strings}
    for kind in (ModelOptions, TrainingOptions):
        for entry in fields(kind):
            assert "--" + entry.name.replace("_", "-") in flags
            assert entry.metadata["help"], f"{entry.name} has no help"


def log_options(*arguments: str) -> Namespace:
    parser = ArgumentParser()
    add_log_options(parser)
    return parser.parse_args(arguments)


@pytest.mark.parametrize(
    ("arguments", "name", "value"),
    [
        (("--user", "2"), "user", 2),
        (("--user", "who"), "user", "who"),
        (("--event-weights", "view=1, buy=2.5"), "event_weights", {"view": 1.0, "buy": 2.5}),
        (("--event-weights", "a=b=1"), "event_weights", {"a=b": 1.0}),
        (("--missing", "drop"), "missing", "drop"),
        (("--missing", "rating=3,event=view"), "missing", {"rating": 3.0, "event": "view"}),
        (("--min-time", "2024-01-01"), "min_time", "2024-01-01"),
        (("--min-time", "1700000000"), "min_time", 1.7e9),
        (("--header", "none"), "header", False),
        (("--header", "user, item"), "header", ["user", "item"]),
        (("--test", "0.2"), "test", 0.2),
        (("--test", "2024-01-01"), "test", "2024-01-01"),
    ],
)
def test_log_options_are_parsed(arguments: tuple[str, ...], name: str, value: Any) -> None:
    args = log_options(*arguments)
    assert getattr(args, name) == value
    assert given_options(args) == {name: value}


def test_recorded_options_fill_what_is_left_open() -> None:
    recorded = {"split": "by-time", "test": 0.2, "min_rating": 3.0, "user": "who"}
    args = log_options("--min-rating", "4")
    assert with_recorded(args, recorded) == {"split": "by-time", "test": 0.2, "user": "who"}
    assert (args.split, args.test, args.min_rating, args.user) == ("by-time", 0.2, 4.0, "who")


def test_recorded_shares_stay_with_their_split() -> None:
    args = log_options("--split", "by-ratio")
    assert with_recorded(args, {"split": "by-time", "test": 0.2}) == {}
    assert args.test is None
    args = log_options("--split", "by-time")
    assert with_recorded(args, {"split": "by-time", "test": 0.2}) == {"test": 0.2}


def test_bundles_that_record_nothing_or_nonsense() -> None:
    for nothing in (None, 5, ["user"]):
        assert with_recorded(log_options(), nothing) == {}
    with pytest.raises(InputError, match="split 'magic'"):
        with_recorded(log_options(), {"split": "magic"})


@pytest.mark.parametrize("text", ["a", "=1", "a=", "a=1,,b=2"])
def test_malformed_pairs_are_refused(text: str) -> None:
    from seqrec_fast.cli.log_options import _missing

    with pytest.raises(ArgumentTypeError, match="expected for instance"):
        _missing(text)
