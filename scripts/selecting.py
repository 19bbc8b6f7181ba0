"""Choosing settings without new classes: what scripts/run.py does for the protocol ``select``.

For every trainer and dataset: train and test the settings on halves of the base classes, choose,
write the choice, and run it on all base classes.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import os.path as osp
import shlex
import subprocess
import sys
from argparse import Namespace
from collections.abc import Callable
from dataclasses import replace

from proxyfda.dassl import build_dataset
from proxyfda.experiments import grid, layout, protocols, sweep
from proxyfda.experiments.candidates import Candidate, candidates, parse_tries, plain_candidate
from proxyfda.experiments.config import load_config, read_yaml
from proxyfda.experiments.jobs import Job
from proxyfda.experiments.project import Project
from proxyfda.integrations.dassl import describe_regulariser
from proxyfda.integrations.dassl_options import NODE
from proxyfda.names import (
    REFERENCE,
    is_regularised,
    split_run_name,
    trainer_and_regulariser,
)
from proxyfda.results import prediction, selection
from proxyfda.results.drawing import save_figure
from proxyfda.results.names import shots_title
from proxyfda.results.prompt_figures import selection_figure
from proxyfda.utils.errors import BadValue
from proxyfda.utils.files import write_text
from proxyfda.utils.nested import flat

SHARED = "shared"  # folder of what is chosen for several datasets together


def select(args: Namespace, project: Project, prepare: Callable[[], dict]) -> int:
    """Run the protocol; returns the exit code.

    Args:
        args: of scripts/run.py.
        prepare: makes what the datasets need, and gives the keyword arguments of ``sweep.run``.

    Raises:
        UserError: a mistake in the settings or the data, before anything runs.
    """
    searches = [Search(args, project, run) for run in args.runs]
    jobs = [job for search in searches for job in search.jobs()]
    for search in searches:
        search.check_settings()
    grid.join(jobs)
    if args.dry_run:
        code = sweep.run(jobs, dry_run=True, strict=True)
        print("then: the choice, and with it base2new" if args.final else "then: the choice")
        return code
    where = prepare()
    for search in searches:
        search.check_data()
    code = sweep.run(jobs, strict=True, **where)
    found = selection.read(args.output)
    final: dict[str, Job] = {}
    for search in searches:
        for job in search.choose(found):
            final.setdefault(job.folder, job)
        code |= not search.decided
    if args.evaluate_all:
        for search in searches:
            for job in search.every_base2new():
                final.setdefault(job.folder, job)
        grid.join(list(final.values()))
    if final:
        code |= sweep.run(list(final.values()), **where)
        results = [sys.executable, "-m", "proxyfda.results", args.output, "--protocol", "base2new"]
        subprocess.run(results, cwd=project.root, check=False)
    if args.evaluate_all and final:
        prediction.main([args.output])
    return int(code)


def trained_word(one: Candidate) -> str:
    """The trainer of a setting as the scripts take it."""
    return "+".join(filter(None, trainer_and_regulariser(one.run)))


class Search:
    """The settings of one run, on all datasets of the command line.

    Attributes:
        decided: after :meth:`choose`, whether there was a choice for every dataset.
    """

    def __init__(self, args: Namespace, project: Project, run: str):
        self.args, self.project, self.run = args, project, run
        self.plain = plain_candidate(run)
        self.settings = candidates(
            run,
            project,
            regularisers=args.regularisers,
            tries=parse_tries(args.tries),
            settings=args.settings,
        )
        for key in args.opts[::2]:
            if key in {tried for one in self.settings for tried, _ in one.options}:
                raise BadValue(f"{key} is among the settings and among KEY VALUE; leave one out")
        self.decided = True
        keys = ("data", "output", "overlay", "label", "opts")
        self._where = {"project": project, **{key: getattr(args, key) for key in keys}}

    # -- jobs -------------------------------------------------------------------------------------

    def jobs(self) -> list[Job]:
        """All trainings and tests on halves of the base classes."""
        runs = itertools.product(self.args.datasets, self.args.splits, self.args.seeds)
        return [job for one in runs for job in self._jobs(*one, [self.plain, *self.settings])]

    def _jobs(self, dataset: str, split: int, seed: int, settings: list[Candidate]) -> list[Job]:
        return protocols.select_jobs(
            settings,
            dataset,
            split,
            seed,
            shots=self.args.shots[0],
            cfg=self._cfg(dataset),
            **self._where,
        )

    def _cfg(self, dataset: str) -> str:
        """The config of all settings on a dataset: the plain trainer has no other one."""
        if self.args.cfg:
            return self.args.cfg
        runs = [one.run for one in self.settings]
        run = next(filter(is_regularised, runs), runs[0])
        name = self.project.dataset_name(dataset)
        return self.project.default_config(run, name, "base2new", self.args.shots[0])

    def _training(self, one: Candidate, dataset: str) -> Job:
        return self._jobs(dataset, self.args.splits[0], self.args.seeds[0], [one])[0]

    def check_settings(self) -> None:
        """Refuse options that no run could have, before any runs."""
        for one in self.settings:
            job = self._training(one, self.args.datasets[0])
            job.module()  # registers trainers and datasets
            describe_regulariser(load_config(job.parsed()))

    def check_data(self) -> None:
        """Refuse datasets whose base classes cannot be halved, where something is left to run."""
        for dataset in self.args.datasets:
            jobs = self._jobs(dataset, self.args.splits[0], self.args.seeds[0], [self.plain])
            if not all(job.complete for job in jobs):
                with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
                    build_dataset(load_config(jobs[0].parsed()))

    # -- the choice -------------------------------------------------------------------------------

    def choose(self, found: dict) -> list[Job]:
        """Print tables, write what is chosen, and give the jobs of the final runs."""
        panels, final = {}, []
        for dataset in self.args.datasets:
            name = self.project.dataset_name(dataset)
            rows = self._rows([dataset], found)
            panels[name] = rows
            path = self._write(name, [dataset], rows, {name: rows})
            if path and self.args.final and not self.args.shared:
                final += self._final(dataset, rows, path)
        if self.args.shared:
            rows = self._rows(self.args.datasets, found)
            path = self._write(SHARED, self.args.datasets, rows, {**panels, "average": rows})
            if path and self.args.final:
                for dataset in self.args.datasets:
                    final += self._final(dataset, rows, path)
        return final

    def _rows(self, datasets: list[str], found: dict) -> list[selection.SettingRow]:
        measured = []
        for one in (self.plain, *self.settings):
            each = []
            for dataset in datasets:
                place = layout.parse(self._training(one, dataset).folder)
                key = (place.dataset, place.shots, place.name, place.config)
                empty = selection.Measured(place.name, place.config)
                there = found.get(key, empty)
                each.append(replace(there, label=one.label))
            measured.append(selection.average(each))
        return selection.rows_of(
            measured[0], measured[1:], itertools.product(self.args.splits, self.args.seeds)
        )

    def _write(self, name: str, datasets: list[str], rows: list, panels: dict) -> str:
        """Print the table and write everything; returns the path of the choice, if there is one."""
        args = self.args
        where = f"{len(datasets)} datasets" if name == SHARED else name
        title = f"{self.run} on halves of the base classes of {where}, {shots_title(args.shots[0])}"
        runs = f"{len(args.splits)} splits x {len(args.seeds)} seeds"
        if name == SHARED:
            runs += f", each the mean over {', '.join(map(self.project.dataset_name, datasets))}"
        print(f"\n{selection.table(rows, title, runs)}")
        folder = osp.join(args.output, layout.selection(name, args.shots[0], self.run))
        write_text(osp.join(folder, "table.csv"), selection.table(rows, title, runs, "csv"))
        if any(row.h is not None for row in rows):
            save_figure(selection_figure(panels), osp.join(folder, "seen_unseen"))
        best = next((row for row in rows if row.chosen), None)
        if best is None:
            self.decided = False
            return ""
        path = osp.join(folder, layout.CHOICE)
        one = self.settings[best.number - 1]
        trained = trained_word(one)
        comment = [
            f"Chosen by scripts/select.sh for {self.run} on {where} from {len(rows) - 1} settings, "
            f"{shots_title(args.shots[0])}:",
            f"the highest H of seen and unseen halves of the base classes, validation images, over "
            f"{runs}.",
            f"{best.label}: seen {best.seen:.2f}, unseen {best.unseen:.2f}, H {best.h:.2f}",
            selection.verdict(rows),
            f"It goes on top of the config {self._cfg(datasets[0])}: --overlay of the scripts with "
            f"{trained}, or train.py",
            f"--trainer {trained.partition('+')[0]} --config-file CONFIG THIS_FILE.",
        ]
        write_text(path, selection.overlay_text(self._options(one, datasets[0]), comment))
        seconds = sum(row.seconds for row in rows)
        trainings = len(datasets) * sum(row.runs for row in rows)
        print(f"{trainings} trainings took {seconds:.0f} s; choice, table and figure: {folder}")
        if args.final:
            for dataset in datasets:
                print(f"final run: {self._command(dataset, one, path)}")
        return path

    def _options(self, one: Candidate, dataset: str) -> dict:
        """What a setting is: the options of --overlay, those of the regulariser among the KEY VALUE
        pairs, and its own."""
        cfg = load_config(self._training(one, dataset).parsed())
        keys = []
        if self.args.overlay:
            overlay = self.project.overlay(self.args.overlay)
            keys += [key for key, _ in flat(read_yaml(overlay, f"--overlay {overlay}"))]
        keys += [key for key in self.args.opts[::2] if key.startswith(f"{NODE}.")]
        keys += [key for key, _ in one.options]
        values = dict(flat(cfg))
        options = {f"{NODE}.REGULARISER": split_run_name(one.run)[1]}
        options.update((key, values[key]) for key in keys if key not in options)
        return options

    # -- the final run ----------------------------------------------------------------------------

    def _config(self, one: Candidate, dataset: str) -> str:
        return layout.parse(self._training(one, dataset).folder).config

    def _command(self, dataset: str, one: Candidate, path: str) -> str:
        args = self.args
        words = ["bash", osp.join("scripts", "base2new.sh"), trained_word(one), dataset]
        words += [",".join(map(str, args.seeds)), str(args.shots[0]), *args.opts]
        words += ["--cfg", self._cfg(dataset), "--overlay", path]
        words += ["--label", self._config(one, dataset)]
        words += ["--data", args.data, "--output", args.output]
        return shlex.join(words)

    def _final(self, dataset: str, rows: list, path: str) -> list[Job]:
        """Base to new of what was chosen, of the plain trainer and of zero-shot CLIP."""
        one = self.settings[next(row.number for row in rows if row.chosen) - 1]
        more = {"cfg": self._cfg(dataset), "overlay": path, "label": self._config(one, dataset)}
        return [
            *self._base2new(REFERENCE, dataset, self.args.seeds[:1], label="", overlay=""),
            *self._base2new(self.plain.run, dataset, self.args.seeds, cfg=self._cfg(dataset)),
            *self._base2new(one.run, dataset, self.args.seeds, **more),
        ]

    def every_base2new(self) -> list[Job]:
        """Base to new of all settings."""
        return [
            job
            for dataset in self.args.datasets
            for one in (self.plain, *self.settings)
            for job in self._base2new(
                one.run, dataset, self.args.seeds, cfg=self._cfg(dataset), variant=one
            )
        ]

    def _base2new(self, run: str, dataset: str, seeds: list[int], **more) -> list[Job]:
        where = {**self._where, **more}
        return [
            job
            for seed in seeds
            for job in protocols.base2new_jobs(
                run, dataset, seed, shots=self.args.shots[0], **where
            )
        ]
