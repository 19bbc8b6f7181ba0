"""One self-contained HTML page of tables and figures; it loads nothing from anywhere."""

from __future__ import annotations

from proxyfda.results import diagnosed, markup, per_class, run_list
from proxyfda.results.markup import Section
from proxyfda.results.summary import Summary
from proxyfda.results.tables import blocks

__all__ = ["page"]

_SECTIONS = {
    "base2new": (
        "Base to new",
        "Trained on one half of a dataset's classes (base), tested on these and on the other half "
        "(new), which only the names of the classes describe. H is the harmonic mean of both. A "
        "Δnew below zero is what training made the model forget: zero-shot CLIP, which is not "
        "trained, is better there.",
    ),
    "fewshot": ("Few-shot", "Trained on a few images of every class, tested on all classes."),
    "cross_dataset": (
        "Cross-dataset transfer",
        "Trained on one dataset (source), tested as it is on all others.",
    ),
    "domain_generalization": (
        "Domain generalisation",
        "Trained on one dataset (source), tested on the same classes in images of other kinds.",
    ),
    "zeroshot": ("Zero-shot", "The pre-trained model without any training."),
    "finetune": (
        "Tuning end to end",
        "The image encoder is tuned on one dataset; then a linear probe, a linear classifier on "
        "its features, is fitted on this dataset and on all others. A_LP is what was learned, "
        "Δ_LP and ΔZS what became of the others: below zero is forgetting.",
    ),
    "continual": (
        "Tasks in a row",
        "One encoder is tuned on several datasets, one after the other, and probed on all of them "
        "after each.",
    ),
    "captioning": (
        "Captioning",
        "Tuned to describe images of one family of words; what is lost on the other families is "
        "forgetting.",
    ),
    "vqa": (
        "Visual question answering",
        "Tuned to answer questions on one family of words; what is lost on the other families is "
        "forgetting.",
    ),
}
"""Table -> title of its section, and what it is about, in the order of the page."""

_FIGURES = {
    "base_new": (
        "base2new",
        "Base against new accuracy; arrows lead from the plain trainer to the regularised.",
    ),
    "delta_new": ("base2new", "New accuracy relative to zero-shot CLIP."),
    "fewshot": ("fewshot", "Accuracy on all classes against images per class."),
    "forgetting": (
        "finetune",
        "Accuracy on the tuned dataset against forgetting; above and right is better.",
    ),
    "strengths": ("finetune", "Accuracy and forgetting over λ on the validation split."),
    "wise_ft": (
        "finetune",
        "Accuracy and forgetting over α, from the pre-trained weights to the tuned ones.",
    ),
    "continual": ("continual", "Accuracy after each task of a row."),
    "captioning": (
        "captioning",
        "CIDEr on the tuned family against its change on the others; above and right is better.",
    ),
    "vqa": (
        "vqa",
        "Accuracy on the tuned family against its change on the others; above and right is better.",
    ),
    "training": ("training", "Training: means over seeds, their range as a band."),
}
"""Beginning of a figure's name -> its place and its caption."""


def page(
    records,
    tables,
    comparisons=None,
    outputs=(),
    curves=True,
    runs=(),
    split="test",
    diagnoses=(),
    spoken=(),
):
    """The page as a string.

    Args:
        records: what :func:`~proxyfda.results.collect` returns.
        tables: :class:`~proxyfda.results.Summary` by protocol.
        comparisons: what :func:`~proxyfda.results.compare` returns.
        outputs: the output folders, to be named.
        curves: whether to read the event files for training curves.
        runs: what :func:`~proxyfda.results.probes.read_probes` returns.
        split: of their probes.
        diagnoses: what :func:`~proxyfda.results.diagnosed.find` returns.
        spoken: what :func:`~proxyfda.results.image_to_text.read_image_to_text` returns.
    """
    begun = run_list.begun(records, runs, split, spoken)
    drawn = _figures(tables, records if curves else None, runs, split)
    sections = [_section(name, tables, comparisons, drawn) for name in _order(tables)]
    if diagnoses:
        sections.append(diagnosed.section(diagnoses))
    by_class = per_class.parts(records)
    if by_class:
        sections.append(Section("Classes", [markup.paragraph(per_class.CAPTION), *by_class]))
    if drawn.get("training"):
        sections.append(Section("Training", drawn["training"]))
    if begun:
        lacking = markup.titled("What was run", "Incomplete runs", run_list.incomplete(begun))
        sections.append(Section("What was run", [run_list.settings(begun), lacking]))
    where = f"From {', '.join(map(str, outputs))}. " if outputs else ""
    head = markup.paragraph(where + (run_list.counted(begun) if begun else ""))
    return markup.document("Results", head, sections)


def _order(tables):
    """Names of sections: the known ones in their order, then the others; a matrix has none."""
    names = [name for name in tables if not name.endswith("_matrix")]
    names += [name for name in map(_whole, tables) if name not in names]
    return [*(name for name in _SECTIONS if name in names),
            *(name for name in dict.fromkeys(names) if name not in _SECTIONS)]  # fmt: skip


def _whole(name):
    """The table whose section a table stands in."""
    return name[: -len("_matrix")] if name.endswith("_matrix") else name


def _section(name, tables, comparisons, drawn):
    title, about = _SECTIONS.get(name, (name.replace("_", " ").capitalize(), ""))
    parts, titles = [markup.paragraph(about)], []
    for own in (name, f"{name}_matrix"):
        shown = comparisons if own == "base2new" else None
        for block in blocks(tables[own], shown) if own in tables else ():
            if block.title in titles:  # one place on the page for each
                parts.append(markup.table(block))
            else:
                parts.append(markup.titled(title, block.title, markup.table(block)))
                titles.append(block.title)
        if own == name:
            parts += drawn.pop(name, [])
    return Section(title, parts, titles if len(titles) > 1 else [])


def _figures(tables, records, runs, split):
    """Figures in HTML by protocol; those of training are folded."""
    from proxyfda.results.curves import read_curves
    from proxyfda.results.figures import figures

    curves = read_curves(records) if records is not None else None
    found = {}
    for name, figure in figures(tables.get("base2new", Summary([])), tables, curves, runs, split):
        kind = next(kind for kind in _FIGURES if name.startswith(kind))
        place, caption = _FIGURES[kind]
        if isinstance(figure, str):
            html = markup.paragraph(f"Figure {name} is left out: {figure}.")
        else:
            html = markup.drawn_figure(figure, f"{caption}{_of(name, kind)}")
            if kind == "training":
                html = markup.folded(name[len("training_") :], html)
        found.setdefault(place, []).append(html)
    return found


def _of(name, kind):
    tail = name[len(kind) + 1 :].replace("_", ", ")
    return f" {tail}." if tail and kind != "training" else ""
