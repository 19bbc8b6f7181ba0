"""Loaders take what is sound, refuse everything else by a UserError, and never fail otherwise."""

import json
import math
import os

import numpy as np
import pytest
import yaml
from faults.inputs.calls import ROOT
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from datasets.entry import PARTS, Entry, leaves_folder, same_prompts
from datasets.split import SplitDataset
from datasets.split_file import read_split
from proxyfda.engine.images import to_rgb
from proxyfda.experiments.config import (
    check_options,
    default_config,
    merge_file,
    near_option,
    option_rules,
)
from proxyfda.utils.errors import BadValue, UserError
from proxyfda.utils.nested import flat
from proxyfda.utils.rules import OneOf, Real, Several, Text, Whole
from proxyfda.utils.templates import check_template

few = settings(
    max_examples=100,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
text = st.text(max_size=8)
scalar = st.none() | st.booleans() | st.integers() | st.floats() | text
json_value = st.recursive(
    scalar, lambda one: st.lists(one, max_size=4) | st.dictionaries(text, one, max_size=4)
)
entry = st.tuples(text | scalar, st.integers(0, 3) | scalar, st.sampled_from("abc") | scalar)
split = st.fixed_dictionaries({part: st.lists(entry, max_size=4) for part in PARTS})


@settings(few, max_examples=50)
@given(json_value | split)
def test_a_split_is_sound_or_refused(tmp_path, content):
    path = tmp_path / "split.json"
    path.write_text(json.dumps(content))
    try:
        parts = read_split(str(path))
    except BadValue as error:
        assert str(path) in str(error) and "\n" not in str(error)
    else:
        entries = [one for part in PARTS for one in parts[part]]
        assert all(isinstance(one.label, int) and one.label >= 0 for one in entries)
        assert {one.label for one in entries} == set(range(max(one.label for one in entries) + 1))


@pytest.mark.parametrize("label", [1, 1.0, "1"])
def test_whole_labels_are_taken_however_they_are_written(tmp_path, label):
    entries = [["a.png", 0, "ant"], ["b.png", label, "bee"]]
    path = tmp_path / "split.json"
    path.write_text(json.dumps({"train": entries, "val": [], "test": entries}))
    assert read_split(str(path))["train"][1] == Entry("b.png", 1, "bee")


@few
@given(st.text("{}:!.[]0xa ", max_size=8))
def test_a_template_holds_the_name_once_or_is_refused(template):
    try:
        check_template(template, "TEMPLATE")
    except BadValue as error:
        assert repr(template) in str(error)
    else:
        assert template.format("\0").count("\0") == 1


@few
@given(st.lists(st.sampled_from(["..", ".", "a", "", "b.png", "..."]), max_size=5).map("/".join))
def test_a_path_that_is_taken_stays_below_its_folder(path):
    whole = os.path.normpath(os.path.join("/root/images", path))
    assert leaves_folder(path) or whole.startswith("/root/images")
    assert leaves_folder(f"/{path}") and leaves_folder(f"..\\{path}")


def test_names_are_equal_where_their_prompts_are():
    assert same_prompts(["x", "x"]) == [("x", "x")]
    assert same_prompts(["Red_fly", "bee", "red  fly"]) == [("Red_fly", "red  fly")]
    assert not same_prompts(["ant", "ants", "an t"])


@few
@given(json_value)
def test_a_config_file_is_merged_or_refused(tmp_path, content):
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(content))
    try:
        merge_file(default_config(), str(path), "--config-file")
    except UserError as error:
        assert "mine.yaml" in str(error)


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("TRAINER.PROXYFDA.k", "did you mean TRAINER.PROXYFDA.K?"),
        ("K", "did you mean TRAINER.PROXYFDA.K?"),
        ("TRAINER.COOP.K", "did you mean TRAINER.PROXYFDA.K?"),
        ("TRAINER.PROXYFDA.Q", "docs/options.md lists the options"),
        ("OPTIM.MAX_EPOCHS", "did you mean OPTIM.MAX_EPOCH?"),
        ("MAX_EPOCHS", "did you mean OPTIM.MAX_EPOCH?"),
        ("OPTIM.WEIGTH_DECAY", "did you mean OPTIM.WEIGHT_DECAY?"),
        ("DATALOADER.BATCH_SIZE", "did you mean DATALOADER.TRAIN_X.BATCH_SIZE or "),
    ],
)
def test_what_was_meant_by_an_option(given, meant):
    assert near_option(given, [key for key, _ in flat(default_config())]).startswith(meant)


