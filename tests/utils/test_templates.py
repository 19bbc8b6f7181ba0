"""Prompt templates: one place for the class name, and nothing else to fill in."""

import pytest

from proxyfda.utils.errors import BadValue
from proxyfda.utils.templates import check_template


@pytest.mark.parametrize("template", ["{}", "a photo of a {}.", "set {{1, 2}} of {}", "{}, é"])
def test_good_ones_are_given_back_and_can_be_filled_in(template):
    assert check_template(template, "TEMPLATE") == template
    assert "cat" in template.format("cat")


@pytest.mark.parametrize(
    "template",
    ["", "a photo", "{{}}", "{} or {}", "{} {extra}", "{0}", "{name}", "{!r}", "{:>9}", "{:{}}"]
    + ["a { b {}", "} {}", "{", None, 3, ["{}"]],
)
def test_others_are_refused_in_one_sentence(template):
    with pytest.raises(BadValue) as error:
        check_template(template, "data/dataset.yaml: template")
    assert str(error.value) == (
        f"data/dataset.yaml: template is {template!r}, but it needs one {{}} for the class name "
        "and no other braces; write it like 'a photo of a {}.'"
    )
