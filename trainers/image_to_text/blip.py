"""BLIP: a text decoder that looks at the image, or at the question as read beside the image.

Li et al., "BLIP: Bootstrapping Language-Image Pre-training for Unified Vision-Language
Understanding and Generation", ICML 2022, arXiv 2201.12086; ``BlipForConditionalGeneration`` and
``BlipForQuestionAnswering`` of transformers. What the decoder says is ``[DEC] words [SEP]``, where
``[DEC]`` is ``text_config.bos_token_id`` and ``[SEP]`` is ``text_config.sep_token_id``: with these
the models of transformers begin and end what they generate.
"""

from __future__ import annotations

import torch

from trainers.image_to_text.texts import IGNORED, Texts

__all__ = ["BlipAnswers", "BlipCaptions"]


def _keep_mask(module, args, kwargs):
    """transformers 5 gives the mask of what cross-attention looks at under another name than the
    one it is read by, so that the padding of questions would count."""
    return args, {"encoder_attention_mask": kwargs.get("attention_mask"), **kwargs}


class _Blip(Texts):
    def __init__(self, model, tokenizer):
        config = model.config.text_config
        super().__init__(model, tokenizer, model.vision_model, config)
        self.end = config.sep_token_id

    def _said(self, texts):
        """Token ids [N, L] of what is to be said, their mask, and the labels."""
        ids, mask = self.padded([[self.begin, *ids, self.end] for ids in self.encoded(texts)])
        return ids, mask, ids.masked_fill(mask == 0, IGNORED)


class BlipCaptions(_Blip):
    """``BlipForConditionalGeneration``."""

    captions = True

    def ask(self, questions):
        """See :meth:`Texts.ask`."""
        # The model's generate() takes off the last token of what it is given.
        return [[self.begin, self.end]] * len(questions)

    def training(self, questions, texts):
        """See :meth:`Texts.training`."""
        ids, mask, labels = self._said(texts)
        return {"input_ids": ids, "attention_mask": mask, "labels": labels}

    def generate(self, pixels, asked, **options):
        """See :meth:`Texts.generate`."""
        mask = torch.ones_like(asked)
        found = self.model.generate(pixels, input_ids=asked, attention_mask=mask, **options)
        return found[:, 1:]


class BlipAnswers(_Blip):
    """``BlipForQuestionAnswering``, which reads the question with an encoder of its own."""

    answers = True

    def __init__(self, model, tokenizer):
        super().__init__(model, tokenizer)
        for name, module in model.named_modules():
            if name.endswith("crossattention.self"):
                module.register_forward_pre_hook(_keep_mask, with_kwargs=True)

    def ask(self, questions):
        """See :meth:`Texts.ask`."""
        return self.encoded(questions, framed=True)

    def training(self, questions, texts):
        """See :meth:`Texts.training`."""
        asked, asked_mask = self.padded(self.ask(questions))
        said, said_mask, labels = self._said(texts)
        return {
            "input_ids": asked,
            "attention_mask": asked_mask,
            "decoder_input_ids": said,
            "decoder_attention_mask": said_mask,
            "labels": labels,
        }

    def generate(self, pixels, asked, **options):
        """See :meth:`Texts.generate`."""
        mask = torch.ones_like(asked)
        found = self.model.generate(asked, pixels, attention_mask=mask, **options)
        return found[:, 1:]
