"""Models that say something about an image: captions, and answers to questions.

Needs transformers, which is imported when a model is loaded and not before.
"""
