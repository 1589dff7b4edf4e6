"""Which jobs of a table a command line asks for, and what it changes of the experiment."""

import pytest

from lmc.errors import UserError
from lmc.experiment.jobs import changes, chosen_jobs
from lmc.experiment.table import read_table

TABLE = read_table(
    {
        "title": "T",
        "paper": "P",
        "rows": {
            "One": ["architecture.width=1", "alignment=none"],
            "Two": ["architecture.width=2", "alignment=none"],
            "Two, aligned": ["architecture.width=2", "alignment=weight_matching", "alignment.restarts=3"],
        },
        "columns": {
            "C10": {"measure": "endpoint_test_accuracy", "set": ["dataset=cifar10"]},
            "C100": {"measure": "endpoint_test_accuracy", "set": ["dataset=cifar100"]},
        },
        "not_quick": ["Two, aligned", "C100"],
        "smoke": ["dataset=synthetic", "architecture.width=0.5"],
    },
    "e",
)


def asked(*arguments, only=(), budget=None):
    jobs, for_all = chosen_jobs(TABLE, only, budget, arguments)
    return [job.name for job in jobs], for_all


def test_all_jobs_are_asked_for():
    names, for_all = asked("experiment=e", "device=cpu")
    assert len(names) == 6
    assert for_all == ["experiment=e", "device=cpu"]


@pytest.mark.parametrize(
    ("arguments", "count"),
    [
        (["dataset=cifar10"], 3),
        (["dataset=cifar10,cifar100"], 6),
        (["architecture.width=1.0"], 2),
        (["alignment=weight_matching", "dataset=cifar100"], 1),
        (["alignment.restarts=3"], 2),
    ],
)
def test_values_of_the_table_choose_its_jobs(arguments, count):
    names, for_all = asked(*arguments)
    assert (len(names), for_all) == (count, [])


@pytest.mark.parametrize(
    ("arguments", "count"),
    [([], 2), (["architecture.width=2"], 1), (["dataset=cifar100"], 3), (["alignment=weight_matching"], 2)],
)
def test_what_a_quick_run_leaves_out_is_done_only_if_nothing_else_was_asked_for(arguments, count):
    assert len(asked(*arguments, budget="quick")[0]) == count


def test_only_chooses_and_another_value_takes_the_place_of_what_is_left():
    names, for_all = asked("dataset=huggingface", "dataset.path=x", only=["dataset:cifar10", "architecture.width:1"])
    assert names == ["alignment=none architecture.width=1 dataset=cifar10"]
    assert for_all == ["dataset=huggingface", "dataset.path=x"]
    assert len(asked(only=["architecture.width:1", "architecture.width:2"])[0]) == 6


def test_the_overrides_of_a_budget_come_last():
    jobs, _ = chosen_jobs(TABLE, (), "smoke", ())
    assert all(job.overrides[-2:] == ("dataset=synthetic", "architecture.width=0.5") for job in jobs)
    assert len({job.name for job in jobs}) == 6
    assert chosen_jobs(TABLE, (), "mine", ())[0] == chosen_jobs(TABLE, (), None, ())[0]


@pytest.mark.parametrize(
    ("arguments", "only", "message"),
    [
        (
            ["dataset=svhn"],
            (),
            r"dataset=svhn: the table has dataset=cifar10,cifar100; .* table.only=\[dataset:cifar1",
        ),
        (["architecture.width=1,3"], (), "architecture.width=1,3: the table has architecture.width=1,2"),
        ([], ["dataset:mnist"], r"table.only=\[dataset:mnist\] leaves no job; the table has dataset=cifar10,cifar100"),
        ([], ["seed:1"], r"table.only=\[seed:1\] leaves no job; the jobs of the table differ in architecture.width"),
    ],
)
def test_what_is_not_in_the_table_is_refused_in_one_line(arguments, only, message):
    with pytest.raises(UserError, match=message) as refusal:
        chosen_jobs(TABLE, only, None, arguments)
    assert "\n" not in str(refusal.value)


def test_changes_are_what_makes_another_experiment():
    harmless = ["experiment=e", "budget=quick", "seeds=[4,5]", "device=cuda", "store.root=x", "tracker.mode=disabled"]
    harmless += ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "table.only=[dataset:cifar10]", "dataset=cifar10"]
    harmless += ["dataset.root=/data", "alignment=none,weight_matching"]
    assert changes(TABLE, harmless) == []
    made = ["training.epochs=3", "dataset=huggingface", "alignment=zip", "seed=1"]
    assert changes(TABLE, [*harmless, *made]) == made
