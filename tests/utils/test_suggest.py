"""What a misspelt word was meant to be."""

import pytest

from proxyfda.utils.suggest import did_you_mean, nearest


@pytest.mark.parametrize(
    "word, close",
    [("Rn50", "RN50"), ("vit-b-16", "ViT-B/16"), ("xyz", ""), (3, ""), ("", "")],
)
def test_nearest_choice_whatever_the_case(word, close):
    assert nearest(word, ["RN50", "ViT-B/16"]) == close
    assert did_you_mean(word, ["RN50", "ViT-B/16"]) == (
        f" (did you mean {close!r}?)" if close else ""
    )


def test_choices_need_not_be_text_and_the_cutoff_can_be_chosen():
    assert nearest("16", [15, 1600, "a"]) == "1600"
    assert nearest("abcd", ["abxx"], cutoff=0.4) == "abxx" and nearest("abcd", ["abxx"]) == ""


def test_nothing_to_choose_from():
    assert did_you_mean("a", []) == ""
