"""What models that caption images or answer questions forget, as tables.

How numbers are made, from the scores of a run that was tuned on the family X:

* score: CIDEr times 100, or VQA accuracy in percent, on the test examples of X.
* Δ: mean over the other families of the change of the score, tuned minus pre-trained. Negative is
  forgetting. A family that the run or the pre-trained model was not asked about is named below.
* gain: Δ minus that of the plain tuning of the same seed.
* A_LP, Δ_LP: the same of linear probes of the image encoder, where families have classes.
* Numbers are means over seeds, ± is the sample standard deviation over them (n - 1). Runs of other
  models, or tuned on another family, are never in one table.

VQA accuracy: Antol et al., ICCV 2015, arXiv 1505.00468; CIDEr: Vedantam et al., CVPR 2015, arXiv
1411.5726.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from proxyfda.experiments import layout
from proxyfda.experiments import record as results_file
from proxyfda.names import METHODS, PRETRAINED
from proxyfda.results.names import title_of, trainer_order
from proxyfda.results.runs import Record, details_of, labelled_folders
from proxyfda.results.summary import Summary
from proxyfda.results.tables import Block, cell, notes_of, seeds_cell
from proxyfda.utils.errors import NotFound, UserError

__all__ = ["SpokenRow", "SpokenRun", "read_image_to_text", "summarise_image_to_text"]

OTHERS = "others"
MEASURES = {"captioning": "CIDEr", "vqa": "VQA accuracy"}
_FREE = {"seed", "method", "weight", "tune_on"}
"""Options that may differ between rows, or between a row's runs."""


@dataclass(frozen=True)
class SpokenRun:
    """A run, complete or not.

    ``family`` was tuned on; ``result`` is empty and ``fault`` says why where there is none.
    """

    protocol: str
    family: str
    name: str
    config: str
    seed: int
    folder: str
    label: str = ""
    result: dict | None = None
    fault: str = ""

    @property
    def options(self) -> dict:
        """That all runs of a table have to share."""
        found = (self.result or {}).get("cfg", {})
        return {key: value for key, value in found.items() if key not in _FREE}

    @property
    def record(self) -> Record:
        """The run as lists of runs have it."""
        return Record(
            part="all",
            dataset=self.family,
            trainer=self.name,
            config=self.config,
            shots=-1,
            seed=self.seed,
            accuracy=float(self.result["accuracy"]) if self.result else None,
            fault=self.fault,
            title=self.family,
            folder=self.folder,
            protocol=self.protocol,
            label=self.label,
            details=details_of(self.result) if self.result else {},
        )


@dataclass(frozen=True)
class SpokenRow:
    """A line of a table; ``None`` where there is no number.

    ``tuned_on`` is the family that was tuned on; ``dataset`` is the family that the numbers are of,
    or ``others`` for the mean over all but the tuned one. ``score`` is CIDEr or VQA accuracy,
    ``delta`` its change by tuning, ``gain`` that minus plain tuning's; ``linear_probe`` and
    ``linear_probe_delta`` are of the image encoder.
    """

    model: str
    protocol: str
    tuned_on: str
    dataset: str
    title: str
    name: str
    trainer: str
    config: str
    weight: float | None
    seeds: tuple
    score: float | None = None
    score_std: float | None = None
    delta: float | None = None
    delta_std: float | None = None
    gain: float | None = None
    gain_std: float | None = None
    linear_probe: float | None = None
    linear_probe_std: float | None = None
    linear_probe_delta: float | None = None
    linear_probe_delta_std: float | None = None
    n_datasets: int = 1
    complete: bool = True


def read_image_to_text(*outputs: str) -> list[SpokenRun]:
    """All runs of both protocols below one or several output folders.

    Args:
        outputs: folders, or ``LABEL=FOLDER``.

    Raises:
        NotFound: an output folder does not exist.
    """
    found = []
    for folder, label in labelled_folders(outputs):
        for path in layout.run_folders(str(folder)):
            place = layout.parse(path)
            if place is not None and place.protocol in layout.IMAGE_TO_TEXT:
                found.append(_read(path, place, label))
    return found


def _read(path: str, place: layout.Place, label: str) -> SpokenRun:
    key = (place.protocol, place.dataset, place.name, place.config, place.seed, path, label)
    try:
        result = results_file.read(path)
    except NotFound:
        return SpokenRun(*key, fault="not finished")
    except UserError as error:
        return SpokenRun(*key, fault=str(error))
    if "scores" not in result:
        return SpokenRun(*key, fault=f"{path} has a result without scores")
    for what, expected in (("name", place.name), ("seed", place.seed)):
        if result.get(what) != expected:
            return SpokenRun(*key, fault=f"{path} is of another run, its {what} is {result[what]}")
    return SpokenRun(*key, result=result)


