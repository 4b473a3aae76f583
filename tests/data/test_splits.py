# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from seqrec_fast.data import (
    CleaningReport,
    Holdout,
    Prepared,
    Split,
    Vocabulary,
    by_ratio,
    by_time,
    leave_one_out,
)
from seqrec_fast.errors import InputError
from seqrec_fast.jagged import JaggedBatch


def make(lengths: list[int], times: list[int] | None = None) -> Prepared:
    """Every event is an item of its own, so that an event can be found again anywhere."""
    count = sum(lengths)
    sequences = JaggedBatch.from_lengths(np.arange(count, dtype=np.int32), lengths)
    moments = None
    if times is not None:
        moments = np.array(times, dtype=np.int64)
        for begin, end in zip(sequences.offsets, sequences.offsets[1:], strict=False):
            moments[begin:end].sort()
    return Prepared(
        sequences,
        moments,
        np.arange(count, dtype=np.float32) + 0.5,
        None,
        (),
        Vocabulary.from_ids(range(len(lengths))),
        Vocabulary.from_ids(range(count)),
        None,
        CleaningReport("made for the test"),
    )


LENGTHS = st.lists(st.integers(1, 9), min_size=1, max_size=12)


def check_no_leak(prepared: Prepared, split: Split) -> None:
    """What holds for every protocol."""
    owner = np.repeat(np.arange(len(prepared.users)), prepared.sequences.lengths)
    trained = set(split.train.values.tolist())
    held = (split.validation, split.test)
    targets = [set(part.targets.values.tolist()) for part in held]
    assert not trained & targets[0]
    assert not trained & targets[1]
    assert not targets[0] & targets[1]
    assert not trained & set(split.test.targets.values.tolist())
    for part in held:
        for user, history, target in zip(part.users, part.histories, part.targets, strict=True):
            assert len(history)
            assert len(target)
            # items are event numbers, so the order of events is the order of numbers
            assert (owner[history] == user).all()
            assert (owner[target] == user).all()
            begin = prepared.sequences.offsets[user]
            assert history.tolist() == list(range(begin, begin + len(history)))
            assert target.tolist() == list(range(history[-1] + 1, history[-1] + 1 + len(target)))
    for user, row in zip(split.train_users, split.train, strict=True):
        begin = prepared.sequences.offsets[user]
        assert row.tolist() == list(range(begin, begin + len(row)))
    assert split.train_weights is not None
    np.testing.assert_array_equal(split.train_weights, split.train.values + 0.5)
    counts = np.bincount(split.train.values, minlength=len(prepared.items))
    np.testing.assert_array_equal(split.popularity, counts)


def check_refit(split: Split, everyone: set[int]) -> None:
    again = split.refit()
    assert again.refitted
    assert not split.refitted
    assert again.test is split.test
    assert len(again.validation) == 0
    trained = set(again.train.values.tolist())
    assert set(split.train.values.tolist()) <= trained
    assert set(split.validation.targets.values.tolist()) <= trained
    assert not trained & set(split.test.targets.values.tolist())
    assert trained <= everyone
    assert again.train_weights is not None
    np.testing.assert_array_equal(again.train_weights, again.train.values + 0.5)
    with pytest.raises(InputError, match="already"):
        again.refit()


@given(LENGTHS, st.integers(1, 3))
def test_leave_one_out(lengths: list[int], min_history: int) -> None:
    prepared = make(lengths)
    assume(max(lengths) >= min_history + 2)
    split = leave_one_out(prepared, min_history=min_history)
    check_no_leak(prepared, split)
    check_refit(split, set(range(sum(lengths))))
    held = [user for user, length in enumerate(lengths) if length >= min_history + 2]
    ends = prepared.sequences.offsets[1:]
    assert split.test.users.tolist() == split.validation.users.tolist() == held
    assert split.test.targets.values.tolist() == [ends[user] - 1 for user in held]
    assert split.validation.targets.values.tolist() == [ends[user] - 2 for user in held]
    assert split.train.tokens + 2 * len(held) == sum(lengths)  # nobody's events are lost
    assert len(split.train) == len(lengths)


@given(LENGTHS, st.sampled_from([0.05, 0.1, 0.3, 0.49]), st.sampled_from([0.05, 0.2, 0.5]))
def test_by_ratio(lengths: list[int], validation: float, test: float) -> None:
    prepared = make(lengths)
    assume(max(lengths) >= 4)
    split = by_ratio(prepared, validation=validation, test=test)
    check_no_leak(prepared, split)
    check_refit(split, set(range(sum(lengths))))
    total = split.train.tokens + split.validation.targets.tokens + split.test.targets.tokens
    assert total == sum(lengths)
    assert split.test.users.tolist() == [u for u, length in enumerate(lengths) if length >= 3]


def test_by_ratio_counts() -> None:
    split = by_ratio(make([30, 10, 2]), validation=0.1, test=0.2)
    assert split.train.lengths.tolist() == [21, 7, 2]
    assert split.validation.targets.lengths.tolist() == [3, 1]
    assert split.test.targets.lengths.tolist() == [6, 2]


