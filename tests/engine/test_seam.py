"""The choice of the engine."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from proxyfda import dassl as seam

ROOT = Path(__file__).parent.parent.parent


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
