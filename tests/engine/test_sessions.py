# SPDX-License-Identifier: Apache-2.0
"""Live users: a step equals the encoding of the whole history, whatever happens in between."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import OrderedDict
from itertools import islice
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seqrec_fast.bundle import Bundle
from seqrec_fast.data.vocabulary import Vocabulary
from seqrec_fast.engine import Recommender, Sessions
from seqrec_fast.errors import InputError
from seqrec_fast.jagged import JaggedBatch
from tests.engine.conftest import ITEMS, make_bundle
from tests.engine.reference import ReferenceEncoder

WINDOW = 20  # two pages of keys and values, the second one not full
CASES = [("gru", 1), ("lstm", 1), ("rnn", 1), ("sasrec", 1), ("sasrec", 6), ("sasrec", WINDOW)]
IDS = [f"i{n}" for n in range(ITEMS)]


def small(model: str, *, seed: int = 0, **options: Any) -> Bundle:
    """A model whose window is longer than a page, with weights of usual size."""
    bundle = make_bundle(model, **options)
    bundle.config["max_length"] = WINDOW
    random = np.random.default_rng(seed)
    for name, tensor in bundle.tensors.items():
        shape = (WINDOW, tensor.shape[1]) if name == "position_embedding.weight" else tensor.shape
        bundle.tensors[name] = (0.4 * random.normal(size=shape)).astype(np.float32)
    return bundle


def window_of(history: list[Any], model: str, hop: int) -> list[Any]:
    """The events that an answer depends on."""
    over = len(history) - WINDOW
    if model != "sasrec" or over <= 0:
        return history
    return history[-(-over // hop) * hop :]


class Judge:
    """Holds embeddings to the rule of the kernels: twice the error of float32 elsewhere."""

    def __init__(self, bundle: Bundle, hop: int) -> None:
        self.model, self.hop, self.encode = bundle.config["model"], hop, bundle.items.encode
        self.encoders = [
            ReferenceEncoder(bundle.config, bundle.tensors, dtype)
            for dtype in (np.float64, np.float32)
        ]
        self.mine = self.theirs = self.scale = 0.0

    def see(self, found: Any, history: list[Any]) -> None:
        row = self.encode(window_of(history, self.model, self.hop))
        exact, single = (e.encode(JaggedBatch.from_lists([row]))[0] for e in self.encoders)
        self.mine = max(self.mine, float(np.abs(found - exact).max()))
        self.theirs = max(self.theirs, float(np.abs(single - exact).max()))
        self.scale = max(self.scale, float(np.abs(exact).max()))

    def decide(self) -> None:
        assert self.mine <= 2 * self.theirs + 4 * 2.0**-24 * self.scale, (self.mine, self.theirs)


USERS = st.sampled_from([1, 2, 3, "1", "a user with a long name", -(2**63)])
EVENTS = st.lists(st.tuples(USERS, st.sampled_from(IDS)), max_size=40)
OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("observe"), EVENTS),
        st.tuples(st.just("many"), EVENTS),
        st.tuples(st.just("embed"), st.lists(USERS, max_size=5)),
        st.tuples(st.just("forget"), USERS),
        st.tuples(st.just("restart"), st.none()),
    ),
    max_size=12,
)


@pytest.mark.parametrize(("model", "hop"), CASES)
@settings(max_examples=25)
@given(operations=OPERATIONS, capacity=st.sampled_from([2, 4, 100]))
def test_any_interleaving_equals_encoding_the_history(
    model: str, hop: int, operations: Any, capacity: int, tmp_path_factory: Any
) -> None:
    bundle = small(model)
    judge = Judge(bundle, hop)
    rec = Recommender(bundle, threads=2)
    sessions = rec.sessions(capacity, hop=hop)
    live: OrderedDict[Any, list[Any]] = OrderedDict()  # the definition: oldest use first

    def used(user: Any) -> list[Any]:
        if user not in live and len(live) == capacity:
            live.popitem(last=False)
        live.setdefault(user, [])
        live.move_to_end(user)
        return live[user]

    for kind, what in operations:
        if kind == "observe":
            for user, item in what:
                assert sessions.observe(user, item) is True
                used(user).append(item)
        elif kind == "many":
            assert sessions.observe_many([u for u, _ in what], [i for _, i in what]) == len(what)
            for user, item in what:
                used(user).append(item)
        elif kind == "embed":
            found = sessions.embed(what)
            for row, user in zip(found[:, 0], what, strict=True):
                if user in live:
                    judge.see(row, used(user))
                else:
                    assert not row.any()
        elif kind == "forget":
            assert sessions.forget(what) is (live.pop(what, None) is not None)
        else:
            path = tmp_path_factory.getbasetemp() / "interleaving"
            sessions.save(path)
            sessions = rec.load_sessions(path, capacity, hop=hop)
    assert len(sessions) == len(live)
    for user, history in live.items():
        assert user in sessions
        assert sessions.events(user) == len(history)
        assert sessions.history(user).tolist() == history[-50:]
        judge.see(sessions.embed([user])[0, 0], history)
    judge.decide()


@pytest.mark.parametrize(("model", "hop"), CASES)
def test_steps_on_every_instruction_set(model: str, hop: int, isa: str) -> None:
    bundle = small(model)
    judge = Judge(bundle, hop)
    sessions = Recommender(bundle, threads=1).sessions(300, hop=hop)
    random = np.random.default_rng(3)
    users = np.repeat(np.arange(150), random.integers(1, 2 * WINDOW + 5, 150))
    random.shuffle(users)
    items = random.integers(0, ITEMS, len(users))
    half = len(users) // 2
    for part in (slice(half), slice(half, None)):
        sessions.observe_many(users[part], [IDS[i] for i in items[part]])
    for step in range(0, 40):
        assert sessions.observe(step, "i5")
    found = sessions.embed(range(150))
    for user in range(150):
        history = [IDS[i] for i in items[users == user]] + ["i5"] * (user < 40)
        if user % 3 == 0:
            judge.see(found[user, 0], history)
    judge.decide()


@pytest.mark.parametrize(("model", "hop"), [("gru", 1), ("sasrec", 1)])
@pytest.mark.parametrize("text_ids", [True, False])
def test_answers_are_those_of_the_recommender(model: str, hop: int, text_ids: bool) -> None:
    rec = Recommender(small(model, text_ids=text_ids), threads=1)
    ids = rec.item_ids.tolist()
    sessions = rec.sessions(10, remember=60)
    history: list[Any] = []
    for step in range(45):
        item = ids[step * 7 % ITEMS]
        sessions.observe("u", item)
        history.append(item)
        for options in ({}, {"exclude_seen": False}, {"deny": ids[:9]}, {"allow": ids[5:20]}):
            mine = sessions.recommend("u", 6, **options)  # type: ignore[arg-type]
            theirs = rec.recommend([history], 6, **options)[0]  # type: ignore[arg-type]
            assert mine.items.tolist() == theirs.items.tolist()
            np.testing.assert_allclose(mine.scores, theirs.scores, rtol=1e-4, atol=1e-4)
            assert mine.titles == theirs.titles
            assert (mine.fallback, mine.unknown) == (None, ())
    many = sessions.recommend_many(["u", "nobody", "u"], 6, deny=[["none"], None, ids[:2]])
    assert many[0].items.tolist() == rec.recommend([history], 6)[0].items.tolist()
    assert many[0].unknown_filters == ("none",)
    assert many[2].items.tolist() == rec.recommend([history], 6, deny=ids[:2])[0].items.tolist()
    for stranger in (many[1], sessions.recommend("nobody", 6)):
        popular = rec.recommend([[]], 6)[0]
        assert stranger.items.tolist() == popular.items.tolist()
        assert stranger.scores.tolist() == popular.scores.tolist()
        assert stranger.fallback == "popularity"
    assert sessions.recommend_many([]) == []
    assert len(sessions.recommend("u", 1000)) == ITEMS - len(set(history))


def test_what_is_remembered_is_what_is_left_out() -> None:
    rec = Recommender(small("gru"), threads=1)
    for remember in (0, 1, 15, 31):
        sessions = rec.sessions(10, remember=remember)
        sessions.observe_many(["u"] * 40, IDS[:40])
        kept = IDS[40 - remember : 40]
        assert sessions.history("u").tolist() == kept
        found = sessions.recommend("u", ITEMS).items.tolist()
        assert set(found) == set(IDS) - set(kept)


def test_unknown_items_are_counted_and_ignored() -> None:
    sessions = Recommender(small("gru"), threads=1).sessions(10)
    assert sessions.observe("u", "i1") is True
    assert [sessions.observe("u", item) for item in ("no", None, 1.5, b"i1")] == [False] * 4
    assert sessions.observe("v", "no") is False
    assert "v" not in sessions
    assert sessions.observe_many(["u", "v", "u"], ["no", "i2", "i3"]) == 2
    assert sessions.history("u").tolist() == ["i1", "i3"]
    assert sessions.stats().unknown_items == 6
    numbers = Recommender(small("gru", text_ids=False), threads=1).sessions(10)
    for item in (1001, np.int64(1001), "1001", 1001.0):
        assert numbers.observe(1, item) is True
    assert numbers.observe(1, True) is False
    assert numbers.history(1).tolist() == [1001] * 4


def test_users_of_all_kinds() -> None:
    sessions = Recommender(small("gru"), threads=1).sessions(10)
    for user, item in ((1, "i1"), ("1", "i2"), (np.int32(2), "i3"), ("", "i4"), ("Zoë", "i5")):
        sessions.observe(user, item)
    assert sessions.history(np.int64(1)).tolist() == ["i1"]
    assert sessions.history("1").tolist() == ["i2"]
    assert sessions.history(2).tolist() == ["i3"]
    assert (sessions.events(""), sessions.events("zoë"), "Zoë" in sessions) == (1, 0, True)
    sessions.observe_many(np.array([2, 1], dtype=np.int32), ["i6", "i7"])
    assert sessions.history(2).tolist() == ["i3", "i6"]
    assert repr(sessions) == "Sessions(5 users of at most 10)"
    sessions.clear()
    assert len(sessions) == 0


BAD_USERS: list[Any] = [None, True, np.bool_(True), 1.0, float("nan"), [1], b"u", 2**63, "x" * 1025]


@pytest.mark.parametrize("user", BAD_USERS, ids=repr)
def test_impossible_users(user: Any) -> None:
    sessions = Recommender(small("gru"), threads=1).sessions(10)
    for call in (
        lambda: sessions.observe(user, "i1"),
        lambda: sessions.observe(user, "no"),
        lambda: sessions.observe_many([1, user], ["i1", "i1"]),
        lambda: sessions.recommend(user),
        lambda: sessions.embed([user]),
        lambda: sessions.forget(user),
        lambda: sessions.history(user),
        lambda: user in sessions,
    ):
        with pytest.raises(InputError, match="user") as caught:
            call()
        assert "\n" not in str(caught.value)
    assert len(sessions) == 0


def test_impossible_arguments() -> None:
    rec = Recommender(small("sasrec"), threads=1)
    for bad in ({"capacity": 0}, {"capacity": True}, {"capacity": 1.5}, {"capacity": None}):
        with pytest.raises(InputError, match="capacity: "):
            rec.sessions(**bad)
    for name, values in {
        "ttl": [0, -1, "5", True, float("nan"), float("inf")],
        "memory": [0, -5, 1.5, 1000],
        "hop": [0, -1, WINDOW + 1, True, 1.5],
        "remember": [-1, True, 1.5, 10**9],
    }.items():
        for value in values:
            with pytest.raises(InputError, match=f"{name}: "):
                rec.sessions(10, **{name: value})  # type: ignore[arg-type]
    with pytest.raises(InputError, match="hop: this model"):
        Recommender(small("gru")).sessions(10, hop=2)
    sessions = rec.sessions(10)
    with pytest.raises(InputError, match="2 for 1 users"):
        sessions.observe_many([1], ["i1", "i2"])
    for users in ("ab", {1, 2}, {1: 2}, 5, None, np.zeros((2, 2), dtype=int)):
        with pytest.raises(InputError, match="users: "):
            sessions.observe_many(users, ["i1", "i2"])  # type: ignore[arg-type]
    with pytest.raises(InputError, match="items: "):
        sessions.observe_many([1, 2], "ab")
    with pytest.raises(InputError, match="item: found a list"):
        sessions.observe(1, ["i1"])
    with pytest.raises(InputError, match="k: must be"):
        sessions.recommend(1, 0)
    assert len(sessions) == 0


# ------------------------------------------------------------------- room and time


def test_memory_is_a_bound_of_everything() -> None:
    rec = Recommender(small("sasrec"), threads=1)
    sessions = rec.sessions(10**9, memory=600_000, hop=4)
    random = np.random.default_rng(0)
    for user in range(3000):
        sessions.observe_many([user] * 5, [IDS[i] for i in random.integers(0, ITEMS, 5)])
        assert sessions.stats().bytes <= 600_000
    stats = sessions.stats()
    assert stats.evictions == 3000 - stats.users > 0
    assert [user for user in range(3000) if user in sessions] == list(
        range(3000 - stats.users, 3000)
    )


def test_users_expire_by_the_clock_of_their_last_use() -> None:
    sessions = Recommender(small("gru"), threads=1).sessions(10, ttl=2.5)
    clock = sessions._bound.store.set_clock
    clock(0)
    sessions.observe_many([1, 2, 3], ["i1"] * 3)
    clock(2_000_000_000)
    sessions.recommend(2)
    sessions.embed([3])
    assert 1 in sessions  # asking is no use
    clock(2_500_000_000)
    assert [user in sessions for user in (1, 2, 3)] == [False, True, True]
    clock(4_500_000_000)
    assert len(sessions) == 0
    assert sessions.recommend(3).fallback == "popularity"
    assert sessions.stats().expired == 3
    sessions.observe(2, "i4")
    assert sessions.history(2).tolist() == ["i4"]


def test_counts() -> None:
    sessions = Recommender(small("sasrec"), threads=1).sessions(2)
    sessions.observe(1, "i1")
    sessions.observe_many([1, 2, 1], ["i1", "i2", "i3"])
    sessions.recommend(1)
    sessions.recommend(9)
    sessions.observe(3, "i1")
    stats = sessions.stats()
    assert (stats.users, stats.observes, stats.evictions, stats.pages) == (2, 5, 1, 2)
    assert (stats.hits, stats.misses) == (3, 4)
    assert dict(stats)["users"] == 2


# ------------------------------------------------------------------- threads and models


@pytest.mark.parametrize(("model", "hop"), [("gru", 1), ("sasrec", 1), ("sasrec", 6)])
def test_many_threads_and_another_model_meanwhile(model: str, hop: int) -> None:
    bundle = small(model)
    judge = Judge(bundle, hop)
    rec = Recommender(bundle, threads=2)
    sessions = rec.sessions(1000, hop=hop, remember=500)
    faults: list[str] = []
    histories: dict[Any, list[Any]] = {}

    def work(number: int) -> None:
        random = np.random.default_rng(number)
        own: dict[Any, list[Any]] = {(number * 10 + n): [] for n in range(3)}
        try:
            for _ in range(60):
                users = random.choice(list(own), int(random.integers(1, 6))).tolist()
                items = [IDS[i] for i in random.integers(0, ITEMS, len(users))]
                if random.random() < 0.5:
                    sessions.observe_many([*users, -1], [*items, "i1"])
                    for user, item in zip(users, items, strict=True):
                        own[user].append(item)
                else:
                    sessions.observe(users[0], items[0])
                    own[users[0]].append(items[0])
                sessions.recommend(users[0])
                sessions.recommend_many([-1, *users])
                if random.random() < 0.05:
                    sessions.forget(users[0])
                    own[users[0]] = []
        except BaseException as error:
            faults.append(repr(error))
            raise
        histories.update(own)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    swaps = 0
    # With hop 1 a window that is taken over is the same; with others it begins anew.
    while any(thread.is_alive() for thread in threads):
        if hop == 1:
            rec.swap(bundle)
            swaps += 1
        time.sleep(0.02)
    for thread in threads:
        thread.join()
    assert faults == []
    assert swaps > 0 or hop > 1
    for user, history in histories.items():
        assert sessions.events(user) == len(history)
        if history:
            judge.see(sessions.embed([user])[0, 0], history)
    judge.decide()


@pytest.mark.parametrize("after", ["gru", "sasrec", "lstm"])
@pytest.mark.parametrize("before", ["gru", "sasrec"])
def test_users_go_over_to_a_model_of_other_items(before: str, after: str) -> None:
    rec = Recommender(small(before), threads=1)
    sessions = rec.sessions(100, remember=30)
    for user in range(40):
        sessions.observe_many(
            [user] * (1 + user), [IDS[(user + n) % ITEMS] for n in range(1 + user)]
        )
    sessions.observe("only what goes", "i59")
    bundle = small(after, seed=1)
    order = list(range(10, 55))[::-1]  # fewer items, in another order
    bundle.config["num_items"] = len(order)
    for name in ("item_embedding.weight", "output_bias"):
        bundle.tensors[name] = bundle.tensors[name][: len(order)]
    bundle.items = Vocabulary.from_ids([IDS[n] for n in order])
    bundle.popularity = bundle.popularity[: len(order)]
    bundle.item_table = None
    judge = Judge(bundle, 1)
    rec.swap(bundle)
    left = {IDS[n] for n in order}
    for user in range(40):
        history = [IDS[(user + n) % ITEMS] for n in range(1 + user)][-30:]
        known = [item for item in history if item in left]
        if user % 2 == 0:
            sessions.observe(user, "i20")
            known.append("i20")
        assert sessions.history(user).tolist() == known[-30:]
        if known:
            judge.see(sessions.embed([user])[0, 0], known)
        assert (user in sessions) is bool(known)
    judge.decide()
    assert "only what goes" not in sessions
    assert sessions.observe(1, "i59") is False
    assert sessions.stats().observes >= sum(range(41))


def test_recurrent_states_without_items_end_with_their_model() -> None:
    rec = Recommender(small("gru"), threads=1)
    sessions = rec.sessions(100, remember=0)
    sessions.observe_many(range(50), list(islice(IDS, 50)))
    rec.swap(small("gru", seed=2))
    assert len(sessions) == 0
    sessions.observe(1, "i1")
    assert isinstance(sessions, Sessions)
    assert len(sessions) == 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="POSIX alone")
@pytest.mark.parametrize("model", ["gru", "sasrec"])
def test_a_child_goes_on_after_a_fork_amid_calls(model: str) -> None:
    rec = Recommender(small(model), threads=1)
    sessions = rec.sessions(1000, remember=10_000)
    stop = threading.Event()

    def work(number: int) -> None:
        random = np.random.default_rng(number)
        while not stop.is_set():
            users = random.integers(0, 40, 20)
            sessions.observe_many(users, [IDS[user % ITEMS] for user in users])
            sessions.embed(users)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(3)]
    for thread in threads:
        thread.start()
    codes = []
    for _ in range(5):
        time.sleep(0.02)
        child = os.fork()
        if child == 0:
            code = 1
            try:
                signal.alarm(60)
                sessions.observe_many(range(40), ["i1"] * 40)
                for user in range(40):
                    whole = rec.embed([sessions.history(user)])[0]
                    assert np.allclose(sessions.embed([user])[0], whole, rtol=1e-3, atol=1e-4)
                    assert sessions.recommend(user, 3).fallback is None
                code = 0
            finally:
                os._exit(code)
        codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    stop.set()
    for thread in threads:
        thread.join()
    assert codes == [0] * 5
    assert len(sessions) == 40
