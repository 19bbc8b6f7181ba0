"""CIDEr and VQA accuracy against values computed by hand and by the original evaluations."""

import math
import sys

import pytest

from datasets.image_text import Example
from proxyfda.utils.errors import BadValue, NotInstalled
from trainers.image_to_text.data import Part
from trainers.image_to_text.evaluation import scores
from trainers.image_to_text.scores import (
    caption_words,
    cider,
    ciders,
    normalised_answer,
    vqa_accuracy,
)

# -- words of captions ----------------------------------------------------------------------------

# What Stanford's tokenizer (CoreNLP 3.4.1, as pycocoevalcap ships and calls it) makes of them.
STANFORD = {
    "A man's blue-green hat isn't on, 7:30 P.M.!": "a man 's blue-green hat is n't on 7:30 p.m.",
    'The U.S. flag & a "stop" sign.': "the u.s. flag & a stop sign",
    "Woman cannot find her t-shirt, it's $5.00": "woman can not find her t-shirt it 's $ 5.00",
    "Mr. Smith's 1,000 sheep -- all white": "mr. smith 's 1,000 sheep all white",
    "Men that're gonna jump can't": "men that 're gon na jump ca n't",
    "boys' toys , it is 10 o'clock": "boys toys it is 10 o'clock",
    "a cat’s paw; a 1/2 eaten pizza, sink,and": "a cat 's paw a 1/2 eaten pizza sink and",
    "a man 's hat and women 's hats": "a man 's hat and women 's hats",
    "a jet -a plane- flies...": "a jet a plane flies",
    "a café, 5pm #1 fan, 50% off @ the 'game'": "a café 5pm # 1 fan 50 % off @ the game",
}  # fmt: skip


@pytest.mark.parametrize(("caption", "words"), STANFORD.items())
def test_words_are_those_of_stanfords_tokenizer(caption, words):
    assert caption_words(caption) == words.split()


# -- CIDEr ----------------------------------------------------------------------------------------


def test_cider_is_the_formula():
    """Two images, one reference each: every word's document frequency is 1, so all have the weight
    log 2 and the similarity of n-grams is clipped overlap over the norms."""
    found = cider(["a red dog runs"] + ["x y z w"], [["a red dog sits"], ["x y z w"]])
    sims = (3 / 4, 2 / 3, 1 / 2, 0 / 1)  # shared n-grams of n = 1..4 words among 4, 3, 2, 1
    assert found == pytest.approx(100 * (10 * sum(sims) / 4 + 10) / 2)


def test_a_word_in_every_image_counts_nothing_and_length_is_penalised():
    texts = ["the dog", "the cat", "the cow"]
    assert cider(["the dog", "the", "the"], [[t] for t in texts]) > 0
    assert cider(["the", "the", "the"], [[t] for t in texts]) == 0
    short = cider(["a b c d", "e f g h"], [["a b c d"], ["e f g h"]])
    # Two n-grams of 2 words more: the Gaussian of sigma 6, and norms of more words.
    longer = cider(["a b c d a b c d", "e f g h"], [["a b c d"], ["e f g h"]])
    assert short == pytest.approx(1000.0)
    assert longer < 500 + 500 * math.exp(-(4**2) / (2 * 6**2))


def test_case_and_punctuation_do_not_count():
    wanted = [["a dog on grass"], ["a cat in the car"]]
    assert cider(["A dog, on grass.", "A cat in the car!"], wanted) == pytest.approx(1000.0)


@pytest.mark.parametrize(
    ("generated", "references", "message"),
    [
        (["a"], [["a"]], "give two or more"),
        (["a", "b"], [["a"]], "there are 2 captions and references for 1"),
        ([], [], "at least one"),
        (["a", "b"], [["a"], []], "caption 1 has the references"),
        (["a", "b"], [["a"], "b"], "caption 1 has the references 'b'"),
        (["a", "b"], [["a"], ["..."]], "image 1 has no reference caption with a word"),
    ],
)
def test_what_cider_cannot_score(generated, references, message):
    with pytest.raises(BadValue, match=message):
        cider(generated, references)


def family(*captions):
    return Part([Example("", (caption,)) for caption in captions])


