"""The choice of the engine, and the repairs of an installed Dassl (a stand-in with its faults)."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from proxyfda import dassl as seam
from proxyfda.dassl import repairs
from tests.engine import fake_dassl

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture
def run_with_dassl(tmp_path):
    """``run(code)``: the lines that code prints in a process where the stand-in is installed."""
    fake_dassl.write(tmp_path)

    def run(code, **environment):
        path = os.pathsep.join([str(ROOT), str(tmp_path)])
        env = {**os.environ, "PYTHONPATH": path, "PROXYFDA_ENGINE": "dassl", **environment}
        done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout.splitlines()

    return run


def test_the_embedded_engine_has_every_name_and_leaves_clip_alone():
    code = (
        "import sys; from proxyfda.dassl import *; from proxyfda import dassl\n"
        "print(dassl.ENGINE, TrainerX.__module__, 'open_clip' in sys.modules)\n"
        "dassl.announce_engine(); dassl.announce_engine()"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT), "PROXYFDA_ENGINE": "embedded"}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    expected = ["embedded proxyfda.engine.trainer False", "Engine: embedded"]
    assert done.stdout.splitlines() == expected, done.stderr


def test_an_unknown_engine_is_refused(monkeypatch):
    monkeypatch.setenv("PROXYFDA_ENGINE", "dasl")
    with pytest.raises(ValueError) as caught:
        seam._choose()
    assert str(caught.value) == (
        'PROXYFDA_ENGINE is "dasl": set it to dassl or embedded, or unset it'
    )


@pytest.mark.skipif(seam.ENGINE == "dassl", reason="Dassl is in use")
class TestWithoutDassl:
    def test_a_broken_one_falls_back_and_says_why(self, tmp_path, monkeypatch):
        (tmp_path / "dassl").mkdir()
        (tmp_path / "dassl" / "__init__.py").write_text("import surely_not_installed\n")
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.delenv("PROXYFDA_ENGINE", raising=False)
        engine, names, description = seam._choose()
        assert engine == "embedded" and "TrainerX" in names
        assert description.startswith("embedded; Dassl is there but cannot be imported")
        assert "install surely_not_installed to use it" in description
        monkeypatch.setenv("PROXYFDA_ENGINE", "dassl")
        with pytest.raises(ImportError, match="install surely_not_installed, or unset"):
            seam._choose()

    @pytest.mark.skipif(
        __import__("importlib").util.find_spec("dassl") is not None, reason="Dassl is importable"
    )
    def test_forcing_one_that_is_not_there(self, monkeypatch):
        monkeypatch.setenv("PROXYFDA_ENGINE", "dassl")
        with pytest.raises(ImportError, match="install Dassl.pytorch or put its folder on"):
            seam._choose()


# -- repairs and adapter --------------------------------------------------------------------


def test_an_installed_dassl_is_chosen_repaired_and_adapted(run_with_dassl, tmp_path):
    for choice in ("dassl", ""):
        lines = run_with_dassl(
            """
from proxyfda import dassl as seam
from proxyfda.dassl import repairs
import dassl.engine
print(seam.ENGINE, issubclass(seam.TrainerX, dassl.engine.TrainerX))
print(seam.TrainerX.end_of_epoch.__module__, seam.TrainerX.evaluate.__module__)
print(hasattr(dassl.engine.TrainerX, "end_of_epoch"), seam.TRAINER_REGISTRY is
      dassl.engine.TRAINER_REGISTRY, seam.SimpleTrainer is dassl.engine.SimpleTrainer)
seam.announce_engine()
""",
            PROXYFDA_ENGINE=choice,
        )
        assert lines == [
            "dassl True",
            "proxyfda.engine.loops proxyfda.engine.loops",
            "False True True",
            f"Engine: dassl 0.0.fake ({tmp_path / 'dassl'}; repaired: warm-up schedules, "
            "numpy.int, checkpoints and resuming, messages about image files)",
        ]


@pytest.mark.parametrize("installed", [(), ("wilds",), ("wilds", "pandas")], ids=len)
def test_an_empty_package_stands_in_for_wilds_where_its_imports_are_missing(installed, monkeypatch):
    name = "dassl.data.datasets.dg.wilds"
    monkeypatch.setitem(sys.modules, name, None)  # so that it is put back afterwards
    del sys.modules[name]
    monkeypatch.setattr("importlib.util.find_spec", lambda module: module in installed or None)
    repairs.let_dassl_import_without_wilds()
    assert (name in sys.modules) == (len(installed) < 2)


def test_augmentations_find_numpy_int_and_numpy_stays_as_it_is(run_with_dassl):
    code = """
