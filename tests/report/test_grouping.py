from pathlib import Path
from typing import Any

from lmc.report.grouping import ABSENT, group
from lmc.report.runs import FinishedRun


def run(choices: dict[str, str] | None = None, **settings: Any) -> FinishedRun:
    return FinishedRun(folder=Path(), settings=settings, choices=choices or {}, rows=[], points=[])


def grouped(*runs: FinishedRun) -> tuple[list[str], list[tuple[tuple[str, ...], int]]]:
    columns, settings = group(runs)
    return columns, [(setting.values, len(setting.runs)) for setting in settings]


def test_runs_that_differ_in_what_cannot_change_a_result_are_one_setting():
    first = run(
        {"tracker": "wandb"}, seed=0, seeds=[0, 1], device="cpu", store={"root": "a"}, evaluation={"batch_size": 8}
    )
    second = run(
        {"tracker": "none"}, seed=1, seeds=[2, 3], device="cuda", store={"root": "b"}, evaluation={"batch_size": 9}
    )
    assert [count for _, count in grouped(first, second)[1]] == [2]


def test_a_training_batch_size_is_a_setting():
    columns, rows = grouped(
        run(training={"batch_size": 8}, curve={"training": {"batch_size": 1}}),
        run(training={"batch_size": 9}, curve={"training": {"batch_size": 2}}),
    )
    assert columns == ["training.batch_size", "curve.training.batch_size"]
    assert rows == [(("8", "1"), 1), (("9", "2"), 1)]


def test_a_choice_is_one_column_not_one_for_each_value_it_brings():
    columns, rows = grouped(
        run({"alignment": "none"}, alignment={"_target_": "a"}),
        run({"alignment": "wm"}, alignment={"_target_": "b", "restarts": 1}),
        run({"alignment": "wm"}, alignment={"_target_": "b", "restarts": 1}, seeds=[5, 6]),
    )
    assert columns == ["alignment"]
    assert rows == [(("none",), 1), (("wm",), 2)]


def test_a_value_that_differs_under_one_option_is_a_column_beside_it():
    columns, rows = grouped(
        run({"alignment": "none"}, alignment={"_target_": "a"}),
        run({"alignment": "wm"}, alignment={"_target_": "b", "restarts": 1}),
        run({"alignment": "wm"}, alignment={"_target_": "b", "restarts": 2}),
    )
    assert columns == ["alignment", "alignment.restarts"]
    assert rows == [(("none", ABSENT), 1), (("wm", "1"), 1), (("wm", "2"), 1)]


def test_nested_choices_hide_what_follows_from_them():
    columns, _ = grouped(
        run({"training": "sgd", "training.schedule": "cosine"}, training={"lr": 1, "schedule": {"_target_": "c"}}),
        run(
            {"training": "sgd", "training.schedule": "step"}, training={"lr": 1, "schedule": {"_target_": "s", "at": 3}}
        ),
    )
    assert columns == ["training.schedule"]


def test_one_setting_is_named_by_its_main_choices():
    columns, rows = grouped(run({"dataset": "digits", "alignment": "none", "curve": "linear", "architecture": "mlp"}))
    assert columns == ["dataset", "architecture", "alignment", "curve"]
    assert rows == [(("digits", "mlp", "none", "linear"), 1)]
