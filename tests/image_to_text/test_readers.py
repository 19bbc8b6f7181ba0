"""COCO captions and VQAv2 in their official layout."""

import json
from pathlib import Path

import image_text_trees as trees
import pytest

from datasets import coco_captions, vqav2
from datasets.image_text import (
    Example,
    families,
    of_family,
    one_text_each,
    read_image,
    subset,
)
from datasets.local_texts import examples_of
from proxyfda.utils.errors import BadValue, NotFound


@pytest.fixture
def coco(tmp_path):
    return Path(trees.coco(tmp_path / "coco"))


@pytest.fixture
def vqa(tmp_path):
    return Path(trees.vqa(tmp_path / "vqa"))


def change(path, how):
    """Rewrite a JSON file."""
    content = json.loads(path.read_text())
    how(content)
    path.write_text(json.dumps(content))


# -- COCO -----------------------------------------------------------------------------------------


def test_captions_images_and_kinds_of_things(coco):
    examples = coco_captions.read(str(coco))
    first = examples[0]
    assert first.texts == ("A frog on the grass.", "a frog stands in grass")
    assert first.image == str(coco / "val2017" / "000000000100.jpg")
    assert first.question == "" and first.family == "animal"
    assert families(examples) == {"vehicle": 4, "animal": 2}


def test_the_family_is_the_kind_with_the_largest_area(coco):
    def add(content):
        small = {**content["annotations"][0], "category_id": 3, "area": 200}
        content["annotations"] += [small, {**small, "id": 8}]  # two ships: 400 against 300.5

    change(coco / "annotations" / "instances_val2017.json", add)
    assert coco_captions.read(str(coco))[0].family == "vehicle"


def test_without_instances_all_is_one_family(coco):
    (coco / "annotations" / "instances_val2017.json").unlink()
    assert families(coco_captions.read(str(coco))) == {"": 6}


def test_an_image_without_things_has_a_family_of_its_own(coco):
    change(coco / "annotations" / "instances_val2017.json", lambda c: c["annotations"].pop(0))
    assert coco_captions.read(str(coco))[0].family == "nothing"


def test_a_folder_that_is_not_there(tmp_path):
    for read in (coco_captions.read, vqav2.read):
        with pytest.raises(NotFound, match="the folder of the data .*nowhere does not exist"):
            read(str(tmp_path / "nowhere"))


def test_images_may_lie_below_images(coco):
    (coco / "images").mkdir()
    (coco / "val2017").rename(coco / "images" / "val2017")
    assert "/images/val2017/" in coco_captions.read(str(coco))[0].image


def test_images_without_captions_are_counted(coco, capsys):
    change(coco / "annotations" / "captions_val2017.json", lambda c: c["annotations"].pop(0))
    change(coco / "annotations" / "captions_val2017.json", lambda c: c["annotations"].pop(0))
    assert len(coco_captions.read(str(coco))) == 5
    assert "1 of 6 images have no caption" in capsys.readouterr().out


def karpathy(coco, splits):
    """The split file of Karpathy and Fei-Fei over the images of val2014."""
    trees.coco(coco, "val2014")
    images = []
    for number, split in enumerate(splits, 100):
        sentence = {"raw": f"an image {number}.", "tokens": ["an", "image"], "imgid": number}
        images.append(
            {
                "filepath": "val2014", "filename": f"{number:012d}.jpg", "split": split,
                "cocoid": number, "imgid": number, "sentences": [sentence, sentence],
            }
        )  # fmt: skip
    trees.write(coco / "dataset_coco.json", {"images": images, "dataset": "coco"})


def test_karpathys_split(coco):
    karpathy(coco, ["train", "restval", "val", "test", "test", "train"])
    train = coco_captions.read(str(coco), "karpathy_train")
    assert [Path(e.image).stem[-3:] for e in train] == ["100", "101", "105"]
    assert train[0].texts == ("an image 100.",) * 2 and train[0].family == "animal"
    assert len(coco_captions.read(str(coco), "karpathy_test")) == 2
    assert len(coco_captions.read(str(coco), "karpathy_val")) == 1


