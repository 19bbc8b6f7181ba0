"""The schema of result.json."""

import json

import pytest

from proxyfda.experiments import record
from proxyfda.utils.errors import BadValue, NotFound

WHOLE = {
    "accuracy": 71.5, "split": "test", "protocol": "base2new", "dataset": "EuroSAT",
    "source": "eurosat", "target": "eurosat", "name": "CoOp+rkd", "trainer": "CoOp",
    "regulariser": {"name": "rkd"}, "backbone": {"name": "RN50", "weights": "openai"},
    "config": "rn50", "shots": 16, "seed": 1, "subsample": "base", "epoch": None,
    "engine": "embedded", "versions": {}, "time": {"run": 1.0}, "cfg": {},
}  # fmt: skip


def test_what_is_written_is_read_back(tmp_path):
    written = record.write(str(tmp_path), {**WHOLE, "total": 100})
    assert record.read(str(tmp_path)) == written == {"schema": 1, **WHOLE, "total": 100}


@pytest.mark.parametrize("field", sorted(record.FIELDS))
def test_no_field_may_be_missing_where_it_is_written(tmp_path, field):
    content = {key: value for key, value in WHOLE.items() if key != field}
    with pytest.raises(BadValue, match=f"result.json cannot be written, since it has no {field}"):
        record.write(str(tmp_path), content)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("accuracy", float("nan")), ("accuracy", float("inf")), ("accuracy", 100.5),
        ("accuracy", -1), ("accuracy", "71"), ("accuracy", True), ("accuracy", None),
        ("protocol", "few-shot"), ("shots", "16"), ("shots", True), ("seed", "1"),
        ("backbone", "RN50"), ("backbone", {"name": "RN50"}), ("regulariser", "rkd"),
        ("regulariser", {}), ("regulariser", {"name": "rkd", "weight": "3"}), ("accuracy", 10**400),
        ("regulariser", {"name": "rkd", "options": []}),
        ("dataset", None), ("source", 3), ("cfg", []),
    ],
)  # fmt: skip
def test_a_field_of_another_kind_is_refused_in_both_directions(tmp_path, field, value):
    with pytest.raises(BadValue, match=f"since it has {field} "):
        record.write(str(tmp_path), {**WHOLE, field: value})
    (tmp_path / "result.json").write_text(json.dumps({"schema": 1, **WHOLE, field: value}))
    with pytest.raises(BadValue, match=f"^{tmp_path}/result.json has {field} "):
        record.read(str(tmp_path))


CAT = {"name": "cat", "images": 4, "accuracy": 75.0, "taken_for": {"dog": 1}}


def test_classes_are_written_and_read_back(tmp_path):
    record.write(str(tmp_path), {**WHOLE, "per_class": [CAT]})
    assert record.read(str(tmp_path))["per_class"] == [CAT]


@pytest.mark.parametrize(
    "wrong",
    [
        {"images": 0}, {"images": 4.0}, {"accuracy": float("nan")}, {"name": 3},
        {"taken_for": ["dog"]}, {"taken_for": {"dog": 0}}, {"taken_for": {"dog": 5}},
    ],
    ids=str,
)  # fmt: skip
def test_a_class_that_does_not_fit_is_named(tmp_path, wrong):
    with pytest.raises(BadValue, match="since it has the class {'name': .*} in per_class"):
        record.write(str(tmp_path), {**WHOLE, "per_class": [CAT, {**CAT, **wrong}]})
    with pytest.raises(BadValue, match="since it has per_class cat"):
        record.write(str(tmp_path), {**WHOLE, "per_class": "cat"})


@pytest.mark.parametrize("schema", [2, "1", True], ids=repr)
def test_another_schema_is_refused(tmp_path, schema):
    (tmp_path / "result.json").write_text(json.dumps({**WHOLE, "schema": schema}))
    with pytest.raises(BadValue, match=r"has schema .* reads up to 1; update it"):
        record.read(str(tmp_path))


def test_results_from_before_there_was_a_schema_need_an_accuracy_alone(tmp_path):
    (tmp_path / "result.json").write_text('{"accuracy": 50}')
    assert record.read(str(tmp_path)) == {"accuracy": 50}


def test_no_result(tmp_path):
    with pytest.raises(NotFound, match="does not exist; the run is not finished"):
        record.read(str(tmp_path))