@given(st.data(), LENGTHS)
def test_by_time(data: st.DataObject, lengths: list[int]) -> None:
    count = sum(lengths)
    times = data.draw(st.lists(st.integers(0, 30), min_size=count, max_size=count))
    prepared = make(lengths, times)
    assert prepared.times is not None
    try:
        split = by_time(prepared, validation=0.3, test=0.2)
    except InputError:
        assume(False)
    check_no_leak(prepared, split)
    check_refit(split, set(range(count)))
    at = prepared.times
    start = at[split.validation.targets.values].min()
    end = at[split.test.targets.values].min()
    assert at[split.train.values].max() < start < end
    assert at[split.validation.targets.values].max() < end
    assert at[split.validation.histories.values].max() < start
    assert at[split.test.histories.values].max() < end
    # the refit may use everything before the test moment, and nothing from it on
    assert at[split.refit().train.values].max() < end


def test_by_time_at_given_moments() -> None:
    times = [86_400 * day for day in (0, 1, 2, 3, 0, 2, 3, 4)]
    prepared = make([4, 4], times)
    split = by_time(prepared, validation="1970-01-03", test="1970-01-04T00:00:00Z")
    assert split.train.to_lists() == [[0, 1], [4]]
    assert split.validation.targets.to_lists() == [[2], [5]]
    assert split.test.targets.to_lists() == [[3], [6, 7]]
    again = by_time(prepared, validation=86_400 * 2, test=86_400 * 3)
    assert again.test.targets.to_lists() == split.test.targets.to_lists()
    assert "validation begins 1970-01-03" in split.notes[0]


def test_moments_between_two_seconds() -> None:
    prepared = make([4], [0, 1, 2, 3])
    split = by_time(prepared, validation=1.5, test=2.5)
    assert split.train.to_lists() == [[0, 1]]
    assert split.test.targets.to_lists() == [[3]]


def test_cold_targets_stay_and_are_counted() -> None:
    prepared = make([4, 4])  # every item occurs once, so all targets are cold
    split = leave_one_out(prepared)
    assert any(n.startswith("test: 2 of 2 targets are cold (2 items") for n in split.notes)
    assert split.test.targets.tokens == 2
    warm = Prepared(
        JaggedBatch.from_lists([[0, 1, 0, 1], [1, 0, 1, 0]]),
        None,
        None,
        None,
        (),
        Vocabulary.from_ids([0, 1]),
        Vocabulary.from_ids([0, 1]),
        None,
        CleaningReport("x"),
    )
    assert not any("cold" in note for note in leave_one_out(warm).notes)
    assert leave_one_out(warm).train_weights is None


def test_representations() -> None:
    split = leave_one_out(make([4, 4]))
    assert "leave-one-out" in repr(split)
    assert "refitted" in repr(split.refit())
    assert isinstance(split.test, Holdout)
    assert "2 users" in repr(split.test)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: leave_one_out(make([2, 1])), "weaker cleaning"),
        (lambda: leave_one_out(make([5]), min_history=0), "min_history"),
        (lambda: leave_one_out(make([5]), min_history=True), "min_history"),
        (lambda: by_time(make([5])), "no times"),
        (lambda: by_time(make([3], [1, 2, 3]), validation=0.0), "fraction"),
        (lambda: by_time(make([3], [1, 2, 3]), validation=0.5, test=0.5), "leave nothing"),
        (lambda: by_time(make([3], [1, 2, 3]), validation=0.1, test="2020-01-01"), "two moments"),
        (lambda: by_time(make([3], [1, 2, 3]), validation="soon", test="later"), "not a time"),
        (lambda: by_time(make([3], [7, 7, 7])), "not before"),
        (lambda: by_time(make([3], [1, 2, 3]), validation=3, test=2), "not before"),
        (lambda: by_time(make([3], [1, 2, 3]), validation=2, test=900), "empty"),
        (lambda: by_ratio(make([2, 2])), "3 events"),
        (lambda: by_ratio(make([5]), test=1.5), "fraction"),
        (lambda: by_ratio(make([5]), test=-0.1), "fraction"),
        (lambda: by_ratio(make([5]), validation="a"), "fraction"),  # type: ignore[arg-type]
    ],
)
def test_splits_that_cannot_be(call: object, said: str) -> None:
    with pytest.raises(InputError, match=said) as caught:
        call()  # type: ignore[operator]
    assert "\n" not in str(caught.value)


def test_events_of_users_who_begin_after_the_cut_are_counted() -> None:
    """Nothing held out is left out in silence: the second user has 2 after the test moment."""
    prepared = make([4, 2], [1, 2, 11, 21, 22, 23])
    split = by_time(prepared, validation=10, test=20)
    assert any(
        note.startswith("test: 2 more events are of 1 users without an earlier event")
        for note in split.notes
    )
    assert not any("validation:" in note and "more events" in note for note in split.notes)