def summarise_image_to_text(runs: Iterable[SpokenRun], protocol: str) -> Summary:
    """The tables of one protocol.

    Args:
        runs: what :func:`read_image_to_text` returns.
        protocol: ``captioning`` or ``vqa``.

    Returns:
        :class:`~proxyfda.results.Summary` of :class:`SpokenRow`: of each model and tuned family the
        rows of all methods on it, on the others together, and on each of them.
    """
    runs = [run for run in runs if run.protocol == protocol]
    rows: list[SpokenRow] = []
    notes: list[str] = []
    uniform = True
    for model in dict.fromkeys(_model(run) for run in runs):
        own = [run for run in runs if _model(run) == model]
        before = [run for run in own if run.name == PRETRAINED]
        for family in dict.fromkeys(run.family for run in own if run.name != PRETRAINED):
            tuned = [run for run in own if run.family == family and run.name != PRETRAINED]
            part = _Table(model, protocol, family, tuned, before)
            rows += part.rows()
            notes += part.notes
            uniform = uniform and part.uniform
    return Summary(rows, list(dict.fromkeys(notes)), uniform, _blocks)


def _model(run: SpokenRun) -> str:
    """The folder of a model is the beginning of a config's."""
    name = run.config.split("-weight_")[0]
    return f"{run.label}: {name}" if run.label else name


class _Table:
    """All methods tuned on one family.

    Args:
        runs: tuned ones.
        before: runs of the model as it was pre-trained, one or none.
    """

    def __init__(
        self,
        model: str,
        protocol: str,
        family: str,
        runs: Sequence[SpokenRun],
        before: Sequence[SpokenRun],
    ):
        self.place = {"model": model, "protocol": protocol, "tuned_on": family}
        self.runs, self.family, self.notes = list(runs), family, []
        done = [run for run in runs if run.result]
        # Folders spell families without blanks.
        self.title = next((run.result.get("source") or family for run in done), family)
        self.before = next((run.result for run in before if run.result), None)
        if self.before is None:
            self.notes.append(f"No Δ: the model {model} as it was pre-trained was not asked.")
        options = [run.options for run in (*done, *(run for run in before if run.result))]
        differing = sorted({k for one in options for k in one if one[k] != options[0].get(k)})
        self.uniform = not differing
        if differing:
            self.notes.append(
                f"Runs of {model} tuned on {self.title} differ in {', '.join(differing)}, so that "
                "rows may not be comparable."
            )
        asked = [set(run.result["scores"]) for run in done]
        if self.before:
            asked.append(set(self.before["scores"]))
        shared = set.intersection(*asked) if asked else set()
        self.others = [f for f in (done[0].result["scores"] if done else ())
                       if f in shared and f != self.title]  # fmt: skip
        unshared = sorted(set().union(*asked) - shared)
        if unshared:
            self.notes.append(f"Not every run was asked about {', '.join(unshared)}.")

    def rows(self) -> list[SpokenRow]:
        """Of the tuned family, then of the others together, then of each."""
        groups: dict[tuple, list[SpokenRun]] = {}
        for run in self.runs:
            groups.setdefault((run.name, run.config), []).append(run)
        seeds = sorted({run.seed for run in self.runs})
        ordered = sorted(groups, key=lambda g: (trainer_order(g[0]), _weight_of(g[1])))
        found = []
        for dataset, families in [
            (self.title, [self.title]),
            (OTHERS, self.others),
            *((family, [family]) for family in self.others),
        ]:
            if families:
                found += self._of(dataset, families, ordered, groups, seeds)
        for name, config in ordered:
            gaps = [run for run in groups[name, config] if not run.result]
            for run in gaps:
                why = "" if run.fault == "not finished" else f" ({run.fault})"
                self.notes.append(f"Missing: {title_of(name)}, seed {run.seed}{why}.")
            lacking = set(seeds) - {run.seed for run in groups[name, config]}
            if lacking:
                listed = ", ".join(map(str, sorted(lacking)))
                self.notes.append(f"Missing: {title_of(name)}, seed {listed}.")
        return found

    def _of(self, dataset, families, ordered, groups, seeds) -> list[SpokenRow]:
        common = {**self.place, "tuned_on": self.title, "dataset": dataset, "title": dataset,
                  "n_datasets": len(families)}  # fmt: skip
        found = []
        if self.before and all(f in self.before["scores"] for f in families):
            found.append(SpokenRow(
                **common, name=PRETRAINED, trainer=PRETRAINED, config=self.place["model"],
                weight=None, seeds=(), score=_mean(self.before, "scores", families),
                linear_probe=_mean(self.before, "probes", families),
            ))  # fmt: skip
        naive = {run.seed: run.result for run in self.runs
                 if run.name == METHODS["naive"] and run.result}  # fmt: skip
        for name, config in ordered:
            done = {run.seed: run.result for run in groups[name, config] if run.result}
            numbers: dict[str, float | None] = {}
            for key, values in self._numbers(done, naive, families, name).items():
                kept = [value for value in values if value is not None]
                whole = bool(kept) and len(kept) == len(values)
                numbers[key] = statistics.fmean(kept) if whole else None
                spread = statistics.stdev(kept) if whole and len(kept) > 1 else None
                numbers[f"{key}_std"] = spread
            regulariser = next((r.get("regulariser") for r in done.values()), None)
            found.append(SpokenRow(
                **common, name=title_of(name), trainer=name, config=config,
                weight=regulariser["weight"] if regulariser else None, seeds=tuple(sorted(done)),
                complete=sorted(done) == seeds and self.before is not None, **numbers,
            ))  # fmt: skip
        return found

    def _numbers(self, done, naive, families, name) -> dict[str, list]:
        """Of each seed, in order."""

        def change(result, kind):
            values = (_mean(result, kind, families), _mean(self.before, kind, families))
            return None if None in values else values[0] - values[1]

        found: dict[str, list] = {"score": [], "delta": [], "linear_probe": [],
                                  "linear_probe_delta": [], "gain": []}  # fmt: skip
        for seed, result in sorted(done.items()):
            delta, plain = change(result, "scores"), change(naive.get(seed), "scores")
            found["score"].append(_mean(result, "scores", families))
            found["delta"].append(delta)
            found["linear_probe"].append(_mean(result, "probes", families))
            found["linear_probe_delta"].append(change(result, "probes"))
            none = None in (delta, plain) or name == METHODS["naive"]
            found["gain"].append(None if none else delta - plain)
        return found


