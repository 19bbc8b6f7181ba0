"""What captioning learned against what it forgot, as a figure."""

import pytest
from full_output import write_spoken

from proxyfda.results.image_to_text import read_image_to_text, summarise_image_to_text
from proxyfda.results.image_to_text_figures import image_to_text_figure, image_to_text_figures


@pytest.fixture
def output(tmp_path):
    write_spoken(tmp_path, "captioning", "", "Pretrained", "git", 1, (50, 60, 70))
    for seed in (1, 2):
        write_spoken(tmp_path, "captioning", "sea", "FineTune", "git", seed, (90 + seed, 50, 62))
        for weight in (1, 3):
            write_spoken(tmp_path, "captioning", "sea", "FDAFineTune", f"git-weight_{weight}", seed,
                         (80, 58, 70))  # fmt: skip
    return tmp_path


def tables_of(output):
    runs = read_image_to_text(str(output))
    return {name: summarise_image_to_text(runs, name) for name in ("captioning", "vqa")}


def test_points_are_the_score_learned_and_the_change_on_the_others(output):
    (axes,) = image_to_text_figure(tables_of(output)["captioning"].rows, "CIDEr").axes
    points = {
        (round(x, 3), round(y, 3))
        for line in axes.lines
        if len(line.get_xdata()) == 1
        for x, y in [(line.get_xdata()[0], line.get_ydata()[0])]
    }
    assert points >= {(50, 0), (91.5, -9), (80, -1)}  # and the ends of whiskers
    assert axes.get_xlabel() == "CIDEr on sea"
    assert axes.get_ylabel() == "change of CIDEr on the others"


def test_two_strengths_of_one_method_are_told_apart(output):
    figure = image_to_text_figure(tables_of(output)["captioning"].rows, "CIDEr")
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ["Pretrained", "naive", "FDA, λ 1", "FDA, λ 3", "Pareto front"]


def test_one_figure_for_each_family_that_was_tuned_on(output):
    assert [name for name, _ in image_to_text_figures(tables_of(output))] == ["captioning"]
    write_spoken(output, "captioning", "wood", "FineTune", "git", 1, (90, 50, 62))
    names = [name for name, _ in image_to_text_figures(tables_of(output))]
    assert names == ["captioning_git_sea", "captioning_git_wood"]
    assert list(image_to_text_figures({})) == []


def test_without_the_pre_trained_model_it_says_what_to_run(tmp_path):
    write_spoken(tmp_path, "vqa", "sea", "FineTune", "git", 1, (90, 50, 62))
    ((name, sentence),) = image_to_text_figures(tables_of(tmp_path))
    assert name == "vqa" and sentence.endswith("run the pre-trained model too")
