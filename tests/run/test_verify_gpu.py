"""The kit for GPUs, tried on the CPU: every kind of row, and that planted faults are found."""

import itertools
import json
import time
import warnings

import pytest
import torch
import verify_gpu
from verify import agreement, parallel, running, runs, speed, subjects
from verify.report import FAIL, NOT_APPLICABLE, PASS, Check, Finding, NotApplicable, Report
from verify.running import Section

import proxyfda.engine.trainer
import proxyfda.experiments.run
from proxyfda.experiments import launchers
from proxyfda.regularisers import FDA
from proxyfda.utils.errors import UserError

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    return str(tmp_path_factory.mktemp("kit"))


@pytest.fixture
def kit(shared, monkeypatch):
    """The kit with few subjects; its data is rendered once."""
    monkeypatch.setattr(subjects, "COUNTS", {"train": 4, "val": 1, "test": 1})
    monkeypatch.setattr(agreement, "trainers", lambda: ["ProxyFDACoOp", "FineTune"])
    monkeypatch.setattr(agreement, "names", lambda: ["fda", "l2sp"])
    monkeypatch.setattr(agreement, "ACCURACY_POINTS", 20.0)  # of so few images
    monkeypatch.setattr(runs, "NAMES", ("ProxyFDACoOp",))
    monkeypatch.setattr(runs, "PRECISIONS", ("bf16", "fp16"))
    monkeypatch.setattr(speed, "TRAINERS", ("CoOp",))
    monkeypatch.setattr(speed, "names", lambda: ["fda"])
    monkeypatch.setattr(speed, "AIMS", {"proxy_fda": 2.0})
    return subjects.Kit(CPU, subjects.TINY, shared)


def rows_of(section, checks):
    """The rows of some checks by what they look at."""
    found = Report({})
    running.run([Section(section, 600.0, lambda: checks)], found, lambda: None)
    return {row.what: row for row in found.rows}


# -- what it finds where nothing is wrong ---------------------------------------------------------

SECTIONS = {
    "trainers": (agreement.of_trainers, {"FineTune, bf16": PASS, "FineTune, fp16": NOT_APPLICABLE,
                                         "ProxyFDACoOp, fp32": PASS}),
    "regularisers": (agreement.of_regularisers, {"fda by itself, bf16": PASS,
                                                 "l2sp by itself, fp32": NOT_APPLICABLE,
                                                 "FineTune+l2sp, one step, fp32": PASS}),
    "runs": (runs.of_runs, {"ProxyFDACoOp, bf16, two runs": PASS,
                            "ProxyFDACoOp, bf16, resumed": PASS,
                            "ProxyFDACoOp, fp16, resumed": NOT_APPLICABLE}),
    "steps": (speed.of_steps, {}),
    "launches": (speed.of_launches, {"FDACoOp, fp32": PASS, "FDACoOp, amp": NOT_APPLICABLE}),
    "compile": (speed.of_compile, {}),
    "overhead": (speed.of_overhead, {}),
}  # fmt: skip


@pytest.mark.parametrize("section", SECTIONS)
def test_every_row_of_a_section_runs_or_says_why_not(section, kit):
    make, expected = SECTIONS[section]
    rows = rows_of(section, make(kit))
    assert rows
    assert {row.verdict for row in rows.values()} <= {PASS, NOT_APPLICABLE}, rows
    for what, verdict in expected.items():
        assert rows[what].verdict == verdict
    for row in rows.values():
        assert row.found and row.expected
        if section in ("steps", "overhead") and "needs a GPU" not in row.found:
            assert " ms" in row.found and "stand-in" in row.found
        if section == "launches" and row.verdict == PASS:
            assert "stand-in for kernels), 0 waits" in row.found


def test_wrappers(kit):
    rows = rows_of("processes", list(parallel.of_processes(kit))[1:4])
    (several, wrapped, inside) = rows.values()
    assert several.verdict == wrapped.verdict == NOT_APPLICABLE
    assert inside.verdict == PASS and "attach to the DataParallel module" in inside.found


@pytest.mark.slow
def test_ranks(kit):
    row = one(parallel.of_processes(kit), "DistributedDataParallel, 2 ranks")
    assert row.verdict == PASS and "gloo, both on one cpu" in row.found


def _died(chains, *_):
    for chain in chains:
        yield chain, "its process died"


@pytest.mark.parametrize(
    ("launch", "verdict"),
    [(lambda chains, *_: launchers.here(chains, True), PASS), (_died, FAIL)],
    ids=["equal", "died"],
)
def test_runs_of_other_processes_are_compared_with_those_of_this_one(
    launch, verdict, kit, monkeypatch
):
    monkeypatch.setattr(launchers, "local", launch)
    row = one(parallel.of_processes(kit), "2 processes on one device")
    assert row.verdict == verdict
    assert ("its process died, its process died" in row.found) == (verdict == FAIL)