import numpy
{line}
from dassl.data.transforms import autoaugment, levels
try:
    print(levels().tolist(), levels().dtype == numpy.array([1]).dtype)
except AttributeError:
    print("broken")
print("int" in vars(numpy), autoaugment.np.pi == numpy.pi)
"""
    mended = ["[8, 7, 6, 5, 4] True", "False True"]
    assert run_with_dassl(code.format(line="import proxyfda.dassl")) == mended
    without_wilds = (
        "import sys, types; sys.modules['dassl.data.datasets.dg.wilds'] = types.ModuleType('')"
    )
    assert run_with_dassl(code.format(line=without_wilds)) == ["broken", "False True"]


def test_warm_up_schedules_work_again(run_with_dassl):
    code = """
import torch
{line}
from dassl.optim.lr_scheduler import ConstantWarmupScheduler
optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
try:
    ConstantWarmupScheduler(optimizer)
    print(optimizer.param_groups[0]["lr"])
except TypeError:
    print("broken")
"""
    assert run_with_dassl(code.format(line="import proxyfda.dassl")) == ["0.125"]
    assert run_with_dassl(code.format(line="")) == ["broken"]  # else the test shows nothing


def test_every_module_of_dassl_gets_the_repaired_functions(run_with_dassl):
    """Also those that hold them by name; and a trainer's module that is imported afterwards."""
    lines = run_with_dassl("""
import proxyfda.dassl, proxyfda.engine as ours
import dassl.utils, dassl.engine.trainer, dassl.data.data_manager
from dassl.utils import load_checkpoint, read_image, resume_from_checkpoint, save_checkpoint
print(dassl.utils.torchtools.load_checkpoint is dassl.utils.load_checkpoint is load_checkpoint
      is dassl.engine.trainer.load_checkpoint is ours.load_checkpoint)
print(dassl.utils.torchtools.save_checkpoint is save_checkpoint
      is dassl.engine.trainer.save_checkpoint is ours.save_checkpoint)
print(dassl.utils.torchtools.resume_from_checkpoint is resume_from_checkpoint
      is dassl.engine.trainer.resume_from_checkpoint is ours.resume_from_checkpoint)
print(dassl.utils.tools.read_image is read_image is dassl.data.data_manager.read_image
      is ours.read_image)
print(dassl.engine.TrainerX.save_model is ours.TrainerBase.save_model,
      dassl.engine.TrainerX.load_extra_state is ours.TrainerBase.load_extra_state)
try:
    dassl.data.datasets.Datum("nowhere.jpg")
except FileNotFoundError as error:
    print(error)
""")
    assert lines == [*["True"] * 4, "True True", (
        'No image file at "nowhere.jpg": check DATASET.ROOT and that the data are complete'
    )]  # fmt: skip


def test_dassls_augmentation_follows_from_seed_epoch_and_image_once_an_epoch_is_set():
    class Wrapper:
        def __init__(self, cfg, items):
            self.items = items

        def __getitem__(self, idx):
            return self.items[idx], torch.rand(()).item()

    cfg = SimpleNamespace(SEED=1)
    assert repairs._seed_each_image(Wrapper) and not repairs._seed_each_image(Wrapper)
    images = Wrapper(cfg, "ab")
    assert images[0] != images[0]  # a loop that sets no epoch gets new images in every pass
    images.set_epoch(0)
    first = images[0], images[1]
    assert first == (images[0], images[1]) and first[0][1] != first[1][1]
    images.set_epoch(1)
    assert images[0] != first[0] and images[0][0] == "a"
    again = Wrapper(cfg, "ab")
    again.set_epoch(0)
    assert again[1] == first[1]


def test_modules_outside_dassl_are_left_alone(run_with_dassl):
    lines = run_with_dassl("""
import sys, types
from dassl.utils import read_image
mine = sys.modules["dassl_of_mine"] = types.ModuleType("dassl_of_mine")
mine.read_image = read_image
import proxyfda.dassl
from dassl.utils import read_image
print(mine.read_image.__module__, read_image.__module__)
""")
    assert lines == ["dassl.utils.tools proxyfda.engine.data"]


def test_repairing_twice_is_repairing_once(run_with_dassl):
    lines = run_with_dassl("""
import proxyfda.dassl
from proxyfda.dassl.repairs import repair
from dassl.optim.lr_scheduler import ConstantWarmupScheduler
import dassl.utils, proxyfda.engine as ours
repair()
print(len([c for c in ConstantWarmupScheduler.__mro__ if c.__name__ == "WithVerbose"]),
      dassl.utils.read_image is ours.read_image)
""")
    assert lines == ["1 True"]
