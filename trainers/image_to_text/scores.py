"""How good texts are: CIDEr of captions and the accuracy of VQA, both as papers print them."""

from __future__ import annotations

import re
from collections.abc import Sequence

from proxyfda.utils.errors import BadValue, NotInstalled

__all__ = ["caption_words", "cider", "ciders", "normalised_answer", "vqa_accuracy"]

# -- captions -------------------------------------------------------------------------------------

_WORDS = re.compile(
    r"\b(?:[^\W\d_]\.){2,}"  # u.s.
    r"|\b(?:mr|mrs|ms|dr|st|jr|sr|vs)\."
    r"|\b(?:can(?=not\b)|gon(?=na\b)|wan(?=na\b))"
    r"|'(?:s|re|ve|ll|d|m)\b"
    r"|[^\W_]+(?:(?:['.\-_/]|(?<=\d)[,:](?=\d))[^\W_]+)*"
    r"|[^\w\s]"
)
_ENDINGS = re.compile(r"(?<=[^\W_])(n't|'(?:s|re|ve|ll|d|m))$")
_DROPPED = set(".?!,:;-'\"`‘“”…–—")


def caption_words(caption: str) -> list[str]:
    """The words of a caption for :func:`cider`, by rules after the Penn Treebank's.

    Lower case; words of letters and digits stay whole over hyphens, slashes, points and apostrophes
    inside; ``n't 's 're 've 'll 'd 'm`` at their end are words of their own; of other characters
    ``. ? ! , : ; -``, quotes and dashes are dropped and each of the rest is a word.

    >>> caption_words("A man's blue-green hat isn't on, at 7:30 P.M.!")
    ['a', 'man', "'s", 'blue-green', 'hat', 'is', "n't", 'on', 'at', '7:30', 'p.m.']
    """
    words = []
    for word in _WORDS.findall(caption.lower().replace("’", "'")):
        if word in _DROPPED:
            continue
        ending = _ENDINGS.search(word)
        words.extend((word[: ending.start()], ending.group()) if ending else (word,))
    return words


def cider(generated: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """CIDEr-D of captions, times 100 as papers print it: the mean of :func:`ciders`."""
    scores = ciders(generated, references)
    return sum(scores) / len(scores)


def ciders(generated: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
    """CIDEr-D of each caption, times 100; 1000 is the most.

    Vedantam et al., "CIDEr: Consensus-based Image Description Evaluation", CVPR 2015, arXiv
    1411.5726, computed by ``pycocoevalcap`` (n-grams of 1 to 4 words, sigma 6, document frequencies
    from the references given here). It differs from the official number in one thing: the official
    evaluation cuts captions into words by Stanford's tokenizer, a Java program, and this one by
    :func:`caption_words`.

    Args:
        generated: a caption for each of N images.
        references: of each image, the captions that people gave.

    Raises:
        BadValue: unequal numbers, fewer than two images (every word is then in every image and
            counts nothing), or an image without a word in its references.
        NotInstalled: no pycocoevalcap.
    """
    try:
        from pycocoevalcap.cider.cider import Cider
    except ImportError as error:
        raise NotInstalled(
            f"CIDEr needs pycocoevalcap ({error}); pip install 'proxyfda[captioning]'"
        ) from error
    _check_pairs("caption", generated, references)
    if len(generated) < 2:
        raise BadValue("CIDEr weighs words by how rare they are over images; give two or more")
    said = {i: [" ".join(caption_words(text))] for i, text in enumerate(generated)}
    wanted = {}
    for i, texts in enumerate(references):
        wanted[i] = [words for words in (" ".join(caption_words(text)) for text in texts) if words]
        if not wanted[i]:
            raise BadValue(f"image {i} has no reference caption with a word in it; leave it out")
    return [100.0 * float(score) for score in Cider().compute_score(wanted, said)[1]]


# -- answers --------------------------------------------------------------------------------------

_NUMBERS = "none one two three four five six seven eight nine ten"
_ARTICLES = {"a", "an", "the"}
_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_CONTRACTIONS = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't
haven't he'd he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've
might've mustn't must've needn't not've o'clock oughtn't 'ow's'at shan't she'd've should've
shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd someone'd've someone'll
someone's something'd something'd've something'll that's there'd there'd've there're there's they'd
they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's what've
when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't
would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've
"""
_DIGITS = {"zero": "0", **{word: str(i) for i, word in enumerate(_NUMBERS.split())}}
_APOSTROPHES = {
    word[:place] + word[place + 1 :]: word
    for word in _CONTRACTIONS.split()
    for place, letter in enumerate(word)
    if letter == "'"
}
_APOSTROPHES["somebody'd"] = "somebodyd"  # so in the official evaluation


def normalised_answer(answer: str) -> str:
    """An answer as VQA compares it: lower case, no articles, no punctuation, digits for the words
    from none to ten, and forgotten apostrophes of contractions put in.

    The rules are those of https://visualqa.org/evaluation.html and of the evaluation published with
    the data (``GT-Vision-Lab/VQA``, a013f00). A mark of punctuation is taken out where the answer
    has it beside a space anywhere, or has a comma between digits, and gives way to a space
    otherwise; points stay before digits.

    >>> normalised_answer("The Two dogs, dont they?"), normalised_answer("on/off"), "1,000 $"
    ("2 dogs don't they", 'on off', '1,000 $')
    """
    found = answer
    comma_in_number = re.search(r"\d,\d", answer)
    for mark in _PUNCTUATION:
        beside_space = f"{mark} " in answer or f" {mark}" in answer
        found = found.replace(mark, "" if beside_space or comma_in_number else " ")
    found = re.sub(r"\.(?!\d)", "", found)
    words = [_DIGITS.get(word, word) for word in found.lower().split()]
    return " ".join(_APOSTROPHES.get(word, word) for word in words if word not in _ARTICLES)


def vqa_accuracy(answers: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """Accuracy of VQA in percent: an answer is right as far as three annotators gave it.

    Antol et al., "VQA: Visual Question Answering", ICCV 2015, arXiv 1505.00468: min(n / 3, 1) where
    n of the annotators gave the answer, averaged over all choices of all annotators but one. As in
    the published evaluation, answers are normalised (:func:`normalised_answer`) unless all
    annotators wrote the same.

    There are ten annotators in VQAv2. With fewer than four, all of those that are left have to
    agree instead of three, and with one that one is not left out.

    Args:
        answers: one for each of N questions.
        references: of each question, the annotators' answers.

    Raises:
        BadValue: unequal numbers, none at all, or a question without references.
    """
    _check_pairs("answer", answers, references)
    scores = [_agreement(answer, given) for answer, given in zip(answers, references)]
    return 100.0 * sum(scores) / len(scores)


def _agreement(answer: str, given: Sequence[str]) -> float:
    answer, *given = (re.sub(r"[\n\t]", " ", text).strip() for text in (answer, *given))
    if len(set(given)) > 1:
        answer, *given = map(normalised_answer, (answer, *given))
    if len(given) == 1:
        return float(answer == given[0])
    needed = min(3, len(given) - 1)
    found = given.count(answer)
    left = [found - (text == answer) for text in given]
    return sum(min(n / needed, 1.0) for n in left) / len(left)


def _check_pairs(what: str, found: Sequence[str], references: Sequence[Sequence[str]]) -> None:
    if len(found) != len(references) or not found:
        raise BadValue(
            f"there are {len(found)} {what}s and references for {len(references)}; give as many of "
            "both, and at least one"
        )
    for i, texts in enumerate(references):
        if isinstance(texts, str) or not texts:
            raise BadValue(f"{what} {i} has the references {texts!r}; give a list of at least one")