# -- planted faults -------------------------------------------------------------------------------


def one(checks, what):
    """The row of one check."""
    return rows_of("planted", [check for check in checks if check.what == what])[what]


class Doubled(FDA):
    def forward(self, features, anchors, **more):
        loss = super().forward(features, anchors, **more)
        return 2 * loss - loss.detach()  # the same value


def test_a_gradient_that_is_doubled_on_the_device(kit, monkeypatch):
    made, real = [], agreement.create_on

    def create_on(*args):
        made.append(args)  # first on the CPU, then on the device
        return real(*args) if len(made) % 2 else Doubled(k=3)

    monkeypatch.setattr(agreement, "create_on", create_on)
    row = one(agreement.of_regularisers(kit), "fda by itself, fp32")
    assert row.verdict == FAIL and "value 0.0e+00, gradient 1.0e+00" in row.found


@pytest.mark.parametrize("fault", ["gradient", "loss", "nan", "accuracy"])
def test_a_trainer_that_is_wrong_on_the_device(fault, kit, monkeypatch):
    real = agreement.trained

    def trained(kit, name, prec, device="", steps=0):
        found = real(kit, name, prec, device, steps)
        if device == "cpu":
            return found
        return {
            "gradient": found._replace(gradient=found.gradient * 1.2),
            "loss": found._replace(values={key: 1.2 * v for key, v in found.values.items()}),
            "nan": found._replace(losses=[*found.losses, float("nan")]),
            "accuracy": found._replace(accuracy=found.accuracy - 30),
        }[fault]

    monkeypatch.setattr(agreement, "trained", trained)
    assert one(agreement.of_trainers(kit), "ProxyFDACoOp, fp32").verdict == FAIL


@pytest.mark.parametrize("lost", ["optimiser", "random numbers"])
def test_a_resume_that_loses_something(lost, kit, monkeypatch):
    if lost == "optimiser":
        real = proxyfda.engine.trainer.restore
        monkeypatch.setattr(
            proxyfda.engine.trainer,
            "restore",
            lambda state, path, model, _, schedule: real(state, path, model, None, schedule),
        )
    else:
        monkeypatch.setattr(proxyfda.engine.trainer, "set_rng_state", lambda state: None)
    rows = rows_of("runs", list(runs.of_runs(kit))[:2])
    assert [row.verdict for row in rows.values()] == [PASS, FAIL]


def test_runs_that_differ(kit, monkeypatch):
    monkeypatch.setattr(
        proxyfda.experiments.run, "set_random_seed", lambda seed: torch.manual_seed(time.time_ns())
    )
    row = one(runs.of_runs(kit), "ProxyFDACoOp, bf16, two runs")
    assert row.verdict == FAIL and "0.0e+00" not in row.found


def test_a_term_that_waits_for_the_device(kit, monkeypatch):
    real = FDA.terms

    def terms(self, *args, **more):
        found = real(self, *args, **more)
        assert all(value.item() >= 0 for value in found.values())
        return found

    monkeypatch.setattr(FDA, "terms", terms)
    row = one(speed.of_launches(kit), "FDACoOp, fp32")
    assert row.verdict == FAIL and "0 waits" not in row.found


# -- what only a GPU would reach, with stand-ins for it -----------------------------------------


@pytest.fixture
def gpu(shared, monkeypatch):
    """A kit that believes in a GPU."""
    monkeypatch.setattr(torch.cuda, "synchronize", lambda *_: None)
    return subjects.Kit(torch.device("cuda"), subjects.TINY, shared)


def test_a_gpu_is_timed_by_its_own_clock(gpu, monkeypatch):
    clock = itertools.count()

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            self.at = next(clock)

        def elapsed_time(self, end):
            return float(end.at - self.at)

    monkeypatch.setattr(torch.cuda, "Event", Event)
    done = []
    jobs = {"one": lambda: done.append("one"), "two": lambda: done.extend(["two", next(clock)])}
    times = speed.milliseconds(gpu, jobs)
    assert times == {"one": [1.0], "two": [2.0]}  # after two rounds that warm up
    assert [word for word in done if word in jobs] == ["one", "two"] * 3


def test_waits_are_what_torch_warns_of(gpu, monkeypatch):
    modes = []
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)

    def step():
        assert modes == ["warn"]
        for text in ("called a synchronizing CUDA operation", "something else"):
            warnings.warn(text, stacklevel=1)
            warnings.warn(text, stacklevel=1)

    assert speed.waits_of(gpu, None, step) == 2
    assert modes == ["warn", "default"]