@pytest.mark.parametrize(
    ("spoil", "kind", "message"),
    [
        (
            lambda root: (root / "annotations" / "captions_val2017.json").unlink(),
            NotFound, "the captions .*captions_val2017.json does not exist; put it there",
        ),
        (
            lambda root: (root / "annotations" / "captions_val2017.json").write_text('{"images"'),
            BadValue, "captions_val2017.json is no JSON .*fetch it again",
        ),
        (
            lambda root: (root / "annotations" / "captions_val2017.json").write_text("[]"),
            BadValue, "captions_val2017.json has no list 'images'",
        ),
        (
            lambda root: change(
                root / "annotations" / "captions_val2017.json",
                lambda c: c["annotations"][3].pop("caption"),
            ),
            BadValue, "entry 3 of 'annotations' in .* has no caption .*caption is missing",
        ),
        (
            lambda root: change(
                root / "annotations" / "captions_val2017.json",
                lambda c: c["annotations"][0].update(image_id=9),
            ),
            BadValue, "captions for the image 9, which it does not list",
        ),
        (
            lambda root: change(
                root / "annotations" / "captions_val2017.json", lambda c: c["annotations"].clear()
            ),
            BadValue, "has no captions for val2017",
        ),
        (
            lambda root: (root / "val2017" / "000000000101.jpg").unlink(),
            NotFound, "1 of 6 images listed in .* are missing, the first is .*0101.jpg",
        ),
        (
            lambda root: (root / "val2017").rename(root / "pictures"),
            NotFound, "the image folder .*val2017 does not exist",
        ),
        (
            lambda root: change(
                root / "annotations" / "instances_val2017.json", lambda c: c["categories"].pop()
            ),
            BadValue, "is of the category 3, which it does not list",
        ),
    ],
    ids=[
        "no-file", "no-json", "no-list", "no-caption", "unknown-image", "empty", "no-image",
        "no-folder", "category",
    ],
)  # fmt: skip
def test_faults_of_coco_files(coco, spoil, kind, message):
    spoil(coco)
    with pytest.raises(kind, match=message):
        coco_captions.read(str(coco))


# -- VQAv2 ----------------------------------------------------------------------------------------


def test_questions_and_the_answers_of_all(vqa):
    examples = vqav2.read(str(vqa))
    assert len(examples) == 18
    assert examples[1] == Example(
        str(vqa / "val2014" / "COCO_val2014_000000000042.jpg"),
        ("one",) * 7 + ("1", "2", "many"),
        "How many?",
        "number",
    )
    assert families(examples) == {"number": 6, "other": 6, "yes/no": 6}
    assert list(families(vqav2.read(str(vqa), family="question_type"))) == [
        "how many", "is it a", "where is the",
    ]  # fmt: skip


def test_own_images_have_any_name(vqa):
    (vqa / "val2014" / "mine.jpg").symlink_to(vqa / "val2014" / "COCO_val2014_000000000042.jpg")
    change(
        vqa / "v2_OpenEnded_mscoco_val2014_questions.json",
        lambda c: c["questions"][0].update(image_id="mine.jpg"),
    )
    assert vqav2.read(str(vqa))[0].image.endswith("val2014/mine.jpg")


def test_the_files_may_lie_in_annotations(vqa):
    (vqa / "annotations").mkdir()
    for path in vqa.glob("*.json"):
        path.rename(vqa / "annotations" / path.name)
    assert len(vqav2.read(str(vqa))) == 18


def annotations(vqa, how):
    change(vqa / "v2_mscoco_val2014_annotations.json", how)


