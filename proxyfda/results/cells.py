"""How runs make rows: which belong together, their names, what they lack, and whether they mix
settings. All tables of accuracies are made of these, those of probes too.
"""

from __future__ import annotations

import re
import statistics
from collections import Counter
from typing import NamedTuple

from proxyfda.benchmarks import TITLES
from proxyfda.experiments import layout
from proxyfda.experiments.record import FREE
from proxyfda.names import REFERENCE, is_zero_shot
from proxyfda.results.names import known_first, trainer_order

# What may differ between the runs of one row: it is not a choice of the method.
_FREE = (
    *FREE, "SEED", "USE_CUDA", "VERSION", "DATASET.", "TEST.", "DATALOADER.TEST.",
    "TRAIN.CHECKPOINT_FREQ",
)  # fmt: skip
# Options that name what a run starts from.
_STARTS = ("MODEL.INIT_WEIGHTS", "TRAINER.FINETUNE.START_FROM")


class Group(NamedTuple):
    """What makes one row of a table; ``config`` is the main one."""

    trainer: str
    config: str
    label: str
    log: bool


class Cells:
    """Accuracies by row group, dataset, seed and part.

    The part is ``base`` or ``new``, or for tables on all classes the number of shots. Zero-shot
    runs of all seeds are put together under one seed called ``None``.

    Args:
        records: the runs.
        part: function of a run.
        names: function of the groups in order that gives a dict of their names.
        apart: every config has a row of its own.
        rank: function of a group: its place among those that differ in their configs alone, which
            is otherwise alphabetical.
    """

    def __init__(self, records, part, names=None, apart=False, rank=None):
        runs, self.faults, self._configs, self._backbones = {}, {}, {}, {}
        self._group_of = _groups(records, part, apart)
        for r in records:
            group = self._group_of[family_of(r), r.config]
            place = (group, r.dataset, None if is_zero_shot(r.trainer) else r.seed, part(r))
            if r.accuracy is None:
                self.faults[place] = r.fault
            else:
                runs.setdefault(place, []).append(r.accuracy)
                self._backbones.setdefault(place[:2], set()).add(r.details.get("backbone"))
            self._configs.setdefault(place[:2], set()).add(r.config)
        self.values = {place: statistics.fmean(found) for place, found in runs.items()}
        self.uneven = [place for place, found in runs.items() if max(found) - min(found) > 1e-6]
        self.groups = sorted(set(self._group_of.values()), key=lambda group: row_order(group, rank))
        self._seeds = {}
        for r in records:
            if not is_zero_shot(r.trainer):
                self._seeds.setdefault((r.label, r.log), set()).add(r.seed)
        self.titles = _titles(records)
        self.datasets = sorted(
            self.titles, key=lambda dataset: known_first(TITLES.values(), self.titles[dataset])
        )
        self.names = (names or _names)(self.groups)
        self.parts = {
            group: sorted({place[3] for place in (*self.values, *self.faults) if place[0] == group})
            for group in self.groups
        }

    def group(self, record):
        """The group that a run is in."""
        return self._group_of[family_of(record), record.config]

    def config(self, group, dataset):
        """The config that a row has on a dataset, usually the group's own."""
        return "+".join(sorted(self._configs.get((group, dataset), {group.config})))

    def expected(self, group):
        """The seeds that a row should have: all that any row of the same output has."""
        if is_zero_shot(group.trainer):
            return [None]
        return sorted(self._seeds[group.label, group.log])

    def complete(self, group, dataset, parts):
        """Seeds of which all ``parts`` are there."""
        return [
            seed
            for seed in self.expected(group)
            if all((group, dataset, seed, part) in self.values for part in parts)
        ]

    def means(self, group, datasets, seeds, part):
        """Mean over ``datasets`` for each of ``seeds``; ``None`` if one is missing."""
        places = [[(group, dataset, seed, part) for dataset in datasets] for seed in seeds]
        if not places or any(place not in self.values for row in places for place in row):
            return None
        return [statistics.fmean(self.values[place] for place in row) for row in places]

    def gap(self, group, dataset, parts, name=str):
        """What is missing of a row on a dataset, in words; empty if nothing is."""
        missing = []
        for seed in self.expected(group):
            places = [(group, dataset, seed, part) for part in parts]
            lacking = {p[-1]: self.faults.get(p, "not run") for p in places if p not in self.values}
            whole = len(lacking) == len(parts) and len(set(lacking.values())) == 1
            for part, fault in list(lacking.items())[: 1 if whole else None]:
                words = ["" if seed is None else f"seed {seed}", "" if whole else name(part)]
                missing.append((" ".join(filter(None, words)), fault))
        places = {place[:2] for place in (*self.values, *self.faults)}
        if missing and (group, dataset) not in places:
            return "not run"
        return "; ".join(f"{what} ({fault})" if what else fault for what, fault in missing)

    def zero_shot(self, group, datasets, part):
        """Accuracy of zero-shot CLIP over ``datasets``, as the reference of a row.

        Only results with the same backbone and weights count. Where there are several, it is that
        of the same output and config, otherwise the one that all agree on; ``None`` if there is
        none for one of the datasets.
        """
        found = []
        for dataset in datasets:
            here = {
                other: self.values[other, dataset, None, part]
                for other in self.groups
                if other.trainer == REFERENCE
                and (other, dataset, None, part) in self.values
                and self._backbones[other, dataset] == self._backbones.get((group, dataset))
            }
            own = {g: v for g, v in here.items() if (g.label, g.log) == (group.label, group.log)}
            here = own or here
            config = self.config(group, dataset)
            values = [v for g, v in here.items() if self.config(g, dataset) == config]
            values = values or list(here.values())
            if not values or max(values) - min(values) > 1e-6:
                return None
            found.append(values[0])
        return statistics.fmean(found) if found else None

    def without_reference(self, groups, delta):
        """Sentences on rows that have no difference to zero-shot CLIP.

        Args:
            groups: of the rows.
            delta: the name of the difference.
        """
        if not any(group.trainer == REFERENCE for group in self.groups):
            return [f"There is no {delta} without {REFERENCE} in the same output."]
        together = {}
        for group in groups:
            backbones = {_backbone_in_words(b) for (g, _), found in self._backbones.items()
                         if g == group for b in found}  # fmt: skip
            together.setdefault(" or ".join(sorted(backbones)), []).append(self.names[group])
        return [
            f"No {delta} for {', '.join(names)} where {REFERENCE} has no result with the same "
            f"backbone and weights ({backbone}), or several of which none has the row's config."
            for backbone, names in together.items()
        ]

    def notes(self, records):
        """What has to be said whatever the table is; and whether settings are the same."""
        notes = []
        for group in self.groups:
            extra = [
                f"{self.config(group, d)} on {self.titles[d]}"
                for d in self.datasets
                if (group, d) in self._configs and self.config(group, d) != group.config
            ]
            if extra:
                notes.append(
                    f"{self.names[group]} puts configs together that do not meet on any dataset: "
                    f"{group.config}, but {', '.join(extra)}."
                )
        mixed = []
        for group in self.groups:
            own = [r for r in records if self._group_of[family_of(r), r.config] == group]
            inside, between = _different(own)
            mixed += [f"{self.names[group]} mixes settings: {text}." for text in inside]
            notes += [f"{self.names[group]}: {text}." for text in between]
        rounded = [self.names[group] for group in self.groups if group.log]
        if rounded:
            notes.append(
                f"Read from logs, which have one decimal, so rounded before averaging: "
                f"{', '.join(rounded)}."
            )
        notes += [r.remark for r in records if r.remark]
        for group, dataset, _, part in self.uneven:
            what = f"{part} results" if isinstance(part, str) else "results"
            notes.append(
                f"{self.names[group]} on {self.titles[dataset]} has different {what} for different "
                "seeds, although nothing is learned; their mean is shown."
            )
        torch = Counter((r.details.get("versions") or {}).get("torch") for r in records)
        torch.pop(None, None)
        if len(torch) > 1:
            versions = ", ".join(f"{version} ({n} runs)" for version, n in sorted(torch.items()))
            notes.append(f"The runs are of several versions of torch: {versions}.")
        return mixed + notes, not mixed


