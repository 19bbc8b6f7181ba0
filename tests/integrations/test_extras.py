"""Integrations with libraries that are not there."""

import importlib
import sys

import pytest

from proxyfda.utils.errors import NotInstalled


@pytest.mark.parametrize("library", ["transformers", "lightning", "timm"])
def test_a_missing_library_is_named_with_the_command(library, monkeypatch):
    for name in [library, *(name for name in sys.modules if name.startswith(f"{library}."))]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, f"proxyfda.integrations.{library}", raising=False)
    with pytest.raises(NotInstalled, match=rf"pip install 'proxyfda\[{library}\]'$") as found:
        importlib.import_module(f"proxyfda.integrations.{library}")
    assert "\n" not in str(found.value)