@pytest.mark.parametrize(
    ("spoil", "kind", "message"),
    [
        (
            lambda root: (root / "v2_mscoco_val2014_annotations.json").unlink(),
            NotFound, "the file of answers .*annotations.json does not exist",
        ),
        (
            lambda root: annotations(root, lambda c: c["annotations"].pop(2)),
            BadValue, "the question 42002 of .*questions.json has no annotation in .*annotations",
        ),
        (
            lambda root: annotations(root, lambda c: c["annotations"][2]["answers"].clear()),
            BadValue, "the question 42002 has answers in .* that are none",
        ),
        (
            lambda root: annotations(root, lambda c: c["annotations"][2].update(answers=["a"])),
            BadValue, "the question 42002 has answers in .* that are none",
        ),
        (
            lambda root: annotations(root, lambda c: c["annotations"][0].pop("answer_type")),
            BadValue, "have no text 'answer_type'.*families can be made of question_type",
        ),
        (
            lambda root: (root / "val2014" / "COCO_val2014_000000000043.jpg").unlink(),
            NotFound, "1 of 6 images .* the first is .*0043.jpg",
        ),
        (
            lambda root: change(
                root / "v2_OpenEnded_mscoco_val2014_questions.json",
                lambda c: c["questions"][1].update(question_id="x"),
            ),
            BadValue, "entry 1 of 'questions' .* has no question_id .*'x'",
        ),
    ],
    ids=[
        "no-file", "no-annotation", "no-answers", "odd-answers", "no-family", "no-image", "odd",
    ],
)  # fmt: skip
def test_faults_of_vqa_files(vqa, spoil, kind, message):
    spoil(vqa)
    with pytest.raises(kind, match=message):
        vqav2.read(str(vqa))


def test_a_misspelt_key_of_families(vqa):
    with pytest.raises(BadValue, match="did you mean 'question_type'"):
        vqav2.read(str(vqa), family="question_typ")


# -- examples -------------------------------------------------------------------------------------


def test_one_word_names_them(coco, vqa):
    assert examples_of(f"coco:{coco}:val2017") == coco_captions.read(str(coco))
    found = examples_of(f"vqav2:{vqa}:val2014", "question_type")
    assert found == vqav2.read(str(vqa), family="question_type")


@pytest.mark.parametrize(
    ("spec", "family", "message"),
    [
        ("cocoo:/data:val2017", "", "did you mean 'coco'.*LAYOUT:FOLDER:SPLIT"),
        ("/data/coco", "", "names no known layout"),
        ("coco:/data/coco", "", "names no folder and split; write .*coco:/data/coco:val2017"),
        ("coco:/data/coco:", "", "names no folder and split"),
        ("coco:/data/coco:val2017", "question_type", "families of coco are not chosen"),
    ],
)
def test_what_names_no_examples(spec, family, message):
    with pytest.raises(BadValue, match=message):
        examples_of(spec, family)


def test_an_unknown_family():
    examples = [Example("a", ("x",), family=name) for name in ("animal", "vehicle", "animal")]
    assert len(of_family(examples, "animal")) == 2
    with pytest.raises(BadValue, match=r"no family 'anmal' \(did you mean 'animal'\?\)"):
        of_family(examples, "anmal")


def test_subsets_by_seed():
    examples = list(range(100))
    assert subset(examples, 10, 1) == subset(examples, 10, 1) != subset(examples, 10, 2)
    assert sorted(subset(examples, 10, 1)) == subset(examples, 10, 1)
    assert subset(examples, 200, 1) == examples


def test_one_text_to_train_on():
    captions = Example("a", ("one", "two"))
    assert [e.texts for e in one_text_each([captions])] == [("one",), ("two",)]
    answers = Example("a", ("no", "yes", "yes", "no"), "Is it?")
    assert [e.texts for e in one_text_each([answers])] == [("no",)]


def test_half_an_image_is_named(tmp_path, coco):
    whole = (coco / "val2017" / "000000000100.jpg").read_bytes()
    (tmp_path / "half.jpg").write_bytes(whole[: len(whole) // 2])
    for path, kind in ((tmp_path / "half.jpg", BadValue), (tmp_path / "none.jpg", NotFound)):
        with pytest.raises(kind, match=path.name):
            read_image(str(path))
