"""A result.json with anything in it is shown, or named with what is wrong with it."""

import json
from html import unescape

import pytest
from full_output import CLASSES, write_spoken
from result_trees import probe_values, write_probes, write_run

from proxyfda.experiments import record
from proxyfda.results import main
from proxyfda.utils.errors import BadValue

WHOLE = {
    "versions": {"torch": "2"}, "engine": "embedded", "time": {"run": 1.0}, "cfg": {"A": {"B": 1}},
    "backbone": {"name": "ViT-B/16", "weights": "openai"}, "per_class": CLASSES,
    "regulariser": {"name": "rkd", "weight": 1.0, "options": {"distance": 1}},
}  # fmt: skip
FIELDS = sorted({*record.FIELDS, *record.MORE, "schema"})
VALUES = [
    None, "x", -1, 0, 1e400, float("nan"), True, 10**400, "<b>", [], [1], [{}], {}, {"a": 1},
    {"name": 3}, {"name": [], "weights": {}}, {"name": "rkd", "options": "x"},
    {"name": "rkd", "weight": []}, {"run": "x"}, {"run": None}, {"a": {"b": [{}]}},
]  # fmt: skip


def write_of(kind, output, seed):
    """A sound run of a kind; returns its folder."""
    if kind == "prompts":
        return write_run(output, "base", "dtd", "FDACoOp", seed, 70, **WHOLE)
    if kind == "end to end":
        place = f"finetune/probe_test/dtd/FDAFineTune/cfg/seed{seed}"
        return write_probes(output, place, probe_values(seed, ("dtd", "eurosat")), **WHOLE)
    write_spoken(output, "captioning", "sea", "FDAFineTune", "git", seed, (1, 2, 3))
    return output / f"captioning/sea/FDAFineTune/git/seed{seed}"


@pytest.mark.parametrize("kind", ["prompts", "end to end", "captioning"])
def test_every_field_with_every_value(tmp_path, kind):
    output, page = tmp_path / "output", tmp_path / "page.html"
    write_of(kind, output, 0)
    changed = [(field, value) for field in FIELDS for value in VALUES]
    refused = []
    for seed, (field, value) in enumerate(changed, 1):
        path = write_of(kind, output, seed) / "result.json"
        path.write_text(json.dumps({**WHOLE, **json.loads(path.read_text()), field: value}))
        try:
            record.read(str(path.parent))
        except BadValue as error:
            refused.append(str(error))
    assert main([str(output), "--html", str(page), "--no-curves"]) == 0
    shown = unescape(page.read_text(encoding="utf-8"))
    assert len(refused) > 200
    assert [why for why in refused if why not in shown] == []


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        "null",
        '"x"',
        "NaN",
        "[" * 100_000,
        "\x00",
        '{"accuracy": 1' + "0" * 5000 + "}",
    ],
    ids=["empty", "cut", "list", "null", "text", "nan", "deep", "zero", "long number"],
)
def test_no_result_at_all(tmp_path, content):
    output, page = tmp_path / "output", tmp_path / "page.html"
    write_of("prompts", output, 0)
    path = write_of("prompts", output, 1) / "result.json"
    path.write_text(content)
    assert main([str(output), "--html", str(page), "--no-curves"]) == 0
    assert f"{path} " in unescape(page.read_text(encoding="utf-8"))
