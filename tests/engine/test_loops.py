"""The loops of a trainer and their hooks, on both engines: the embedded one, and a stand-in for
Dassl's trainer behind the adapter."""

import re
import weakref
from types import SimpleNamespace

import pytest
import torch

from proxyfda import engine
from proxyfda.dassl.adapter import with_hooks
from proxyfda.engine.loops import Summaries

BATCHES = 10


class DasslTrainerX(engine.TrainerBase):
    """A trainer with Dassl's own loops in short, which know no hooks."""

    def run_epoch(self):
        self.set_model_mode("train")
        for self.batch_idx, batch in enumerate(self.train_loader_x):  # noqa: B020
            self.forward_backward(batch)

    def test(self, split=None):
        return 0.0

    def model_inference(self, input):
        return self.model(input)


class Steps:
    """The part of a trainer that is written for the tests: a rate, a loss per batch, a record."""

    def __init__(self, print_freq=4, with_val=True):
        engine.TrainerBase.__init__(self)
        self.cfg = SimpleNamespace(
            TRAIN=SimpleNamespace(PRINT_FREQ=print_freq),
            TEST=SimpleNamespace(SPLIT="test", PER_CLASS_RESULT=False, COMPUTE_CMAT=False),
        )
        self.device, self.epoch, self.max_epoch, self.rate = torch.device("cpu"), 1, 3, 0.5
        self.model = torch.nn.Linear(3, 3)
        self.register_model("model", self.model)
        with torch.no_grad():
            self.model.weight.copy_(torch.eye(3))
            self.model.bias.zero_()
        images = torch.eye(3)[[0, 1, 2, 0]]
        test = {"img": images, "label": torch.tensor([0, 1, 1, 0])}
        self.train_loader_x = [{"number": number} for number in range(BATCHES)]
        self.test_loader = [test, test]
        self.val_loader = [{"img": images, "label": torch.tensor([0, 1, 2, 0])}]
        self.val_loader = self.val_loader if with_val else None
        self.evaluator = engine.Classification(self.cfg)
        self.events, self.points, self.checked = [], [], []

    def get_current_lr(self, names=None):
        return self.rate

    def write_scalar(self, tag, scalar_value, global_step=None):
        self.points.append((tag, scalar_value, global_step))

    def forward_backward(self, batch):
        self.events.append(f"step {batch['number']}")
        loss = torch.tensor(float(batch["number"]), requires_grad=True) ** 2
        return {"loss": loss, "acc": torch.tensor([batch["number"] / 3]), "plain": 7.0}

    def end_of_epoch(self):
        super().end_of_epoch()
        self.events.append("end of epoch")
        self.rate = 0.25

    def check_step(self, batch_idx, values):
        super().check_step(batch_idx, values)
        self.checked.append((batch_idx, values))


class Embedded(Steps, engine.TrainerX):
    pass


class Adapted(Steps, with_hooks(DasslTrainerX)):
    pass


both = pytest.mark.parametrize("make", [Embedded, Adapted], ids=["embedded", "dassl"])


def numbers(batch):
    return {"loss": float(batch) ** 2, "acc": torch.tensor(batch / 3).item(), "plain": 7.0}


@both
def test_the_end_of_an_epoch_comes_after_its_last_step_and_before_the_line(make, capsys):
    trainer = make()
    trainer.model.eval()  # as an evaluation leaves it
    capsys.readouterr()
    trainer.run_epoch()
    assert trainer.events == [*(f"step {n}" for n in range(BATCHES)), "end of epoch"]
    assert trainer.model.training
    lines = capsys.readouterr().out.splitlines()
    found = [re.sub(r"time \S+ \S+ data \S+ \S+ ", "", line).split(" eta")[0] for line in lines]
    assert found == [
        "epoch [2/3] batch [4/10] loss 9.0000 (3.5000) acc 1.0000 (0.5000) plain 7.0000 (7.0000) "
        "lr 5.0000e-01",
        "epoch [2/3] batch [8/10] loss 49.0000 (17.5000) acc 2.3333 (1.1667) "
        "plain 7.0000 (7.0000) lr 5.0000e-01",
    ]
    # The last step's rate is the one that the end of the epoch has set, also in the curves.
    rates = [(value, step) for tag, value, step in trainer.points if tag == "train/lr"]
    assert rates == [*((0.5, 10 + n) for n in range(BATCHES - 1)), (0.25, 19)]