def _mean(result: dict | None, kind: str, families: Sequence[str]) -> float | None:
    """Of ``scores`` or ``probes`` over families; None where one is lacking."""
    found = (result or {}).get(kind) or {}
    if not families or not all(family in found for family in families):
        return None
    key = "score" if kind == "scores" else "linear_probe"
    return statistics.fmean(found[family][key] for family in families)


def _weight_of(config: str) -> float:
    """λ in the name of a config's folder, to sort by."""
    _, _, word = config.partition("-weight_")
    try:
        return float(word)
    except ValueError:
        return 0.0


# -- as text --------------------------------------------------------------------------------------


def _blocks(summary: Summary) -> list[Block]:
    found = []
    for model, family in dict.fromkeys((row.model, row.tuned_on) for row in summary.rows):
        rows = [row for row in summary.rows if (row.model, row.tuned_on) == (model, family)]
        found += _blocks_of(model, family, rows)
    if found:
        found[-1].notes.extend(notes_of(summary))
    return found


def _blocks_of(model: str, family: str, rows: Sequence[SpokenRow]) -> list[Block]:
    protocol = rows[0].protocol
    measure = MEASURES[protocol]
    what = {"captioning": "Captioning", "vqa": "Visual question answering"}[protocol]
    probed = any(row.linear_probe is not None for row in rows)
    own = [row for row in rows if row.dataset == family]
    others = {(row.trainer, row.config): row for row in rows if row.dataset == OTHERS}
    lines = []
    for row in own:
        rest = others.get((row.trainer, row.config))
        score = cell(row.score, row.score_std)
        line = [family if row is own[0] else "", row.name, _weight(row), score]
        line += [cell(rest.score, rest.score_std), cell(rest.delta, rest.delta_std, "+"),
                 cell(rest.gain, rest.gain_std, "+")] if rest else ["-"] * 3  # fmt: skip
        if probed:
            line += [cell(row.linear_probe, row.linear_probe_std)]
            line += [cell(rest.linear_probe_delta, rest.linear_probe_delta_std, "+")
                     if rest else "-"]  # fmt: skip
        lines.append([*line, "" if row.trainer == PRETRAINED else seeds_cell(row)])
    heads = ("tuned on", "method", "λ", measure, "others", "Δ", "gain",
             *(("A_LP", "Δ_LP") if probed else ()), "seeds")  # fmt: skip
    unit = " x 100" if protocol == "captioning" else " in %"
    caption = (
        f"{measure}{unit} on the tuned family and mean over the others; mean ± "
        "sample standard deviation (n - 1) over seeds. Δ: change by tuning on the others; "
        "gain: Δ minus that of naive with the same seed"
        + ("; A_LP, Δ_LP: linear probes of the image encoder in the same way" if probed else "")
        + "."
    )
    found = [Block(f"{what}, {model}, tuned on {family}", heads, lines, caption)]
    names = [row.dataset for row in rows if row.dataset not in (family, OTHERS)]
    families = list(dict.fromkeys(names))
    if families:
        found.append(_by_family(what, model, family, families, rows, measure))
    return found


def _by_family(what, model, family, families, rows, measure) -> Block:
    """The change on each other family."""
    lines = []
    for first in [row for row in rows if row.dataset == family]:
        line = [family if not lines else "", first.name, _weight(first)]
        for other in families:
            row = next(r for r in rows if (r.dataset, r.trainer, r.config)
                       == (other, first.trainer, first.config))  # fmt: skip
            line.append(
                cell(row.score) if first.trainer == PRETRAINED
                else cell(row.delta, row.delta_std, "+")
            )  # fmt: skip
        lines.append(line)
    caption = f"{measure} of the pre-trained model on each other family, and its change by tuning."
    return Block(
        f"{what}, {model}, tuned on {family}: each other family",
        ("tuned on", "method", "λ", *families), lines, caption,
    )  # fmt: skip


def _weight(row: SpokenRow) -> str:
    return "" if row.weight is None else f"{row.weight:g}"