@pytest.mark.parametrize(("milliseconds", "good"), [(100.9, True), (101.1, False)])
def test_what_is_added_is_held_against_the_aim(milliseconds, good, gpu):
    times = {"with": [milliseconds, 1000.0, milliseconds], "without": [100.0] * 3}
    assert speed._added(gpu, times, 1.0).good == good


def test_an_older_gpu_has_no_bf16(gpu, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 5))
    with pytest.raises(NotApplicable, match="below 8.0"):
        subjects.check_kind(gpu, "CoOp", "bf16")
    assert subjects.check_kind(gpu, "CoOp", "amp") == "amp"


# -- running them ---------------------------------------------------------------------------------


def good():
    return Finding(True, "as it is | \n in two lines")


def bad():
    raise ValueError("a reason\nand more")


def slow():
    time.sleep(30)


def away():
    raise NotApplicable("not here")


def stopped():
    raise KeyboardInterrupt


def checks(**functions):
    return [Check(name, "something", function) for name, function in functions.items()]


def test_a_check_that_breaks_is_a_row_and_the_others_go_on(tmp_path, monkeypatch):
    monkeypatch.setattr(running, "LEAST", 0.2)
    found = Report({"device": "none"})
    path = str(tmp_path / "report.md")
    sections = [
        Section("one", 60.0, lambda: checks(bad=bad, away=away, good=good)),
        Section("two", 0.05, lambda: checks(slow=slow, late=good)),
    ]
    running.run(sections, found, lambda: found.write(path))
    rows = {row.what: (row.verdict, row.found) for row in found.rows}
    assert rows["bad"] == (
        FAIL,
        f"ValueError: a reason (bad, line {bad.__code__.co_firstlineno + 1})",
    )
    assert rows["away"] == (NOT_APPLICABLE, "not here")
    assert rows["good"][0] == PASS
    assert rows["slow"] == (NOT_APPLICABLE, "did not end within 0 s")
    assert rows["late"] == (NOT_APPLICABLE, "left out: the section's 0 s were used up")
    text = (tmp_path / "report.md").read_text()
    assert "| good " in text and "as it is / in two lines" in text
    assert "- one, bad: ValueError: a reason" in text
    written = json.loads((tmp_path / "report.json").read_text())
    assert [row["what"] for row in written["rows"]] == ["bad", "away", "good", "slow", "late"]
    assert written["machine"] == {"device": "none"} and found.failed


def test_ctrl_c_leaves_a_report_of_what_there_is(tmp_path):
    found = Report({})
    path = tmp_path / "report.md"
    section = Section("one", 60.0, lambda: checks(good=good, stopped=stopped, never=good))
    with pytest.raises(KeyboardInterrupt):
        running.run([section], found, lambda: found.write(str(path)))
    assert "1 checks" in path.read_text() and "(interrupted)" in path.read_text()


# -- the command line -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--only", "runz"], "--only is 'runz' (did you mean 'runs'?); use any of trainers"),
        (["--output", "report.txt"], "the report is Markdown"),
        (["--output", "there.md"], "there.json is there already; give another --output"),
        (["--minutes", "0"], "--minutes is 0"),
        (["--output", "there.json/report.md"], "cannot be written"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_wrong_options_in_one_sentence(words, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there.json").write_text("mine")
    with pytest.raises(UserError, match=".") as error:
        verify_gpu.main(["--device", "cpu", *words])
    assert said in str(error.value) and "\n" not in str(error.value)
    assert (tmp_path / "there.json").read_text() == "mine"


def test_without_a_gpu_it_says_so(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="there is no GPU: .*--device cpu"):
        verify_gpu.main([])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("function", "code"), [(good, 0), (bad, 1)])
def test_the_exit_code(function, code, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(
        verify_gpu, "_sections",
        lambda kit, only, minutes: [Section("one", 9.0, lambda: checks(it=function))],
    )  # fmt: skip
    path = tmp_path / "report.md"
    assert verify_gpu.main(["--device", "cpu", "--output", str(path)]) == code
    assert "no GPU was seen" in path.read_text()
    assert f"1 checks in 0 s: {1 - code} pass, {code} fail, 0 not" in capsys.readouterr().out


def test_budgets_are_ten_minutes_and_every_section_has_checks(kit):
    assert sum(verify_gpu.BUDGETS.values()) == 60 * verify_gpu.MINUTES
    sections = verify_gpu._sections(kit, list(verify_gpu.BUDGETS), 5)
    assert [section.name for section in sections] == list(verify_gpu.TITLES)
    assert sections[0].budget == verify_gpu.BUDGETS["trainers"] / 2
    assert all(next(iter(section.checks())) for section in sections)
