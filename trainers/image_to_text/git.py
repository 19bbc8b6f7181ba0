"""GIT: a causal language model whose text follows the tokens of the image.

Wang et al., "GIT: A Generative Image-to-text Transformer for Vision and Language", TMLR 2022,
arXiv 2205.14100; ``GitForCausalLM`` of transformers. A text is ``[CLS] words [SEP]``; a question
stands before its answer, ``[CLS] question answer [SEP]``, and only the answer counts in the loss.
"""

from __future__ import annotations

import torch

from trainers.image_to_text.texts import IGNORED, Texts, padded

__all__ = ["Git"]


class Git(Texts):
    """``GitForCausalLM``."""

    captions = answers = True

    def __init__(self, model, tokenizer):
        super().__init__(model, tokenizer, model.git.image_encoder, model.config)

    def ask(self, questions):
        """See :meth:`Texts.ask`."""
        return [[self.begin, *ids] for ids in self.encoded(questions)]

    def training(self, questions, texts):
        """See :meth:`Texts.training`."""
        asked, said = self.ask(questions), [[*ids, self.end] for ids in self.encoded(texts)]
        ids, mask = self.padded([before + after for before, after in zip(asked, said)])
        counted = [[IGNORED] * len(before) + after for before, after in zip(asked, said)]
        return {"input_ids": ids, "attention_mask": mask, "labels": padded(counted, IGNORED)[0]}

    def generate(self, pixels, asked, **options):
        """See :meth:`Texts.generate`."""
        found = self.model.generate(
            pixel_values=pixels,
            input_ids=asked,
            attention_mask=torch.ones_like(asked),
            eos_token_id=self.end,
            pad_token_id=self.tokenizer.pad_token_id,
            **options,
        )
        return found[:, asked.shape[1] :]