def _backbone_in_words(backbone):
    return ", ".join(backbone) if backbone else "which the runs do not tell"


def family_of(record):
    """What the runs of a row have in common, whatever their configs."""
    return record.trainer, record.label, record.log


def _groups(records, part, apart=False):
    """Groups by family and config.

    Configs of one trainer that nowhere meet make one row, as CoOp's do, which has fewer epochs on
    ImageNet and for few shots; where two stand side by side each has its own.
    """
    cells = {}
    for r in records:
        # Zero-shot results are the same for any number of shots.
        cells.setdefault(family_of(r), {}).setdefault(r.config, set()).add(
            (r.dataset, part(r) if isinstance(part(r), int) else 0)
        )
    groups = {}
    for family, configs in cells.items():
        rows = []
        for config in sorted(configs, key=lambda config: (-len(configs[config]), config)):
            row = next((row for row in rows if not row[1] & configs[config]), None)
            if row is None or apart:
                row = (Group(family[0], config, *family[1:]), set())
                rows.append(row)
            row[1].update(configs[config])
            groups[family, config] = row[0]
    return groups


def _different(records):
    """Options in which runs with one config differ, in words.

    Returns:
        Two lists: differences between runs of which one number is made, which should not be, and
        those between datasets or numbers of shots, which may be the protocol.
    """
    inside, between = [], []
    for config in sorted({r.config for r in records}):
        runs = [r for r in records if r.config == config and r.details.get("cfg")]
        for key in sorted({key for r in runs for key in r.details["cfg"]}):
            values, cells = {}, {}
            for r in runs:
                value = _comparable(key, r.details["cfg"].get(key, "not there"))
                values.setdefault(value, []).append(r)
                cells.setdefault((r.dataset, r.shots), set()).add(value)
            if len(values) == 1 or key.startswith(_FREE):
                continue
            ways = sorted(values.items(), key=lambda item: -len(item[1]))
            texts = [f"{value or repr('')} in {_runs_named(found)}" for value, found in ways]
            whole = all(len(found) == 1 for found in cells.values())
            (between if whole else inside).append(f"{key} is {' and '.join(texts)}")
    sources = {}
    for r in records:
        if r.details.get("source"):
            sources.setdefault(r.details["source"], []).append(r)
    if len(sources) > 1:
        texts = [f"{source} for {_runs_named(found)}" for source, found in sorted(sources.items())]
        inside.append(f"it was trained on {' and '.join(texts)}")
    return [_cut(texts) for texts in (inside, between)]


