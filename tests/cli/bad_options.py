# SPDX-License-Identifier: Apache-2.0
"""Hyper-parameters, outputs, checkpoints, bundles and requests that cannot be used."""

from __future__ import annotations

import shutil
from pathlib import Path

from tests.cli.refusals import Arguments, case, recommend, text_log, train
from tests.cli.support import TINY, World

# ---------------------------------------------------------------- hyper-parameters


@case("--model", "transformerx", "sasrec")
def model_unknown(world: World, folder: Path) -> Arguments:
    return train(world.log, folder, "--model", "transformerx")


@case("--learning-rate", "nan")
def learning_rate_nan(world: World, folder: Path) -> Arguments:
    return train(world.log, folder, "--learning-rate", "nan")


@case("--learning-rate: ", "-0.1")
def learning_rate_negative(world: World, folder: Path) -> Arguments:
    return train(world.log, folder, "--learning-rate", "-0.1")


@case("--epochs: ", "-3")
def epochs_negative(world: World, folder: Path) -> Arguments:
    return train(world.log, folder, "--epochs", "-3")


@case("--epochs", "many")
def epochs_a_word(world: World, folder: Path) -> Arguments:
    return train(world.log, folder, "--epochs", "many")


@case("--heads: ", "3", "8")
def heads_do_not_divide_the_width(world: World, folder: Path) -> Arguments:
    return train(world.log, folder, "--heads", "3")


@case("--dropout: ", "1.5")
def dropout_too_large(world: World, folder: Path) -> Arguments:
    return train(world.log, folder, "--dropout", "1.5")


@case("--loss", "hinge")
def loss_unknown(world: World, folder: Path) -> Arguments:
    return train(world.log, folder, "--loss", "hinge")


@case("--threads", "100000")
def threads_absurd(world: World, folder: Path) -> Arguments:
    return train(world.log, folder, "--threads", "100000")


@case("--learning_rate")
def option_misspelt(world: World, folder: Path) -> Arguments:
    return train(world.log, folder, "--learning_rate", "0.1")


@case("--out")
def out_not_given(world: World, folder: Path) -> Arguments:
    return ["train", world.log]


@case("paint")
def command_unknown(world: World, folder: Path) -> Arguments:
    return ["paint", world.log]


# ------------------------------------------------------------------------ outputs


@case("--out", "is a file")
def out_is_a_file(world: World, folder: Path) -> Arguments:
    (folder / "out").write_text("precious")
    return train(world.log, folder)


@case("--out", "manifest.json")
def out_is_a_folder_of_something_else(world: World, folder: Path) -> Arguments:
    (folder / "out").mkdir()
    (folder / "out" / "thesis.tex").write_text("precious")
    return train(world.log, folder)


@case("--out", "notes.txt")
def out_is_a_bundle_with_a_foreign_file(world: World, folder: Path) -> Arguments:
    shutil.copytree(world.bundle, folder / "out")
    (folder / "out" / "notes.txt").write_text("precious")
    return train(world.log, folder)


@case("--out", "does not exist")
def out_without_its_parent(world: World, folder: Path) -> Arguments:
    return ["train", world.log, "--out", folder / "a" / "b" / "out", *TINY]


@case("--out", "not a folder")
def out_below_a_file(world: World, folder: Path) -> Arguments:
    (folder / "a").write_text("precious")
    return ["train", world.log, "--out", folder / "a" / "out", *TINY]


@case("--out", "/proc")
def out_where_nothing_can_be_written(world: World, folder: Path) -> Arguments:
    return ["train", world.log, "--out", "/proc/out", *TINY]


@case("--out", "empty")
def out_empty(world: World, folder: Path) -> Arguments:
    return ["train", world.log, "--out", "", *TINY]


@case("--out", "events.csv")
def demo_into_a_folder_of_something_else(world: World, folder: Path) -> Arguments:
    (folder / "home").mkdir()
    (folder / "home" / "thesis.tex").write_text("precious")
    return ["demo", "--out", folder / "home"]


@case("--users", "'0'")
def demo_without_users(world: World, folder: Path) -> Arguments:
    return ["demo", "--users", "0", "--out", folder / "demo"]


# --------------------------------------------------------------------- checkpoints


@case("--resume", "no checkpoint")
def resume_without_a_checkpoint(world: World, folder: Path) -> Arguments:
    return train(world.log, folder, "--resume")


@case("out.checkpoint", "damaged")
def resume_from_a_damaged_checkpoint(world: World, folder: Path) -> Arguments:
    place = folder / "out.checkpoint"
    place.mkdir()
    (place / "state.json").write_text('{"format": 1, "run"')
    (place / "state.safetensors").write_bytes(b"\x10\x00\x00")
    return train(world.log, folder, "--resume")


@case("--checkpoint", "state.json")
def checkpoint_over_something_else(world: World, folder: Path) -> Arguments:
    (folder / "photos").mkdir()
    (folder / "photos" / "cat.jpg").write_text("precious")
    return train(world.log, folder, "--checkpoint", folder / "photos")


