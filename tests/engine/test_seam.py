"""The choice of the engine, each in a fresh interpreter."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent


def run(code, engine=None, path=()):
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, [ROOT, *path]))}
    env.pop("PROXYFDA_ENGINE", None)
    if engine is not None:
        env["PROXYFDA_ENGINE"] = engine
    return subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)


def last_line(done):
    return done.stderr.strip().splitlines()[-1]


def test_names_and_imports_of_the_embedded_engine():
    done = run(
        "import sys; from proxyfda.dassl import *; from proxyfda import dassl\n"
        "print(dassl.ENGINE, TrainerX.__module__, 'open_clip' in sys.modules)\n"
        "dassl.announce_engine(); dassl.announce_engine()",
        engine="embedded",
    )
    expected = ["embedded proxyfda.engine.trainer False", "Engine: embedded"]
    assert done.stdout.splitlines() == expected, done.stderr


def test_an_unknown_engine_is_refused():
    done = run("import proxyfda.dassl", engine="dasl")
    assert done.returncode
    sentence = 'PROXYFDA_ENGINE is "dasl": set it to dassl or embedded, or unset it'
    assert last_line(done) == f"ValueError: {sentence}"


def test_a_dassl_that_is_broken_falls_back_and_says_why(tmp_path):
    (tmp_path / "dassl").mkdir()
    (tmp_path / "dassl" / "__init__.py").write_text("import surely_not_installed\n")
    done = run("from proxyfda import dassl; dassl.announce_engine()", path=[tmp_path])
    assert done.stdout.startswith("Engine: embedded; Dassl is there but cannot be imported")
    assert "install surely_not_installed" in done.stdout
    done = run("import proxyfda.dassl", engine="dassl", path=[tmp_path])
    assert "install surely_not_installed, or unset PROXYFDA_ENGINE" in last_line(done)


@pytest.mark.skipif(
    __import__("importlib").util.find_spec("dassl") is not None, reason="Dassl is importable"
)
def test_forcing_a_dassl_that_is_not_there():
    done = run("import proxyfda.dassl", engine="dassl")
    assert "install Dassl.pytorch or put its folder on PYTHONPATH" in last_line(done)
