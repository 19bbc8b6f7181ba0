"""A model of transformers that says something about images, whatever its family."""

from __future__ import annotations

import torch

from datasets.image_text import read_image
from proxyfda.utils.errors import BadModel, BadValue
from trainers.image_to_text.blip import BlipAnswers, BlipCaptions
from trainers.image_to_text.git import Git

__all__ = ["FAMILIES", "ImageToText", "pooled"]

FAMILIES = {
    "GitForCausalLM": Git,
    "BlipForConditionalGeneration": BlipCaptions,
    "BlipForQuestionAnswering": BlipAnswers,
}
"""Classes of transformers, and how each takes texts."""


def pooled(tokens):
    """The features [N, d] of an image encoder's tokens [N, T, d]: the class token.

    In CLIP's encoder, which GIT has, this is what CLIP projects. BLIP's ``pooler_output`` is not
    taken since its decoder does not use it: no gradient would arrive there.
    """
    return tokens[:, 0]


class ImageToText:
    """A model that captions images or answers questions about them, with what reads its inputs.

    A regulariser is attached to the image encoder::

        model = ImageToText.load("path/of/blip")
        proxyfda.attach(model.vision, regulariser, weight, features=pooled)

    Args:
        model: of transformers, one of :data:`FAMILIES`.
        tokenizer: of transformers, with a token to pad with.
        image_processor: of transformers, or a function: makes pixels [3, H, W] of PIL images.

    Attributes:
        model: as given; ``model(**x.batch(examples)).loss`` is what is tuned.
        vision: its image encoder, whose first output is tokens [N, T, d].
        tokenizer, image_processor: as given.

    Raises:
        BadModel: a model of another class, or a tokenizer without padding.
    """

    def __init__(self, model, tokenizer, image_processor):
        name = type(model).__name__
        if name not in FAMILIES:
            raise BadModel(f"{name} is none of the models that fit, {', '.join(FAMILIES)}")
        self.model, self.tokenizer, self.image_processor = model, tokenizer, image_processor
        self.texts = FAMILIES[name](model, tokenizer)
        self.vision = self.texts.vision

    @classmethod
    def load(cls, place, device="cpu", dtype=torch.float32):
        """A model that was saved in a folder, or one of the hub; see
        :func:`trainers.image_to_text.loading.load`."""
        from trainers.image_to_text.loading import load

        model, tokenizer, image_processor = load(place, tuple(FAMILIES))
        return cls(model.to(device, dtype), tokenizer, image_processor)

    @staticmethod
    def check_place(place, questions):
        """Refuse what is no model that answers questions (or captions images), by its config
        alone; raises as :meth:`load` does."""
        from trainers.image_to_text.loading import named_class

        _check_kind(named_class(place, tuple(FAMILIES)), questions, place)

    def save(self, folder):
        """Write model, tokenizer and image processor into a folder that :meth:`load` reads."""
        for part in (self.model, self.tokenizer, self.image_processor):
            part.save_pretrained(folder)

    def pixels(self, images, device=None):
        """Images as the model takes them, [N, 3, H, W] in its type.

        Args:
            images: PIL images, or pixels [N, 3, H, W] that were made before.
            device: where they go; None: the model's.
        """
        if not isinstance(images, torch.Tensor):
            images = self.image_processor(images=list(images), return_tensors="pt")["pixel_values"]
        return images.to(device or self.model.device, self.model.dtype)

    def features(self, images):
        """Pooled features [N, d] of the image encoder, without gradient."""
        with torch.no_grad():
            return pooled(self.vision(self.pixels(images))[0])

    def batch(self, examples, images=None, device=None):
        """Inputs of the model to be trained on examples: ``model(**x.batch(examples))``.

        Only what is to be said counts in the loss: neither questions nor padding do.

        Args:
            examples: list of N :class:`~datasets.image_text.Example`, of which the first text is
                said (see :func:`~datasets.image_text.one_text_each`).
            images: see :meth:`pixels`; None: the files of the examples are read.
            device: see :meth:`pixels`; ``cpu`` in the worker of a loader.

        Returns:
            dict of tensors; ``pixel_values`` [N, 3, H, W], ``labels`` and
            further ones [N, L].

        Raises:
            BadValue: a question to a model that only captions, or the other way round; a text
                that is too long.
        """
        self.check(examples)
        questions = [example.question for example in examples]
        found = self.texts.training(questions, [example.texts[0] for example in examples])
        found = {"pixel_values": self.pixels(_images(examples, images), device), **found}
        return {name: value.to(device or self.model.device) for name, value in found.items()}

    def answers(self, examples, images=None, *, num_beams=1, max_new_tokens=20, batch_size=64):
        """What the model says to each example, without special tokens: always the same.

        Args:
            examples: list of N examples; their texts are not looked at.
            images: see :meth:`batch`.
            num_beams: 1 takes the likeliest token each time, more keeps as many candidates.
            max_new_tokens: after so many tokens it is cut off.
            batch_size: how many images are encoded at a time.

        Returns:
            list of N texts.

        Raises:
            BadValue: as :meth:`batch`.
        """
        self.check(examples)
        asked = self.texts.ask([example.question for example in examples])
        said = [""] * len(examples)
        training = self.model.training
        self.model.eval()
        try:
            for chunk in _of_one_length(asked, batch_size):
                given = [examples[i] for i in chunk]
                part = None if images is None else _chosen(images, chunk)
                texts = self._say(given, part, [asked[i] for i in chunk], num_beams, max_new_tokens)
                for i, text in zip(chunk, texts):
                    said[i] = text
        finally:
            self.model.train(training)
        return said

    def check(self, examples):
        """Refuse examples that are of another kind than what the model does."""
        for example in examples:
            _check_kind(type(self.model).__name__, bool(example.question), example.image)

    @torch.no_grad()
    def _say(self, examples, images, asked, num_beams, max_new_tokens):
        room = self.texts.longest - len(asked[0])
        found = self.texts.generate(
            self.pixels(_images(examples, images)),
            torch.tensor(asked, device=self.model.device),
            num_beams=num_beams,
            max_new_tokens=min(max_new_tokens, room),
            do_sample=False,
            use_cache=True,  # Trainer saves models without
        )
        texts = self.tokenizer.batch_decode(found, skip_special_tokens=True)
        return [" ".join(text.split()) for text in texts]


def _check_kind(name, question, where):
    """Refuse a question, or a caption, that a class of models does not take."""
    family = FAMILIES[name]
    if question and not family.answers:
        raise BadValue(
            f"{name} only captions images, and a question is asked ({where}); give a model for "
            "questions, such as BlipForQuestionAnswering or GitForCausalLM"
        )
    if not question and not family.captions:
        raise BadValue(
            f"{name} only answers questions, and a caption is asked for ({where}); give a model "
            "for captions, such as BlipForConditionalGeneration or GitForCausalLM"
        )


def _images(examples, images):
    return [read_image(example.image) for example in examples] if images is None else images


def _chosen(images, places):
    return images[places] if isinstance(images, torch.Tensor) else [images[i] for i in places]


def _of_one_length(rows, size):
    """Places of rows, at most ``size`` together, all of one length.

    Padding before a question would shift GIT's positions, and BLIP's decoder looks at the padding
    behind one while it generates.
    """
    lengths = {}
    for i, row in enumerate(rows):
        lengths.setdefault(len(row), []).append(i)
    for places in lengths.values():
        for start in range(0, len(places), size):
            yield places[start : start + size]