@both
def test_a_line_for_every_step_where_there_are_few(make, capsys):
    trainer = make(print_freq=50)
    capsys.readouterr()
    trainer.run_epoch()
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == BATCHES and " lr 2.5000e-01 " in lines[-1] and " 5.0000e-01" in lines[0]


@both
def test_every_step_has_its_point_on_the_curves_with_the_mean_so_far(make):
    trainer = make()
    trainer.run_epoch()
    for name in ("loss", "acc", "plain"):
        points = [point for point in trainer.points if point[0] == f"train/{name}"]
        values = [numbers(batch)[name] for batch in range(BATCHES)]
        means = [sum(values[: n + 1]) / (n + 1) for n in range(BATCHES)]
        assert points == [(f"train/{name}", mean, 10 + n) for n, mean in enumerate(means)]


@both
def test_values_are_fetched_for_log_lines_alone_and_together(make, monkeypatch):
    trainer, fetches = make(), []
    tolist = torch.Tensor.tolist

    def counted(tensor):
        fetches.append((len(trainer.events), tensor.numel()))
        return tolist(tensor)

    monkeypatch.setattr(torch.Tensor, "tolist", counted)
    monkeypatch.setattr(torch.Tensor, "item", lambda tensor: pytest.fail("a transfer of its own"))
    trainer.run_epoch()
    assert fetches == [(4, 8), (8, 8), (10, 4)]  # after so many steps, two tensors of each


@both
def test_steps_are_checked_in_order_before_the_epoch_ends(make):
    trainer = make()
    trainer.run_epoch()
    assert trainer.checked == [(batch, numbers(batch)) for batch in range(BATCHES)]

    class Stops(make):
        def check_step(self, batch_idx, values):
            if batch_idx == 8:
                raise FloatingPointError(f"batch {batch_idx}: {values['loss']}")

    trainer = Stops()
    with pytest.raises(FloatingPointError, match="batch 8: 64.0"):
        trainer.run_epoch()
    assert "end of epoch" not in trainer.events
    assert max(step for _, _, step in trainer.points) == 17  # the steps up to the line before


@both
def test_a_summary_must_be_a_dict_or_nothing(make, monkeypatch):
    trainer = make()
    monkeypatch.setattr(trainer, "forward_backward", lambda batch: None)
    trainer.run_epoch()
    assert {tag for tag, _, _ in trainer.points} == {"train/lr"}
    monkeypatch.setattr(trainer, "forward_backward", lambda batch: 1.0)
    with pytest.raises(TypeError, match="must return a dict of metrics or None, not a float"):
        trainer.run_epoch()


def test_held_values_do_not_keep_the_graph_alive():
    weight, summaries = torch.ones(3, requires_grad=True), Summaries()
    activations = weight.exp()
    loss = (activations * activations).sum()
    kept = weakref.ref(activations)
    summaries.add({"loss": loss})
    del activations, loss
    assert kept() is None
    assert summaries.fetch() == [{"loss": pytest.approx(3 * 7.389056)}]
    assert summaries.fetch() == []


def test_values_of_several_types_come_back_exactly():
    summaries = Summaries()
    exact = {
        "half": torch.tensor(0.1).half(),
        "double": torch.tensor(0.1, dtype=torch.float64),
        "n": 3,
    }
    summaries.add(exact)
    summaries.add(
        {"count": torch.tensor(2**53 + 1), "double": torch.tensor([0.2], dtype=torch.float64)}
    )
    assert summaries.fetch() == [
        {"half": exact["half"].item(), "double": 0.1, "n": 3},
        {"count": 2**53 + 1, "double": 0.2},
    ]