def test_rarity_is_that_in_the_references_of_all_families():
    """The name of a family, which each of its captions has, is what it is told by elsewhere."""
    parts = {"toys": family("a toy dog", "a toy dog"), "signs": family("a sign", "a red sign")}
    said = {"toys": ["a toy dog", "a sign dog"], "signs": ["a sign", "a red sign"]}
    assert cider(said["toys"], [["a toy dog"]] * 2) == 0  # by themselves
    found = scores(said, parts, "captioning")
    flat = sum(said.values(), [])
    each = ciders(flat, [[e.texts[0]] for part in parts.values() for e in part.examples])
    assert found["toys"]["score"] == pytest.approx((each[0] + each[1]) / 2)
    assert found["signs"]["score"] == pytest.approx((each[2] + each[3]) / 2)
    assert each[0] == max(each) > each[1] > 0
    assert [found[name]["exact"] for name in parts] == [50.0, 100.0]


def test_cider_without_its_library(monkeypatch):
    monkeypatch.setitem(sys.modules, "pycocoevalcap.cider.cider", None)
    with pytest.raises(NotInstalled, match="pip install .*captioning"):
        cider(["a", "b"], [["a"], ["b"]])


# -- VQA ------------------------------------------------------------------------------------------

# What GT-Vision-Lab/VQA (a013f00, vqaEval.py) makes of them.
NORMALISED = {
    "The Two dogs": "2 dogs",
    "dont know": "don't know",
    "couldnt've": "couldn't've",
    "None": "0",
    "a": "",
    "on/off": "on off",
    "t-shirt": "t shirt",
    "on / off": "on off",
    "1,000": "1000",
    "1,000 t-shirts": "1000 tshirts",
    "3.5": "3.5",
    "p.m.": "pm",
    "yes.": "yes",
    "what?!": "what",
    "somebody'd": "somebodyd",
    "eleven": "eleven",
}


@pytest.mark.parametrize(("answer", "normalised"), NORMALISED.items())
def test_answers_are_normalised_as_in_the_official_evaluation(answer, normalised):
    assert normalised_answer(answer) == normalised


@pytest.mark.parametrize(
    ("answer", "given", "accuracy"),
    [
        ("yes", ["yes"] * 10, 100.0),
        ("yes", ["yes"] * 4 + ["no"] * 6, 100.0),
        ("yes", ["yes"] * 3 + ["no"] * 7, 90.0),  # (3 x 2/3 + 7 x 1) / 10
        ("yes", ["yes"] * 2 + ["no"] * 8, 60.0),  # (2 x 1/3 + 8 x 2/3) / 10
        ("yes", ["yes"] + ["no"] * 9, 30.0),  # (1 x 0 + 9 x 1/3) / 10
        ("maybe", ["yes"] * 9 + ["no"], 0.0),
        ("2", ["two"] * 9 + ["3"], 100.0),
        ("Two", ["2"] * 3 + ["3"] * 7, 90.0),
        ("Yes", ["yes"] * 10, 0.0),  # as published: nothing is normalised where all agree
        ("yes\n", ["yes"] * 10, 100.0),
        ("yes", ["yes"] * 3 + ["no"] * 2, 80.0),  # (3 x 2/3 + 2 x 1) / 5
        ("yes", ["yes"], 100.0),
        ("yes", ["no"], 0.0),
        ("yes", ["yes", "yes"], 100.0),
        ("yes", ["yes", "no"], 50.0),  # (0 + 1) / 2
        ("yes", ["yes", "yes", "no"], pytest.approx(200 / 3)),  # (2 x 1/2 + 1) / 3
    ],
)
def test_accuracy_by_hand(answer, given, accuracy):
    assert vqa_accuracy([answer], [given]) == pytest.approx(accuracy)


def test_accuracy_is_the_mean_over_questions():
    assert vqa_accuracy(["yes", "no"], [["yes"] * 10, ["yes"] * 10]) == 50.0


def test_questions_without_references_are_refused():
    with pytest.raises(BadValue, match="answer 1 has the references"):
        vqa_accuracy(["a", "b"], [["a"], ()])
    with pytest.raises(BadValue, match="1 answers and references for 2"):
        vqa_accuracy(["a"], [["a"], ["b"]])
