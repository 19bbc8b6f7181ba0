"""scripts/captioning.sh and vqa.sh with tiny random models on files in the official layouts."""

import json
import shutil
from pathlib import Path

import image_text_trees as trees
import image_to_text
import pytest
import tiny_image_text as tiny

from proxyfda.utils.errors import BadValue, NotFound
from trainers.image_to_text.models import ImageToText


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """Folders of the tiny models, ``coco`` and ``vqa``."""
    root = tmp_path_factory.mktemp("text")
    for part, coco, vqa in (("train", "train2017", "train2014"), ("test", "val2017", "val2014")):
        trees.coco(root / "coco", coco, part, 4)
        trees.vqa(root / "vqa", vqa, part, 4)
    found = {kind: tiny.save(kind, root / kind) for kind in tiny.KINDS}
    return {**found, "coco": str(root / "coco"), "vqa": str(root / "vqa")}


def command(places, protocol, model, data, tune_on, output, *more):
    """Run the script in this process, on the CPU."""
    words = ["--model", places[model], "--data", places[data], "--tune-on", tune_on]
    words += ["--output", str(output), "--devices", "cpu", "--seeds", "1", "--batch-size", "2"]
    return image_to_text.main([protocol, *words, *more])


def results(output):
    found = (json.loads(path.read_text()) for path in sorted(output.rglob("result.json")))
    return {result["name"]: result for result in found}


def test_captioning(places, tmp_path, capfd):
    more = ("--methods", "naive,FDA", "--epochs", "12", "--lr", "1e-2", "--workers", "1")
    assert command(places, "captioning", "blip", "coco", "animal", tmp_path, *more) == 0
    found = results(tmp_path)
    assert set(found) == {"Pretrained", "FineTune", "FDAFineTune"}
    for result in found.values():
        assert set(result["scores"]) == {"animal", "vehicle"}
    before, after = found["Pretrained"]["scores"], found["FineTune"]["scores"]
    assert before["animal"]["score"] < 50 < after["animal"]["score"]
    assert "tuned on animal" in capfd.readouterr().out
    folder = next(tmp_path.glob("captioning/animal/FineTune/*/seed1/model"))
    said = ImageToText.load(folder).answers(image_examples(places))
    assert said[0].startswith("a frog ")


def image_examples(places):
    from datasets.local_texts import examples_of

    return examples_of(f"coco:{places['coco']}:val2017")


@pytest.mark.parametrize("model", ["git", "blip_vqa"])
def test_questions(places, model, tmp_path):
    more = ("--methods", "naive", "--epochs", "12", "--lr", "1e-2", "--workers", "1")
    assert command(places, "vqa", model, "vqa", "number", tmp_path, *more) == 0
    found = results(tmp_path)
    assert set(found["FineTune"]["scores"]) == {"number", "other", "yes/no"}
    assert found["Pretrained"]["scores"]["number"]["score"] == 0.0
    assert found["FineTune"]["scores"]["number"]["score"] == 100.0


@pytest.mark.parametrize(
    ("protocol", "data", "tune_on", "more", "message"),
    [
        ("captioning", "coco", "anmal", (), "no family 'anmal'.*animal"),
        ("captioning", "coco", "animal", ("--test-split", "val2014"), "captions_val2014.json"),
        ("captioning", "coco", "animal", ("--kinds", "answer_type"), "families of coco are not"),
        ("vqa", "vqa", "number", ("--kinds", "question_typ"), "did you mean 'question_type'"),
        ("vqa", "vqa", "number", ("--methods", "LP-FT"), "does not tune a model that speaks"),
        ("vqa", "vqa", "number", ("--lerning-rate", "1"), "'--lerning-rate' is no option"),
    ],
    ids=["family", "split", "kinds", "kinds of VQA", "method", "option"],
)
def test_what_is_wrong_is_said_before_anything_runs(
    places, tmp_path, protocol, data, tune_on, more, message
):
    with pytest.raises((BadValue, NotFound), match=message):
        command(places, protocol, "git", data, tune_on, tmp_path, *more)
    assert not list(Path(tmp_path).rglob("*"))


@pytest.mark.parametrize(
    ("protocol", "model", "data", "tune_on", "message"),
    [
        ("captioning", "blip_vqa", "coco", "animal", "QuestionAnswering only answers questions"),
        ("vqa", "blip", "vqa", "number", "ConditionalGeneration only captions images"),
    ],
)
def test_a_model_of_the_other_kind(places, tmp_path, protocol, model, data, tune_on, message):
    with pytest.raises(BadValue, match=message):
        command(places, protocol, model, data, tune_on, tmp_path)
    assert not list(Path(tmp_path).rglob("*"))


def test_a_model_that_is_not_there(places, tmp_path):
    with pytest.raises(NotFound, match="nowhere does not exist"):
        command({**places, "git": "/nowhere"}, "vqa", "git", "vqa", "number", tmp_path)


def test_a_family_with_one_image_is_scored_as_well(places, tmp_path):
    shutil.copytree(places["coco"], tmp_path / "coco")
    path = tmp_path / "coco" / "annotations" / "captions_val2017.json"
    content = json.loads(path.read_text())
    kept = {100, 104, 105}  # of the animals one
    content["annotations"] = [e for e in content["annotations"] if e["image_id"] in kept]
    path.write_text(json.dumps(content))
    moved = {**places, "coco": str(tmp_path / "coco")}
    more = ("--methods", "naive", "--epochs", "1", "--workers", "1")
    assert command(moved, "captioning", "git", "coco", "animal", tmp_path / "out", *more) == 0
    assert results(tmp_path / "out")["FineTune"]["scores"]["animal"]["examples"] == 1