# ------------------------------------------------------------ serving and measuring


@case("nowhere")
def bundle_missing(world: World, folder: Path) -> Arguments:
    return recommend(folder / "nowhere")


@case("log.csv")
def bundle_is_a_file(world: World, folder: Path) -> Arguments:
    return recommend(world.log)


@case("manifest.json")
def bundle_is_an_empty_folder(world: World, folder: Path) -> Arguments:
    return ["info", folder]


@case("--k", "'-1'")
def k_negative(world: World, folder: Path) -> Arguments:
    return recommend(world.bundle, "--k", "-1")


@case("--k", "'0'")
def k_zero(world: World, folder: Path) -> Arguments:
    return recommend(world.bundle, "--k", "0")


@case("--k", "'ten'")
def k_a_word(world: World, folder: Path) -> Arguments:
    return ["evaluate", world.bundle, world.log, "--k", "5,ten"]


@case("--weights", "'fp8'", "float32, bfloat16, int8")
def weights_of_an_unknown_form(world: World, folder: Path) -> Arguments:
    return ["evaluate", world.bundle, world.log, "--weights", "int8,fp8"]


@case("--history", "no id")
def history_empty(world: World, folder: Path) -> Arguments:
    return ["recommend", world.bundle, "--history", " , "]


@case("--history")
def history_not_given(world: World, folder: Path) -> Arguments:
    return ["recommend", world.bundle]


@case("stock.txt")
def allow_file_missing(world: World, folder: Path) -> Arguments:
    return recommend(world.bundle, "--allow", f"@{folder}/stock.txt")


@case("--deny", "utf-8")
def deny_file_binary(world: World, folder: Path) -> Arguments:
    (folder / "deny.txt").write_bytes(b"\xff\xfe\x00a")
    return recommend(world.bundle, "--deny", f"@{folder}/deny.txt")


@case("none of the", "bundle")
def evaluate_on_a_log_of_other_items(world: World, folder: Path) -> Arguments:
    rows = "".join(f"u{n % 3},other{n},{n}\n" for n in range(30))
    log = text_log(folder, "user_id,item_id,timestamp\n" + rows)
    return ["evaluate", world.bundle, log]


@case("nothing.csv")
def evaluate_without_the_log(world: World, folder: Path) -> Arguments:
    return ["evaluate", world.bundle, folder / "nothing.csv"]


# -------------------------------------------------------------------------- batch


def batch(world: World, folder: Path, *more: object) -> Arguments:
    return ["batch", world.bundle, world.log, folder / "out.parquet", *more]


@case("--k", "at least 1")
def batch_of_no_items(world: World, folder: Path) -> Arguments:
    return batch(world, folder, "--k", "0")


@case("'who' (--user)", "user_id, item_id")
def batch_column_missing(world: World, folder: Path) -> Arguments:
    return batch(world, folder, "--user", "who")


@case("users.csv", "no such file")
def batch_of_a_missing_file(world: World, folder: Path) -> Arguments:
    return ["batch", world.bundle, folder / "users.csv", folder / "out.parquet"]


@case("is the input itself")
def batch_onto_its_input(world: World, folder: Path) -> Arguments:
    log = text_log(folder, "user,item\na,i1\n", "log.parquet")
    return ["batch", world.bundle, log, log, "--overwrite", "--format", "csv"]


@case("does not exist; create it first")
def batch_into_no_folder(world: World, folder: Path) -> Arguments:
    return ["batch", world.bundle, world.log, folder / "no" / "out.parquet"]


@case("--allow", "allow.txt", "no such file")
def batch_without_its_allow_list(world: World, folder: Path) -> Arguments:
    return batch(world, folder, "--allow", folder / "allow.txt")


@case("--deny", "no id in")
def batch_with_an_empty_deny_list(world: World, folder: Path) -> Arguments:
    return batch(world, folder, "--deny", text_log(folder, "\n\n", "deny.txt"))


@case("--weights", "expected one form")
def batch_in_two_forms(world: World, folder: Path) -> Arguments:
    return batch(world, folder, "--weights", "float32,int8")


@case("--include-seen", "not allowed with")
def batch_with_seen_items_in_and_out(world: World, folder: Path) -> Arguments:
    return batch(world, folder, "--exclude-seen", "--include-seen")


# ---------------------------------------------------------------- devices


@case("device: ", "'gpu'", "cuda:N")
def device_unknown(world: World, folder: Path) -> Arguments:
    return recommend(world.bundle, "--device", "gpu")


@case("device: ", "'cuda:999'", "cpu")
def device_not_there(world: World, folder: Path) -> Arguments:
    return recommend(world.bundle, "--device", "cuda:999")


@case("device: ", "'tpu'")
def evaluate_on_an_unknown_device(world: World, folder: Path) -> Arguments:
    return ["evaluate", world.bundle, world.log, "--device", "tpu"]


@case("--sessions", "CPU")
def live_users_on_a_gpu(world: World, folder: Path) -> Arguments:
    return ["serve", world.bundle, "--sessions", "10", "--device", "cuda"]
