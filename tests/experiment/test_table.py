"""What an experiment file may say of its table, and what is wrong with one."""

import pytest

from lmc.errors import UserError
from lmc.experiment.table import Published, job_name, read_table
from lmc.measures import MEASURES

ROWS = {"Narrow": ["architecture.width=1"], "Wide": ["architecture.width=2", "alignment=none"]}


def node(**changes):
    columns = {"accuracy": {"measure": "endpoint_test_accuracy", "published": {"Narrow": 87.4, "Wide": "90 ± 0.1"}}}
    return {"title": "T", "paper": "P", "source": "README", "rows": ROWS, "columns": columns, **changes}


def column(**changes):
    return node(columns={"c": {"measure": "endpoint_test_accuracy", **changes}})


def test_nothing_is_no_table():
    assert read_table(None, "e") is None
    assert read_table(node(rows={}), "e") is None


def test_a_table_is_read():
    table = read_table(node(smoke=["dataset=synthetic"], findings=["why"]), "e")
    assert table.rows == {"Narrow": ("architecture.width=1",), "Wide": ("architecture.width=2", "alignment=none")}
    (accuracy,) = table.columns
    assert accuracy.measure == next(one for one in MEASURES if one.name == "endpoint_test_accuracy")
    assert accuracy.published == {
        "Narrow": Published(87.4, None, "README", lead=False),
        "Wide": Published(90.0, 0.1, "README", lead=False),
    }
    assert table.budgets == {"smoke": ("dataset=synthetic",), "quick": ()}
    assert (table.findings, table.problems) == (("why",), ())


@pytest.mark.parametrize(
    ("written", "mean", "deviation"),
    [(3, 3.0, None), ("-0.098 ± 0.04", -0.098, 0.04), ("92+-0.1", 92.0, 0.1), ("7", 7.0, None), (".5", None, None)],
)
def test_published_numbers(written, mean, deviation):
    table = read_table(column(published={"Narrow": written}, lead=True, source="own"), "e")
    if mean is None:
        assert table.columns[0].published == {}
        assert table.problems == (
            "experiment=e: table.columns.c.published: '.5' is not a number; write it as 87.4 or as \"87.4 ± 0.1\"",
        )
    else:
        assert table.columns[0].published == {"Narrow": Published(mean, deviation, "own", lead=True)}


def test_a_selection_of_results_is_a_measure():
    chosen = {"what": "alignment", "metric": "r", "analysis": "singular_vectors", "more": {"gamma": 0.3}, "scale": 100}
    measure = read_table(column(measure={**chosen, "unit": "%", "digits": 1}), "e").columns[0].measure
    assert (measure.analysis, measure.more, measure.unit) == ("singular_vectors", {"gamma": 0.3}, "%")
    assert measure.shown(0.1234) == "12.3"


def test_a_job_is_made_of_a_row_and_a_column():
    columns = {
        "a": {"measure": "endpoint_test_accuracy"},
        "b": {"measure": "path_mean_test_accuracy"},
        "c": {"measure": "path_mean_test_accuracy", "set": ["dataset=cifar10"], "rows": ["Wide"]},
    }
    exceptions = [{"when": ["dataset=cifar10", "alignment=none"], "set": ["training.batch_size=64"]}]
    table = read_table(node(columns=columns, exceptions=exceptions), "e")
    assert table.jobs() == {
        "architecture.width=1": ("architecture.width=1",),
        "alignment=none architecture.width=2": ("architecture.width=2", "alignment=none"),
        "alignment=none architecture.width=2 dataset=cifar10": (
            *("architecture.width=2", "alignment=none", "dataset=cifar10", "training.batch_size=64"),
        ),
    }
    assert table.job("Wide", table.columns[1]) == "alignment=none architecture.width=2"


def test_the_last_override_of_a_key_names_a_job():
    assert job_name(["b=1", "a=2", "b=3"]) == "a=2 b=3"


def test_an_unknown_reference_cell_is_a_line_and_the_rest_is_read():
    table = read_table(column(published={"Narow": 3, "Wide": 4}), "e")
    assert table.columns[0].published == {"Wide": Published(4.0, None, "README", lead=False)}
    (problem,) = table.problems
    assert problem == (
        "experiment=e: table.columns.c.published: no row 'Narow'; did you mean Narrow? the rows are Narrow; Wide"
    )


def test_an_unknown_measure_is_a_line_and_the_rest_is_read():
    table = read_table(column(measure="endpoint_accuracy"), "e")
    assert table.columns[0].measure is None
    (problem,) = table.problems
    assert "table.columns.c.measure=endpoint_accuracy does not exist" in problem
    assert "did you mean endpoint_test_accuracy" in problem


@pytest.mark.parametrize(
    ("written", "message"),
    [
        (node(columns={}), "table.columns is empty"),
        (column(tolerance=-1), r"table.columns.c.tolerance=-1 cannot be used: .*greater than 0"),
        (column(tollerance=1), "table.columns.c.tollerance=1 cannot be used"),
        (column() | {"not_quick": ["Wid"]}, "table.not_quick: no row or column is called 'Wid'; did you mean Wide"),
        (column(rows=["Wid"]), "table.rows has no 'Wid'; did you mean Wide"),
        (node(rows={"Narrow": "architecture.width=1"}), "table.rows.Narrow='architecture.width=1' cannot be used"),
    ],
)
def test_a_table_that_cannot_be_used_is_refused_in_one_line(written, message):
    with pytest.raises(UserError, match=message) as refusal:
        read_table(written, "e")
    assert str(refusal.value).startswith("experiment=e: ")
    assert "\n" not in str(refusal.value)
