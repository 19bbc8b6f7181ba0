"""Several trainers in one loop, over the same batches; each writes what it would write alone."""

from __future__ import annotations

import contextlib
import os
import time

from proxyfda.utils.errors import BadValue, UserError
from proxyfda.utils.files import write_text

from .checkpoint import POINTER
from .loops import EpochLog
from .sound import common_checkpoints, places
from .utils import get_rng_state, set_rng_state


class Together:
    """Trains members that differ in what they do with a batch, not in the batches.

    Everything around a step is each member's own: hooks, optimiser, schedule, log lines, curves,
    checkpoints, evaluation. The random streams are those of a member that runs alone: whatever all
    members draw outside the steps is drawn once. A subclass says what a step is.

    A member that fails by a user's mistake (an infinite loss, say) drops out; the others go on.

    Args:
        members: trainers with the hooks of `EpochLoop`, whose `train_loader_x` is the same one.
        outputs: for each of them the file-like object that takes what it prints.

    Attributes:
        members: those that still take part, in the order given.
        failed: member -> the error that it dropped out with.
    """

    def __init__(self, members, outputs):
        self.members = list(members)
        self.failed = {}
        self._loader = members[0].train_loader_x
        self._outputs = dict(zip(self.members, outputs))

    def steps(self, batch):
        """One step of every member; returns member -> what its `forward_backward` returned.

        To be defined by a subclass. What belongs to one member alone runs within `alone`.
        """
        raise NotImplementedError

    @contextlib.contextmanager
    def alone(self, member):
        """For what a single member does: it prints to its own output, and drops out alone."""
        try:
            with contextlib.redirect_stdout(self._outputs[member]):
                yield
        except UserError as error:
            print(f"{member.output_dir} drops out: {error}")
            self.failed[member] = error
            self.members.remove(member)

    def train(self):
        """Train all members, going on from the last epoch of which each has a checkpoint."""
        self._meet()
        self._each("before_train")
        start = min((member.start_epoch for member in self.members), default=0)
        for member in self.members:
            if member.start_epoch != start:
                raise BadValue(
                    f"{member.output_dir} goes on from epoch {member.start_epoch} and another run "
                    f"of its grid from {start}: remove the later checkpoints, or run it by itself"
                )
        stop = max((member.max_epoch for member in self.members), default=0)
        for member in self.members:
            member.epoch = max(start - 1, 0)
        for epoch in range(start, stop):
            if not self.members:
                return
            began = time.time()
            for member in self.members:
                member.epoch = epoch
            self._each("before_epoch")
            self._run_epoch()
            self._each("after_epoch")
            print(
                f"epoch [{epoch + 1}/{stop}] of {len(self.members)} runs,",
                f"{time.time() - began:.1f} s",
                flush=True,
            )
        self._each("after_train")

    def _each(self, hook):
        """Call a hook of every member, each with the random streams as they are now."""
        state = get_rng_state()
        for member in self.members[::-1]:  # the streams go on from where the first left them
            set_rng_state(state)
            with self.alone(member):
                getattr(member, hook)()

    def _run_epoch(self):
        logs = {member: EpochLog(member, len(self._loader)) for member in self.members}
        for member in self.members:
            member.set_model_mode("train")
        for batch_idx, batch in enumerate(self._loader):
            for member in self.members:
                logs[member].begin_step(batch_idx)
            for member, summary in self.steps(batch).items():
                if member in self.failed:
                    continue
                with self.alone(member):
                    logs[member].end_step(summary)
            if not self.members:
                return

    def _meet(self):
        """Let the pointers to the last checkpoints name the last epoch that all members have.

        An interruption finds some members a checkpoint further than others.
        """
        where = [place for member in self.members for place in places(member, member.output_dir)]
        _, found = next(common_checkpoints(where), (0, []))
        for place, (path, _) in zip(where, found):
            write_text(os.path.join(place.folder, POINTER), f"{os.path.basename(path)}\n")
        for place in where if not found else ():
            with contextlib.suppress(FileNotFoundError):
                os.unlink(os.path.join(place.folder, POINTER))