def _comparable(key, value):
    """The value of an option as runs of one row have to share it: each seed has a start of its own,
    and so has each task of a row."""
    if key not in _STARTS:
        return value
    place = layout.parse(value)
    if place and place.protocol == "continual":
        return ""
    return re.sub(r"(?<=[/\\])seed-?\d+(?=[/\\]|$)", "seed*", value)


def _cut(texts):
    return texts[:3] + ([f"{len(texts) - 3} more options differ"] if len(texts) > 3 else [])


def _runs_named(records):
    if len(records) > 2:
        titles = list(dict.fromkeys(r.title for r in records))
        where = f" on {', '.join(titles)}" if len(titles) <= 3 else ""
        return f"{len(records)} runs{where}"
    return ", ".join(
        " ".join(filter(None, (r.title, f"seed {r.seed}" * (r.seed is not None), r.part)))
        for r in records
    )


def _titles(records):
    """Name to show by dataset folder: that of the results, unless two folders share it."""
    titles = {}
    for r in records:
        if r.accuracy is not None or r.dataset not in titles:
            titles[r.dataset] = r.title
    shown = list(titles.values())
    return {d: title if shown.count(title) == 1 else d for d, title in titles.items()}


def _names(groups):
    """Name to show by group: the trainer, and in brackets what it needs to be told apart."""
    names = {}
    for group in groups:
        more = [group.label] if group.label else ["log"] if group.log else []
        like = [g for g in groups if (g.trainer, g.label, g.log) == (group.trainer, *group[2:])]
        if len(like) > 1:
            more.append(group.config)
        names[group] = group.trainer + (f" ({', '.join(more)})" if more else "")
    return names


def row_order(group, rank=None):
    zero, host, prefix = trainer_order(group.trainer)
    place = rank(group) if rank else 0
    return zero, host, prefix, group.log, group.label, place, group.config


def names_of(records):
    """Pairs of the name that a run's row has in tables, and the run."""
    pairs = []
    for protocol in dict.fromkeys(r.protocol for r in records if r.protocol):
        own = [r for r in records if r.protocol == protocol]
        part = (lambda r: r.part) if protocol == "base2new" else (lambda r: r.shots)
        groups = _groups(own, part)
        names = _names(sorted(set(groups.values()), key=row_order))
        pairs += [(names[groups[family_of(r), r.config]], r) for r in own]
    return pairs


# -- what is said of rows -------------------------------------------------------------------------


def missing(gaps):
    """Sentences from (name, title, gap); the same gap on several datasets is said once."""
    together = {}
    for name, title, gap in gaps:
        together.setdefault((name, gap), []).append(title)
    return [
        f"Missing: {name} on {', '.join(titles)}: {gap}."
        for (name, gap), titles in together.items()
    ]


def left_out(shared, datasets, titles, what):
    """A sentence on datasets that averages lack, in a list; none if there are none."""
    out = [titles[dataset] for dataset in datasets if dataset not in shared]
    if not out:
        return []
    return [
        f"The average is over {len(shared)} of {len(datasets)} datasets, without "
        f"{', '.join(out)}, where a row has no seed {what}."
    ]


def put(numbers, name, value, spread):
    """Add a number and its standard deviation over the values of seeds."""
    numbers[name] = value
    numbers[f"{name}_std"] = statistics.stdev(spread) if len(spread) > 1 else None


def numbers(cells, group, datasets, seeds, parts):
    """Mean over datasets and seeds of each part that is there, with its spread.

    Returns:
        Dict of ``<part>`` and ``<part>_std``, as rows have their fields.
    """
    found = {}
    for part in parts:
        values = cells.means(group, datasets, seeds, part)
        if values:
            put(found, part, statistics.fmean(values), values)
    return found


def without(dropped):
    """Sentences on seeds that averages lack, from a dict of them by name."""
    together = {}
    for name, seeds in dropped.items():
        together.setdefault(seeds, []).append(name)
    return [
        f"The average of {', '.join(names)} is without seed {', '.join(map(str, seeds))}, which "
        "is not complete on each of its datasets."
        for seeds, names in together.items()
    ]