# -- evaluation -----------------------------------------------------------------------------


@both
def test_evaluate_gives_the_whole_result(make, capsys):
    trainer = make()
    result = trainer.evaluate()
    assert list(result)[0] == "accuracy"
    classes = result.pop("per_class")
    assert sum(one["images"] for one in classes) == 8
    assert sum(sum(one["taken_for"].values()) for one in classes) == 2
    assert result == {
        "split": "test",
        "accuracy": 75.0,
        "error_rate": 25.0,
        "macro_f1": pytest.approx(100 * (1 + 2 / 3) / 2),
        "correct": 6,
        "total": 8,
    }
    assert "Evaluate on the *test* set" in capsys.readouterr().out
    assert ("test/accuracy", 75.0, 1) in trainer.points
    assert {tag for tag, _, _ in trainer.points} == {
        "test/accuracy", "test/error_rate", "test/macro_f1",
    }  # fmt: skip
    assert not trainer.model.training
    assert trainer.last_result is None  # evaluating is not the run's test


@both
def test_test_returns_the_accuracy_and_keeps_the_result(make):
    trainer = make()
    assert trainer.test() == 75.0
    assert trainer.last_result["correct"] == 6
    assert trainer.test("val") == 100.0
    assert (trainer.last_result["split"], trainer.last_result["total"]) == ("val", 4)


@both
def test_without_a_validation_split_the_test_split_serves(make):
    result = make(with_val=False).evaluate("val")
    assert (result["split"], result["total"]) == ("test", 8)


@both
def test_an_unknown_split_is_refused(make):
    with pytest.raises(ValueError, match="'tset' .did you mean 'test'"):
        make().test("tset")


@both
def test_evaluation_computes_no_gradients(make, monkeypatch):
    trainer, seen = make(), []
    monkeypatch.setattr(
        trainer,
        "model_inference",
        lambda x: seen.append(torch.is_grad_enabled()) or trainer.model(x),
    )
    trainer.evaluate()
    assert seen == [False, False]


class Counts(engine.EvaluatorBase):
    """An evaluator of another kind, without Dassl's counters."""

    def reset(self):
        self.seen = 0

    def process(self, mo, gt):
        self.seen += len(gt)

    def evaluate(self):
        return {"seen": self.seen, "half": self.seen / 2}


@both
def test_an_evaluator_of_another_kind(make):
    trainer = make()
    trainer.evaluator = Counts(trainer.cfg)
    assert trainer.test() == 8
    assert trainer.last_result == {"seen": 8, "half": 4, "split": "test"}


class Copied:
    """Stands in for a pinned tensor: notes how it is copied to a device."""

    def to(self, device, non_blocking=False):
        return device, non_blocking


@both
def test_batches_are_copied_without_waiting_for_the_device(make):
    """From pinned memory the copy runs beside what the device is doing."""
    trainer, batch = make(), {key: Copied() for key in ("img", "label", "domain")}
    assert trainer.parse_batch_test(batch) == ((trainer.device, True),) * 2
    if make is Embedded:  # an installed Dassl keeps its own
        assert trainer.parse_batch_train(batch) == ((trainer.device, True),) * 3


# -- the adapter ----------------------------------------------------------------------------


def test_the_adapter_leaves_dassls_class_as_it_is():
    adapted = with_hooks(DasslTrainerX)
    assert adapted.__name__ == "DasslTrainerX" and issubclass(adapted, DasslTrainerX)
    assert not hasattr(DasslTrainerX, "end_of_epoch") and not hasattr(DasslTrainerX, "evaluate")


def test_the_embedded_engine_steps_no_schedule_of_its_own(monkeypatch):
    """Trainers written for Dassl call update_lr in their last step."""
    trainer = Embedded()
    monkeypatch.setattr(trainer, "update_lr", lambda names=None: pytest.fail("stepped twice"))
    trainer.run_epoch()
