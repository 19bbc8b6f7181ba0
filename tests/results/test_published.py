"""Differences to the published figures, which stand here as printed in the papers."""

import csv
import io

import pytest
from result_trees import write_runs

from proxyfda.results import collect, compare, main, summarise, table
from proxyfda.results.published import method_of, published

ELEVEN = {
    "imagenet": "ImageNet", "caltech101": "Caltech101", "oxford_pets": "OxfordPets",
    "stanford_cars": "StanfordCars", "oxford_flowers": "OxfordFlowers", "food101": "Food101",
    "fgvc_aircraft": "FGVCAircraft", "sun397": "SUN397", "dtd": "DescribableTextures",
    "eurosat": "EuroSAT", "ucf101": "UCF101",
}  # fmt: skip
# H of the averages as the papers print it.
PRINTED_H = {
    "CLIP": 71.70, "CoOp": 71.66, "CoCoOp": 75.83, "MaPLe": 78.55, "PromptSRC": 79.97,
    "CoOp+Proxy-FDA": 78.13,
}  # fmt: skip


def compared(root, **options):
    records = collect(root)
    found, notes = compare(summarise(records), records)
    return {(c.row.dataset, c.row.name): c for c in found}, notes


def cfg(backbone="ViT-B/16", reader="Caltech101"):
    return {"MODEL": {"BACKBONE": {"NAME": backbone}}, "DATASET": {"NAME": reader}}


@pytest.mark.parametrize("method", PRINTED_H)
def test_averages_have_the_printed_h(method):
    base, new, _ = published()[method, "average"]
    assert 2 * base * new / (base + new) == pytest.approx(PRINTED_H[method], abs=0.006)


@pytest.mark.parametrize("method", ["CLIP", "CoOp", "CoCoOp", "MaPLe", "PromptSRC"])
def test_averages_are_those_of_eleven_datasets(method):
    figures = [published()[method, title] for title in ELEVEN.values()]
    for i in (0, 1):
        mean = sum(figure[i] for figure in figures) / 11
        assert mean == pytest.approx(published()[method, "average"][i], abs=0.006)


@pytest.mark.parametrize(
    "trainer, method",
    [
        ("ZeroshotCLIP", "CLIP"),
        ("ZeroshotCLIP2", None),
        ("CoOp", "CoOp"),
        ("FDACoOp", None),
        ("ProxyFDACoOp", "CoOp+Proxy-FDA"),
        ("ProxyFDAPromptSRC", "PromptSRC+Proxy-FDA"),
        ("ProxyFDAMaPLe", None),
        ("KgCoOp", None),
        ("CLIP", None),
    ],
)
def test_methods(trainer, method):
    assert method_of(trainer) == method


def test_every_figure_has_a_source():
    assert all(source.startswith("arXiv:") for *_, source in published().values())


def test_of_one_dataset(tmp_path):
    write_runs(tmp_path, {"dtd": {"CoOp": ([80, 81], [45, 43])}}, title="DescribableTextures")
    found, notes = compared(tmp_path)
    c = found["dtd", "CoOp"]
    assert (c.base, c.new) == (79.44, 41.18)
    assert c.h == pytest.approx(2 * 79.44 * 41.18 / 120.62)
    assert notes == []
    # 80.50 - 79.44, 44.00 - 41.18
    text = table(summarise(collect(tmp_path)), "text", (list(found.values()), notes))
    assert "80.50 (+1.06)" in text and "44.00 (+2.82)" in text and "arXiv:2203.05557" in text


def test_average_of_all_eleven_is_the_published_average(tmp_path):
    numbers = {d: {"CoOp": ([80], [60]), "ProxyFDACoOp": ([82], [70])} for d in ELEVEN}
    write_runs(tmp_path, numbers)
    found, notes = compared(tmp_path)
    assert (found["average", "CoOp"].base, found["average", "CoOp"].new) == (82.69, 63.22)
    assert f"{found['average', 'CoOp'].h:.2f}" == "71.66"
    assert found["average", "ProxyFDACoOp"].base == 83.16
    assert ("dtd", "ProxyFDACoOp") not in found
    assert notes == ["Of ProxyFDACoOp the average over the eleven benchmarks alone is published."]


def test_average_of_some_is_that_of_the_same_datasets(tmp_path):
    numbers = {d: {"CoOp": ([80], [60]), "ProxyFDACoOp": ([82], [70])} for d in ("dtd", "eurosat")}
    found, _ = compared(write_runs(tmp_path, numbers))
    c = found["average", "CoOp"]
    assert (c.base, c.new) == pytest.approx(((79.44 + 92.19) / 2, (41.18 + 54.74) / 2))
    assert c.h == pytest.approx(2 * c.base * c.new / (c.base + c.new))
    assert ("average", "ProxyFDACoOp") not in found


@pytest.mark.parametrize(
    "more, note",
    [
        ({"shots": 4}, "The published figures are of 16 shots, 4 shots have none beside them."),
        ({"cfg": cfg("RN50")}, "CoOp is not compared: the published figures are of ViT-B/16 and"),
        ({"cfg": cfg(reader="ImageFolder")}, "There are no published figures for Caltech101."),
    ],
    ids=["shots", "backbone", "own images"],
)
def test_only_like_is_compared(tmp_path, more, note):
    write_runs(tmp_path, {"caltech101": {"CoOp": ([80], [60])}}, **more)
    found, notes = compared(tmp_path)
    assert not found
    assert notes[0].startswith(note)


def test_like_with_its_config_is_compared(tmp_path):
    write_runs(tmp_path, {"caltech101": {"CoOp": ([80], [60])}}, cfg=cfg())
    assert list(compared(tmp_path)[0]) == [("caltech101", "CoOp")]


def test_other_datasets_are_named(tmp_path):
    write_runs(tmp_path, {d: {"CoOp": ([80], [60])} for d in ("birds", "dtd")})
    found, notes = compared(tmp_path)
    assert list(found) == [("dtd", "CoOp")]
    assert "There are no published figures for birds." in notes
    assert any(note.startswith("The average takes in datasets without") for note in notes)


def test_command(tmp_path, capsys):
    write_runs(tmp_path, {"dtd": {"CoOp": ([80], [45])}})
    assert main([str(tmp_path), "--compare", "published", "--markdown"]) == 0
    assert "Against the published figures" in capsys.readouterr().out
    assert main([str(tmp_path), "--compare", "published", "--csv"]) == 0
    (line,) = csv.DictReader(io.StringIO(capsys.readouterr().out))
    assert (line["published_method"], line["published_base"]) == ("CoOp", "79.44")
