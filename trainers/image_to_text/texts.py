"""How a family of models takes texts: what the families have in common."""

from __future__ import annotations

import torch

from proxyfda.utils.errors import BadModel, BadValue

__all__ = ["IGNORED", "Texts", "padded"]

IGNORED = -100
"""Label of tokens that do not count in the loss, in all models of transformers."""


class Texts:
    """The texts of one family of models; a family is a subclass.

    Attributes:
        captions: whether the family says something without a question.
        answers: whether it answers questions.
        vision: the image encoder; its first output is tokens [N, T, d] behind the last norm, the
            class token first.
        begin, end: token ids with which what the model says begins and ends.
        longest: how many tokens of text it takes.
    """

    captions = answers = False

    def __init__(self, model, tokenizer, vision, config):
        if tokenizer.pad_token_id is None:
            raise BadModel("the tokenizer has no token to pad with; give it a pad_token")
        self.model, self.tokenizer, self.vision = model, tokenizer, vision
        self.begin, self.end = config.bos_token_id, config.eos_token_id
        self.longest = config.max_position_embeddings

    def ask(self, questions):
        """Token ids, a list for each question, that the model is given to go on from."""
        raise NotImplementedError

    def training(self, questions, texts):
        """Inputs [N, L] of the model by name, ``labels`` among them: the texts alone count."""
        raise NotImplementedError

    def generate(self, pixels, asked, **options):
        """Token ids [N, L] of what is said to images [N, 3, H, W] and questions [N, Q]."""
        raise NotImplementedError

    def encoded(self, texts, framed=False):
        """Token ids, a list for each text; ``framed``: with the tokenizer's own special tokens.

        Raises:
            BadValue: a text of more tokens than the model takes.
        """
        if not texts:
            return []
        found = self.tokenizer(list(texts), add_special_tokens=framed)["input_ids"]
        for text, ids in zip(texts, found):
            if len(ids) > self.longest - 2:
                raise BadValue(
                    f"the text {text[:60]!r} has {len(ids)} tokens, the model takes "
                    f"{self.longest - 2}; shorten it or leave it out"
                )
        return found

    def padded(self, rows):
        """:func:`padded` with the tokenizer's padding."""
        return padded(rows, self.tokenizer.pad_token_id)


def padded(rows, value):
    """Lists of numbers as a tensor [N, L], filled up on the right, and its mask, 1 for what is
    listed.

    >>> padded([[1, 2], [3]], 0)
    (tensor([[1, 2],
            [3, 0]]), tensor([[1, 1],
            [1, 0]]))
    """
    length = max(map(len, rows))
    ids = torch.tensor([[*row, *[value] * (length - len(row))] for row in rows])
    return ids, torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in rows])
