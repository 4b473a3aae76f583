# SPDX-License-Identifier: Apache-2.0
"""Logs, item tables, cleaning and splitting options that cannot be used."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np

from tests.cli.refusals import Arguments, case, text_log, train
from tests.cli.support import World

# ----------------------------------------------------------------- the log: files


@case("nothing.csv")
def log_missing(world: World, folder: Path) -> Arguments:
    return train(folder / "nothing.csv", folder)


@case("log.csv", "empty")
def log_empty(world: World, folder: Path) -> Arguments:
    return train(text_log(folder, ""), folder)


@case("log.csv")
def log_header_only(world: World, folder: Path) -> Arguments:
    return train(text_log(folder, "user_id,item_id,timestamp\n"), folder)


@case("log.csv")
def log_binary(world: World, folder: Path) -> Arguments:
    noise = np.random.default_rng(0).integers(0, 256, 5000, dtype=np.uint8)
    return train(text_log(folder, noise.tobytes()), folder)


@case("log.csv")
def log_is_a_picture(world: World, folder: Path) -> Arguments:
    return train(text_log(folder, (world.bundle / "curve.png").read_bytes()), folder)


@case("logs", "folder")
def log_is_a_folder(world: World, folder: Path) -> Arguments:
    (folder / "logs").mkdir()
    shutil.copy(world.log, folder / "logs" / "log.csv")
    return train(folder / "logs", folder)


@case("*.csv", "no file")
def log_pattern_without_a_file(world: World, folder: Path) -> Arguments:
    return train(folder / "*.csv", folder)


@case("log.parquet", "arquet")
def log_parquet_truncated(world: World, folder: Path) -> Arguments:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = folder / "log.parquet"
    pq.write_table(pa.table({"user_id": [1] * 500, "item_id": [2] * 500}), path)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    return train(path, folder)


@case("log.parquet")
def log_text_named_parquet(world: World, folder: Path) -> Arguments:
    return train(text_log(folder, "user_id,item_id\n1,2\n", "log.parquet"), folder, "--format",
                 "parquet")  # fmt: skip


@case("log.csv.gz")
def log_gzip_truncated(world: World, folder: Path) -> Arguments:
    import gzip

    content = gzip.compress(world.log.read_bytes())
    return train(text_log(folder, content[: len(content) // 2], "log.csv.gz"), folder)


# --------------------------------------------------------------- the log: columns


@case("user", "--user", "columns")
def column_missing(world: World, folder: Path) -> Arguments:
    return train(text_log(folder, "who,item_id,ts\na,b,1\nc,d,2\n"), folder)


@case("customer", "user_id")
def column_named_is_not_there(world: World, folder: Path) -> Arguments:
    return train(world.log, folder, "--user", "customer")


@case("99")
def column_number_is_not_there(world: World, folder: Path) -> Arguments:
    return train(world.log, folder, "--item", "99")


@case("user")
def column_ambiguous(world: World, folder: Path) -> Arguments:
    return train(text_log(folder, "user_id,userid,item_id\n1,2,3\n4,5,6\n"), folder)


@case("log.csv")
def delimiter_wrong(world: World, folder: Path) -> Arguments:
    return train(world.log, folder, "--delimiter", "|", "--format", "csv")


@case("log.csv", "4")
def row_ragged(world: World, folder: Path) -> Arguments:
    rows = "user_id,item_id,timestamp\na,b,1\na,c,2\na,b,3,4,5\na,d,4\n"
    return train(text_log(folder, rows), folder)


@case("time")
def times_are_words(world: World, folder: Path) -> Arguments:
    rows = "".join(f"u{n % 3},i{n % 5},yesterday\n" for n in range(30))
    return train(text_log(folder, "user_id,item_id,timestamp\n" + rows), folder)


@case("rating")
def ratings_are_words(world: World, folder: Path) -> Arguments:
    rows = "".join(f"u{n % 3},i{n % 5},good\n" for n in range(30))
    log = text_log(folder, "user_id,item_id,rating\n" + rows)
    return train(log, folder, "--min-rating", "3")


@case("nonsense-8")
def encoding_unknown(world: World, folder: Path) -> Arguments:
    return train(world.log, folder, "--encoding", "nonsense-8")


@case("feather", "--format")
def format_unknown(world: World, folder: Path) -> Arguments:
    return train(world.log, folder, "--format", "feather")


# -------------------------------------------------------------------- item table


@case("titles.csv")
def item_table_missing(world: World, folder: Path) -> Arguments:
    return train(world.log, folder, "--items", folder / "titles.csv")


@case("name of the book")
def item_table_without_the_title_column(world: World, folder: Path) -> Arguments:
    return train(world.log, folder, "--items", world.items, "--title", "name of the book")


@case("--title", "--items")
def title_without_an_item_table(world: World, folder: Path) -> Arguments:
    return train(world.log, folder, "--title", "title")


# ----------------------------------------------------------------------- cleaning


@case("--min-user-events", "k-core")
def everything_dropped_by_the_k_core(world: World, folder: Path) -> Arguments:
    return train(world.log, folder, "--min-user-events", "1000")


@case("rating")
def everything_dropped_by_the_rating(world: World, folder: Path) -> Arguments:
    return train(world.log, folder, "--min-rating", "6")


@case("event", "swim")
def event_type_unknown(world: World, folder: Path) -> Arguments:
    return train(world.log, folder, "--event-weights", "swim=1")


@case("--event-weights", "view:1")
def event_weights_malformed(world: World, folder: Path) -> Arguments:
    return train(world.log, folder, "--event-weights", "view:1")


@case("--event-weights", "many")
def event_weight_is_a_word(world: World, folder: Path) -> Arguments:
    return train(world.log, folder, "--event-weights", "view=many")


@case("--event-weights", "twice")
def event_weight_given_twice(world: World, folder: Path) -> Arguments:
    return train(world.log, folder, "--event-weights", "view=1,view=2")


@case("event")
def event_weight_negative(world: World, folder: Path) -> Arguments:
    return train(world.log, folder, "--event-weights", "view=-1")


@case("--memory: ", "plenty")
def memory_malformed(world: World, folder: Path) -> Arguments:
    return train(world.log, folder, "--memory", "plenty")


@case("--min-time: ", "next week")
def time_limit_malformed(world: World, folder: Path) -> Arguments:
    return train(world.log, folder, "--min-time", "next week")


@case("--min-user-events", "'-5'")
def minimum_negative(world: World, folder: Path) -> Arguments:
    return train(world.log, folder, "--min-user-events", "-5")


@case("missing")
def missing_rule_unknown(world: World, folder: Path) -> Arguments:
    return train(world.log, folder, "--missing", "rating=guess")


# ---------------------------------------------------------------------- splitting


@case("--split", "random")
def split_unknown(world: World, folder: Path) -> Arguments:
    return train(world.log, folder, "--split", "random")


@case("--test", "leave-one-out")
def split_share_without_its_split(world: World, folder: Path) -> Arguments:
    return train(world.log, folder, "--test", "0.2")


@case("--min-history", "by-time")
def split_min_history_without_its_split(world: World, folder: Path) -> Arguments:
    return train(world.log, folder, "--split", "by-time", "--min-history", "3")


@case("1.5")
def split_share_too_large(world: World, folder: Path) -> Arguments:
    return train(world.log, folder, "--split", "by-ratio", "--test", "1.5")


@case("times", "leave")
def split_by_time_without_times(world: World, folder: Path) -> Arguments:
    rows = "".join(f"u{n % 3},i{n % 5}\n" for n in range(30))
    return train(text_log(folder, "user_id,item_id\n" + rows), folder, "--split", "by-time")


@case("leave-one-out")
def split_of_users_with_one_event_each(world: World, folder: Path) -> Arguments:
    rows = "".join(f"u{n},i{n % 5},{n}\n" for n in range(30))
    return train(text_log(folder, "user_id,item_id,timestamp\n" + rows), folder)