def test_defaults_keep_to_their_rules():
    rules = option_rules()
    assert not [
        key
        for key, value in flat(default_config())
        if not rules.get(key, Text()).accepts(value) and key in rules
    ]


def test_the_configs_keep_to_the_rules():
    files = sorted((ROOT / "configs").glob("[dtr]*/**/*.yaml"))
    assert len(files) > 60
    for path in files:
        cfg = default_config()
        merge_file(cfg, str(path), "--config-file")
        check_options(cfg)


@pytest.mark.parametrize(
    ("rule", "good", "bad"),
    [
        (Whole(1), [1, 2**31 - 1], [0, 2**31, True, 1.0, "1", None]),
        (Whole(odd=True, least=1), [1, 3], [2, 0]),
        (Whole(1, also=((-1, "all"),)), [-1, 1], [0, -2]),
        (Real(above=0), [1, 1e-30, 5], [0, -1, math.inf, math.nan, 10**400, "1", True]),
        (Real(least=0, below=1), [0, 0.99], [1, -0.01]),
        (OneOf(("a", "")), ["a", ""], ["b", 1, None]),
        (Several(Real(), 2, rising=True), [(1, 1), [0, 1]], [(1,), (2, 1), 1, (1, math.nan)]),
    ],
    ids=str,
)
def test_rules(rule, good, bad):
    assert all(map(rule.accepts, good)) and not any(map(rule.accepts, bad))
    with pytest.raises(BadValue, match="^OPTION is .*; give "):
        rule.check("OPTION", bad[0])


GREY = np.linspace(0, 1, 256).reshape(16, 16)


@pytest.mark.parametrize(
    ("pixels", "kind"),
    [
        ((GREY * 65535).round().astype("uint16"), "PNG"),
        ((GREY * 65535).round().astype("uint16"), "TIFF"),
        ((GREY * 65535).round().astype("int32"), "TIFF"),
        ((GREY * 255).round().astype("int32"), "TIFF"),
        (GREY.astype("float32"), "TIFF"),
        ((GREY * 255).astype("float32"), "TIFF"),
        ((GREY * 255).round().astype("uint8"), "PNG"),
    ],
    ids=["16-bit PNG", "16-bit TIFF", "32-bit TIFF", "8 bits in 32", "floats", "wide floats", "8"],
)
def test_wide_images_keep_their_greys(tmp_path, pixels, kind):
    path = tmp_path / f"grey.{kind.lower()}"
    Image.fromarray(pixels).save(path, kind)
    with Image.open(path) as image:
        found = np.asarray(to_rgb(image, str(path)))
    assert found.shape == (16, 16, 3)
    assert np.abs(found[..., 0] - GREY * 255).max() <= 1


def test_palettes_and_cmyk_keep_their_colours():
    colours = Image.new("RGB", (2, 1), (204, 0, 51))
    for mode in ("P", "CMYK", "RGBA"):
        found = np.asarray(to_rgb(colours.convert(mode), "x"))[0, 0]
        assert np.abs(found.astype(int) - (204, 0, 51)).max() <= 3, mode


def test_a_rotated_photograph_is_taken_as_stored_and_named_once(tmp_path, capsys, monkeypatch):
    from proxyfda.engine import images

    monkeypatch.setattr(images, "_warned", [])
    exif = Image.Exif()
    exif[images.ORIENTATION] = 6
    path = tmp_path / "rotated.jpg"
    Image.new("RGB", (4, 8)).save(path, exif=exif)
    for _ in range(2):
        with Image.open(path) as image:
            assert to_rgb(image, str(path)).size == (4, 8)
    assert capsys.readouterr().out.count("rotated.jpg") == 1


def test_classes_with_the_same_prompt_are_named(tmp_path, capsys):
    class Pair(SplitDataset):
        dataset_dir, image_dir, split_file = "pair", "images", "split.json"

    (tmp_path / "pair" / "images").mkdir(parents=True)
    Image.new("RGB", (4, 4)).save(tmp_path / "pair" / "images" / "a.png")
    entries = [["a.png", 0, "Red_fly"], ["a.png", 1, "red fly"]]
    (tmp_path / "pair" / "split.json").write_text(
        json.dumps({"train": entries, "val": [], "test": entries})
    )
    cfg = default_config()
    cfg.DATASET.ROOT = str(tmp_path)
    Pair(cfg)
    assert "classes 'Red_fly' and 'red fly', whose prompts are the same" in capsys.readouterr().out
