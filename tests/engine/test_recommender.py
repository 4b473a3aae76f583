# SPDX-License-Identifier: Apache-2.0
"""Recommendations against their definition: filters, unknown ids, fallback, threads, no torch."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from seqrec_fast import bundle as bundles
from seqrec_fast.bundle import Bundle
from seqrec_fast.data.vocabulary import Vocabulary
from seqrec_fast.engine import Recommendation, Recommender
from seqrec_fast.engine import recommender as module
from seqrec_fast.errors import BundleError, InputError

ITEMS = 60
IDS = [f"i{n}" for n in range(ITEMS)]
ids = st.sampled_from([*IDS, "unknown", 77])
some_ids = st.lists(ids, max_size=70)
own_lists = st.none() | some_ids


@st.composite
def requests(draw: st.DrawFn) -> dict[str, Any]:
    """Any request: histories of known and unknown ids, filters for all or for each user."""
    histories = draw(st.lists(st.lists(ids, max_size=12), max_size=5))
    users = len(histories)

    def filters() -> Any:
        one_each = st.lists(own_lists, min_size=users, max_size=users)
        return draw(st.none() | some_ids | (one_each if users else st.none()))

    return {
        "histories": histories,
        "k": draw(st.integers(1, ITEMS + 5)),
        "exclude_seen": draw(st.booleans()),
        "allow": filters(),
        "deny": filters(),
    }


def of_user(given_filter: Any, user: int) -> Any:
    if given_filter and (given_filter[0] is None or isinstance(given_filter[0], list)):
        return given_filter[user]
    return given_filter


@given(request=requests(), users_at_once=st.sampled_from([1, 2, 100]))
def test_answers_are_those_of_the_definition(
    content: Bundle,
    definition: Any,
    recommender: Recommender,
    request: dict[str, Any],
    users_at_once: int,
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_USERS_AT_ONCE", users_at_once)
        found = recommender.recommend(**request)
    assert len(found) == len(request["histories"])
    for user, (history, answer) in enumerate(zip(request["histories"], found, strict=True)):
        allow, deny = of_user(request["allow"], user), of_user(request["deny"], user)
        assert answer.items.tolist() == definition.answer(
            history, request["k"], exclude_seen=request["exclude_seen"], allow=allow, deny=deny
        )
        assert answer.scores.dtype == np.float32
        scores = definition.scores(history)[content.items.encode(answer.items)]
        np.testing.assert_allclose(answer.scores, scores, rtol=1e-5, atol=1e-5)
        known = [raw for raw in history if raw in IDS]
        assert answer.fallback == (None if known else "popularity")
        assert answer.unknown == tuple(raw for raw in history if raw not in IDS)
        assert answer.titles == tuple(
            None if raw == "i7" else f"Title {raw[1:]}" for raw in answer.items.tolist()
        )
        outside = Counter(raw for raw in [*(allow or []), *(deny or [])] if raw not in IDS)
        assert Counter(answer.unknown_filters) == outside
        assert len(answer) == len(answer.items)


@pytest.mark.parametrize("model", ["sasrec", "gru", "lstm", "rnn"])
@pytest.mark.parametrize("text_ids", [True, False])
def test_every_model_serves_ids_of_both_kinds(
    make: Any, define: Any, model: str, text_ids: bool
) -> None:
    content = make(model, text_ids=text_ids, bias=False)
    raw = content.items.ids.tolist()
    histories = [raw[:1], raw[3:9], raw[9:2:-1]]
    found = Recommender(content).recommend(histories, k=7)
    for history, answer in zip(histories, found, strict=True):
        assert answer.items.tolist() == define(content).answer(history, 7)
        assert answer.items.dtype == (object if text_ids else np.int64)


def test_integer_ids_may_come_as_text_and_as_numpy(make: Any) -> None:
    rec = Recommender(make(text_ids=False))
    wanted = rec.recommend([[1001, 1002]])[0].items.tolist()
    for same in (
        [["1001", "1002"]],
        [np.array([1001, 1002])],
        np.array([[1001, 1002]]),
        [(1001.0, 1002.0)],
        [iter([1001, 1002])],
        iter([[1001, 1002]]),
    ):
        assert rec.recommend(same)[0].items.tolist() == wanted
    assert rec.recommend([["01001"]])[0].unknown == ("01001",)
    huge = rec.recommend([[1001, 2**70, 1002, -(2**63), True, None]])[0]
    assert huge.items.tolist() == wanted
    assert huge.unknown == (2**70, -(2**63), True, None)
    assert rec.recommend([[2**70]])[0].unknown == (2**70,)


def test_the_whole_history_is_excluded_not_only_the_window(recommender: Recommender) -> None:
    history = IDS[:20]  # the model looks at the last 4
    everything = recommender.recommend([history], k=ITEMS)[0].items.tolist()
    assert sorted(everything) == sorted(IDS[20:])
    window = recommender.recommend([history[-4:]], k=ITEMS, exclude_seen=False)[0]
    same = recommender.recommend([history], k=ITEMS, exclude_seen=False)[0]
    assert same.items.tolist() == window.items.tolist()
    assert set(same.items.tolist()) == set(IDS)


def test_nothing_known_falls_back_to_popularity(content: Bundle, recommender: Recommender) -> None:
    empty, unknown, known = recommender.recommend([[], ["x", "y"], ["i1"]], k=5, deny=["i2"])
    order = sorted(range(ITEMS), key=lambda n: (-content.popularity[n], n))
    wanted = [IDS[n] for n in order if n != 2][:5]
    assert empty.items.tolist() == unknown.items.tolist() == wanted
    assert empty.scores.tolist() == [content.popularity[IDS.index(i)] for i in wanted]
    assert (empty.fallback, unknown.fallback, known.fallback) == ("popularity", "popularity", None)
    assert (empty.unknown, unknown.unknown, known.unknown) == ((), ("x", "y"), ())


def test_filters_that_leave_nothing(recommender: Recommender) -> None:
    for filters in (
        {"allow": []},
        {"allow": ["none of these"]},
        {"deny": IDS},
        {"allow": ["i1"], "deny": ["i1"]},
        {"allow": ["i3"]},  # seen
        {"allow": [["i3"]]},
        {"allow": [[]]},
        {"deny": [IDS]},
    ):
        answer = recommender.recommend([["i3"]], **filters)[0]  # type: ignore[arg-type]
        assert answer.items.tolist() == []
        assert answer.scores.tolist() == []
        assert answer.titles == ()


@pytest.mark.parametrize("size", [3, 7, 8, 40, ITEMS])  # gathered, or masked
def test_a_common_list_and_own_lists_hold_together(
    definition: Any, recommender: Recommender, size: int
) -> None:
    histories = [["i1", "i2"], ["i0"], []]
    own = [IDS[:size], None, IDS[ITEMS - size :]]
    common = ["i1", "i4", "i59", "i57"]
    denied = recommender.recommend(histories, k=ITEMS, allow=own, deny=common)
    allowed = recommender.recommend(histories, k=ITEMS, allow=common, deny=own)
    for user, history in enumerate(histories):
        assert denied[user].items.tolist() == definition.answer(
            history, ITEMS, allow=own[user], deny=common
        )
        assert allowed[user].items.tolist() == definition.answer(
            history, ITEMS, allow=common, deny=own[user]
        )


def test_the_form_of_a_filter_does_not_change_the_scores(recommender: Recommender) -> None:
    common = recommender.recommend([["i1"]], k=5, allow=IDS[10:15])[0]
    gathered = recommender.recommend([["i1"]], k=5, allow=[IDS[10:15]])[0]
    denied = recommender.recommend([["i1"]], k=5, deny=[IDS[:10] + IDS[15:]])[0]
    for other in (gathered, denied):
        assert other.items.tolist() == common.items.tolist()
        assert other.scores.tolist() == common.scores.tolist()


def test_unknown_ids_of_filters_are_reported(recommender: Recommender) -> None:
    answer = recommender.recommend([["i3"]], allow=["i1", "no"], deny=["i9", 5])[0]
    assert answer.items.tolist() == ["i1"]
    assert answer.unknown_filters == ("no", 5)
    both = recommender.recommend([["i3"], ["i4"]], allow=[["i1", "no"], None], deny=["z"])
    assert [a.unknown_filters for a in both] == [("no", "z"), ("z",)]


def test_a_request_of_nobody_and_k_beyond_the_catalogue(recommender: Recommender) -> None:
    assert recommender.recommend([]) == []
    assert recommender.recommend([], allow=[], deny=[]) == []
    assert len(recommender.recommend([["i1"]], k=10**12)[0]) == ITEMS - 1
    assert len(recommender.recommend([["i1"]], k=np.int64(3))[0]) == 3


def test_without_an_item_table_titles_are_none(make: Any) -> None:
    content = make()
    content.item_table = None
    assert Recommender(content).recommend([["i1"]], k=2)[0].titles == (None, None)


# ---------------------------------------------------------------------- bad input

BAD: dict[str, tuple[dict[str, Any], str]] = {
    "a text": ({"histories": "a,b"}, r"histories: found 'a,b' \(str\); give a list of lists"),
    "one history": ({"histories": ["a", "b"]}, "entry 0 is 'a' .* not a history; give a list of"),
    "one of numbers": ({"histories": [1, 2]}, "entry 0 is 1 .* not a history; give a list of list"),
    "one array": ({"histories": np.array([1, 2])}, "entry 0 is .* not a history"),
    "a scalar array": ({"histories": np.array(1)}, "histories: found array"),
    "None": ({"histories": None}, "histories: found None"),
    "a number": ({"histories": 5}, "histories: found 5"),
    "None inside": ({"histories": [["a"], None]}, "entry 1 is None"),
    "text inside": ({"histories": [["a"], "b"]}, "entry 1 is 'b'"),
    "a set inside": ({"histories": [{"a"}]}, "entry 0 is a set, which has no order"),
    "a dict": ({"histories": {"u": ["a"]}}, "histories: found {'u'"),
    "three levels": (
        {"histories": [[["a"]]]},
        r"entry 0 holds \['a'\] \(list\), which is not an id",
    ),
    "k zero": ({"k": 0}, "k: must be a whole number of at least 1, found 0"),
    "k negative": ({"k": -3}, "k: must be"),
    "k float": ({"k": 2.0}, "k: must be"),
    "k text": ({"k": "5"}, "k: must be"),
    "k true": ({"k": True}, "k: must be"),
    "k None": ({"k": None}, "k: must be"),
    "allow text": ({"allow": "a,b"}, "allow: found 'a,b'"),
    "deny number": ({"deny": 3}, "deny: found 3"),
    "deny dict": ({"deny": {"a": 1}}, "deny: found {'a'"),
    "mixed": ({"allow": ["a", ["b"]]}, "entry 0 is an id and another entry is a list"),
    "lists short": ({"deny": [["a"], ["b"]]}, "deny: 2 lists for 1 users"),
    "own text": ({"deny": ["ab", None]}, "entry 0 is an id"),
    "nested": ({"allow": [[["a"]]]}, "allow, user 0: entry 0 is"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_requests_get_one_line_with_the_remedy(recommender: Recommender, case: str) -> None:
    changes, message = BAD[case]
    with pytest.raises(InputError, match=message) as caught:
        recommender.recommend(**{"histories": [["i1"]], **changes})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("threads", [0, -1, 1.5, "2", True, 5000])
def test_impossible_threads(content: Bundle, tmp_path: Path, threads: Any) -> None:
    with pytest.raises(InputError, match="threads: "):
        Recommender(content, threads=threads)
    with pytest.raises(InputError, match="threads: "):
        Recommender.load(tmp_path / "is not looked at", threads=threads)


# ---------------------------------------------------------------------- vectors and scores


def test_embeddings_times_vectors_are_the_scores(
    content: Bundle, definition: Any, recommender: Recommender
) -> None:
    histories = [["i1", "i2"], [], ["i9", "no"], ["no"]]
    found = recommender.embed(histories)
    assert found.shape == (4, 1, 8)
    assert found.dtype == np.float32
    assert not found[1].any()
    assert not found[3].any()
    for row in (0, 2):
        scores = found[row, 0] @ definition.encoder.item_vectors.T + definition.encoder.item_bias
        np.testing.assert_allclose(scores, definition.scores(histories[row]), rtol=1e-5, atol=1e-5)
    assert recommender.embed([]).shape == (0, 1, 8)
    with pytest.raises(InputError, match="histories"):
        recommender.embed("a")


def test_scores_of_chosen_items(content: Bundle, definition: Any, recommender: Recommender) -> None:
    items = ["i5", "nothing", "i1", "i5"]
    found = recommender.score(["i1", "no", "i2"], items)
    wanted = definition.scores(["i1", "i2"])
    assert found.dtype == np.float32
    np.testing.assert_allclose(found[[0, 2, 3]], wanted[[5, 1, 5]], rtol=1e-5, atol=1e-5)
    assert np.isnan(found).tolist() == [False, True, False, False]
    fallback = recommender.score(["no"], items)
    assert fallback[[0, 2]].tolist() == content.popularity[[5, 1]].tolist()
    assert recommender.score([], []).shape == (0,)
    ranked = recommender.recommend([["i1"]], k=5)[0]
    np.testing.assert_allclose(
        recommender.score(["i1"], ranked.items), ranked.scores, rtol=1e-5, atol=1e-5
    )
    with pytest.raises(InputError, match=r"history: entry 0 is \['i1'\]"):
        recommender.score([["i1"]], items)
    with pytest.raises(InputError, match="items: found 'i1'"):
        recommender.score(["i1"], "i1")


def test_similar_items_by_cosine(content: Bundle, recommender: Recommender) -> None:
    vectors = content.tensors["item_embedding.weight"].astype(np.float64)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    cosine = unit @ unit[4]
    order = [IDS[n] for n in np.argsort(-cosine) if n != 4]
    found = recommender.similar_items("i4", k=6)
    assert isinstance(found, Recommendation)
    assert found.items.tolist() == order[:6]
    np.testing.assert_allclose(found.scores, np.sort(cosine)[::-1][1:7], rtol=1e-5, atol=1e-6)
    assert found.titles[0] == (None if order[0] == "i7" else f"Title {order[0][1:]}")
    everything = recommender.similar_items("i4", k=1000)
    assert everything.items.tolist() == order


def test_similar_items_never_gives_the_item_itself(make: Any) -> None:
    content = make()
    content.tensors["item_embedding.weight"][:] = 1.0  # all the same: every cosine is 1
    content.tensors["item_embedding.weight"][3] = 0.0  # and one that points nowhere
    rec = Recommender(content)
    assert rec.similar_items("i5", k=4).items.tolist() == ["i0", "i1", "i2", "i4"]
    assert rec.similar_items("i5", k=4).scores.tolist() == [1.0] * 4
    nowhere = rec.similar_items("i3", k=2)
    assert nowhere.items.tolist() == ["i0", "i1"]
    assert nowhere.scores.tolist() == [0.0, 0.0]


def test_similar_items_of_an_unknown_item_and_of_the_only_item(
    recommender: Recommender, make: Any
) -> None:
    found = recommender.similar_items("no")
    assert (found.items.tolist(), found.unknown, found.titles) == ([], ("no",), ())
    with pytest.raises(InputError, match="item: found a list"):
        recommender.similar_items(["i1"])
    with pytest.raises(InputError, match="k: must be"):
        recommender.similar_items("i1", k=0)
    single = make()
    single.config["num_items"] = 1
    single.items = Vocabulary.from_ids(["a"])
    single.popularity = single.popularity[:1]
    single.item_table = None
    for name in ("item_embedding.weight", "output_bias"):
        single.tensors[name] = single.tensors[name][:1]
    rec = Recommender(single)
    assert rec.similar_items("a").items.tolist() == []
    assert rec.recommend([["a"]])[0].items.tolist() == []
    assert rec.recommend([[]])[0].items.tolist() == ["a"]


def test_facts(content: Bundle, recommender: Recommender) -> None:
    assert recommender.num_items == ITEMS
    assert recommender.item_ids.tolist() == IDS
    found = recommender.info()
    assert found["model"] == "sasrec"
    assert (found["num_items"], found["dim"], found["threads"]) == (ITEMS, 8, 1)
    assert found["parameters"] == sum(t.size for t in content.tensors.values())
    assert found["metrics"] == content.metrics
    assert found["titles"] is True
    assert repr(recommender) == "Recommender(sasrec, 60 items)"
    assert Recommender(content).info()["threads"] >= 1


# ---------------------------------------------------------------------- loading, threads, torch


def test_load_serves_what_was_saved(
    tmp_path: Path, content: Bundle, recommender: Recommender
) -> None:
    bundles.save(content, tmp_path / "b")
    for rec in (
        Recommender.load(tmp_path / "b", threads=2),
        Recommender.load(str(tmp_path / "b"), verify=False),
    ):
        for mine, theirs in zip(
            rec.recommend([["i1"], []]), recommender.recommend([["i1"], []]), strict=True
        ):
            assert mine.items.tolist() == theirs.items.tolist()
            assert mine.scores.tolist() == theirs.scores.tolist()


def test_load_refuses_weights_that_do_not_fit_and_names_the_bundle(
    tmp_path: Path, make: Any
) -> None:
    with pytest.raises(BundleError, match="there is no bundle"):
        Recommender.load(tmp_path / "none")
    content = make()
    del content.tensors["final_norm.bias"]
    bundles.save(content, tmp_path / "b")
    with pytest.raises(BundleError, match=r"b: weights\.safetensors: tensor 'final_norm\.bias'"):
        Recommender.load(tmp_path / "b")
    content = make()
    content.config["model"] = "transformer-9"
    bundles.save(content, tmp_path / "c")
    with pytest.raises(BundleError, match="unknown model 'transformer-9'"):
        Recommender.load(tmp_path / "c")


def test_many_threads_share_one_recommender(content: Bundle) -> None:
    rec = Recommender(content, threads=2)
    histories = [[IDS[(n * 7 + j) % ITEMS] for j in range(n % 6)] for n in range(40)]
    wanted = [a.items.tolist() for a in rec.recommend(histories, deny=["i2"])]
    similar = rec.similar_items("i3").items.tolist()
    fresh = Recommender(content, threads=2)  # its lazily computed norms are raced for
    faults: list[str] = []

    def work(number: int) -> None:
        for turn in range(30):
            at = (number + turn) % 30
            found = fresh.recommend(histories[at : at + 10], deny=["i2"])
            if [a.items.tolist() for a in found] != wanted[at : at + 10]:
                faults.append("recommend")
            if fresh.similar_items("i3").items.tolist() != similar:
                faults.append("similar")

    threads = [threading.Thread(target=work, args=(n,)) for n in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert faults == []


def test_serving_needs_numpy_alone(tmp_path: Path, content: Bundle) -> None:
    bundles.save(content, tmp_path / "b")
    code = """
        import sys
        blocked = {"torch", "duckdb", "pyarrow", "matplotlib", "tqdm", "pandas", "faiss"}
        class Blocked:
            def find_spec(self, name, path=None, target=None):
                if name.partition(".")[0] in blocked:
                    raise ImportError(name + " is blocked")
        sys.meta_path.insert(0, Blocked())
        import seqrec_fast as sf
        rec = sf.Recommender.load(sys.argv[1], threads=1)
        answers = rec.recommend([["i1", "i2"], []], k=3, deny=["i4"])
        rec.embed([["i1"]]), rec.score(["i1"], ["i2"]), rec.similar_items("i1")
        print([len(a) for a in answers])
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), str(tmp_path / "b")],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(bundles.__file__).parents[2],
    )
    assert done.stdout.strip() == "[3, 3]", done.stderr


def test_what_is_no_bundle_is_named(recommender: Recommender) -> None:
    for wrong in (recommender, None, 5):
        with pytest.raises(
            InputError, match=f"the folder that train wrote, found {type(wrong).__name__}"
        ):
            recommender.swap(wrong)  # type: ignore[arg-type]
