"""Settings that take part in a choice: regularisers with options, and where lists come from.

Options are named as in the config; those of the regularisers (``TRAINER.PROXYFDA``) by their last
word alone, such as ``WEIGHT`` and ``K``.
"""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import yaml

from proxyfda.experiments.config import check_regulariser
from proxyfda.experiments.project import Project
from proxyfda.integrations.dassl_options import NODE, PluginOptions, node_defaults
from proxyfda.names import NONE, is_zero_shot, run_name, split_run_name
from proxyfda.regularisers import find
from proxyfda.utils.errors import BadValue, NotFound
from proxyfda.utils.suggest import did_you_mean

__all__ = [
    "Candidate",
    "candidates",
    "parse_tries",
    "plain_candidate",
    "read_families",
    "read_settings",
]

PLAIN = "plain"
_LONGEST = 120  # letters of a folder's name that come from options
# What makes sense with batches alone, and what --regularisers says.
_OF_BATCHES = ("M", "N", "MINING")
_SAID_OTHERWISE = {
    "REGULARISER": "--regularisers or the settings file says it",
    "ENABLED": "the plain trainer takes part anyway",
}


@dataclass(frozen=True)
class Candidate:
    """One setting.

    Attributes:
        label: what tables call it.
        run: what is trained, as the scripts take it, such as ``CoOp+rkd``.
        options: pairs of a key of the config and its value as a word of the command line.
    """

    label: str
    run: str
    options: tuple[tuple[str, str], ...] = ()

    @property
    def words(self) -> list[str]:
        """Trailing options of train.py."""
        return [word for option in self.options for word in option]

    @property
    def variant(self) -> str:
        """What its options add to the name of the config's folder, whatever its label and the order
        of its options.

        >>> Candidate("x", "CoOp+rkd", ((f"{NODE}.WEIGHT", "3"), ("OPTIM.LR", "0.01"))).variant
        'optim.lr_0.01-weight_3'
        """
        pairs = [f"{_short(key).lower()}_{value.replace(',', '+')}" for key, value in self.options]
        name = re.sub(r"[^\w.+-]+", "", "-".join(sorted(pairs)))
        if len(name) <= _LONGEST:
            return name
        digest = hashlib.sha256(repr(sorted(self.options)).encode()).hexdigest()[:8]
        return f"{name[: _LONGEST - 9]}-{digest}"


def plain_candidate(run: str) -> Candidate:
    """The reference: the host of a run with no term, in its own batches."""
    return Candidate(PLAIN, split_run_name(run)[0])


def candidates(
    run: str,
    project: Project,
    *,
    regularisers: Sequence[str] = (),
    tries: dict[str, list[str]] | None = None,
    settings: str = "",
) -> list[Candidate]:
    """The settings to choose from for a run, each once, without the plain reference.

    Args:
        run: trainer, with ``+<regulariser>`` where its name does not say it.
        regularisers: to choose among; empty: the run's own.
        tries: values by key (see :func:`parse_tries`); the settings are their product with the
            regularisers, of which each takes the options that it has. Empty: the grids of
            ``configs/select``, unless there is a settings file.
        settings: file with further ones, see :func:`read_settings`.

    Raises:
        UserError: an unknown regulariser or one that the trainer cannot have, a faulty file, an
            option that none of the regularisers has, or nothing to choose from.
    """
    host, own = split_run_name(run)
    if is_zero_shot(host):
        raise BadValue(f"{run} trains nothing, so there are no settings to choose; name a trainer")
    for name in regularisers:
        _check_regulariser(name, run, "--regularisers")
    found: list[Candidate] = []
    named = list(regularisers) or ([own] if own else [])
    if tries:
        found += _product(host, named or [NONE], [tries])
        _refuse_useless(tries, found, named)
    elif named and (regularisers or not settings):
        for name in named:
            found += _product(host, [name], _grids(project.grid(name), host))
    if settings:
        found += read_settings(settings, run)
    if not found:
        raise BadValue(
            f"{run} says nothing to choose among; name a trainer with a regulariser such as "
            f"{host}+rkd, or --regularisers, --try KEY=V1,V2 or --settings FILE"
        )
    plain = plain_candidate(run)
    seen = {(run_name(plain.run), plain.variant)}
    unique = []
    for one in found:
        place = (run_name(*one.run.split("+")), one.variant)
        if place not in seen:
            unique.append(one)
        seen.add(place)
    if not unique:
        raise BadValue(f"all settings of {run} are the plain trainer; name some that differ")
    return unique


def parse_tries(words: Iterable[str]) -> dict[str, list[str]]:
    """Values by key of words ``KEY=V1,V2``.

    Values are split at commas outside of brackets; several spaces in one value are joined by ``+``.

    Raises:
        BadValue: a word of another form, or a key that is given twice.

    >>> parse_tries(["WEIGHT=1,3.0", "SPACES=text+cross,text", "INPUT.SIZE=(32,32)"])
    {'WEIGHT': ['1', '3'], 'SPACES': ['text,cross', 'text'], 'INPUT.SIZE': ['(32,32)']}
    """
    tries: dict[str, list[str]] = {}
    for word in words:
        key, equals, values = word.partition("=")
        found = [value.strip() for value in re.split(r",(?![^(\[]*[)\]])", values)]
        if not (key and equals and all(found)):
            raise BadValue(f"--try is {word!r}; give KEY=V1,V2,...")
        if key in tries:
            raise BadValue(f"--try names {key} twice; give its values in one, KEY=V1,V2,...")
        tries[key] = [_word(key, value.replace("+", ",")) if _is_list(key) else _word(key, value)
                      for value in found]  # fmt: skip
    return tries


def read_settings(path: str, run: str) -> list[Candidate]:
    """The settings of a YAML file: a list of mappings with ``label``, ``regulariser``, ``options``.

    ``options`` maps keys to values; without ``regulariser`` it is the run's own, and without
    ``label`` the setting is named by what it is.

    Raises:
        NotFound: there is no such file.
        BadValue: it is no such list, or two settings have one label.
    """
    content = _load(path, "--settings")
    if not isinstance(content, list) or not content:
        raise BadValue(
            f"--settings {path} is no list of settings; begin each with '- label: NAME' and give "
            "it regulariser and options"
        )
    host, own = split_run_name(run)
    found: dict[str, Candidate] = {}
    for number, item in enumerate(content, 1):
        where = f"--settings {path}: setting {number}"
        known = {"label", "regulariser", "options"}
        if not isinstance(item, dict) or not set(item) <= known:
            raise BadValue(f"{where} is {item!r}; give a mapping of {', '.join(sorted(known))}")
        options = item.get("options") or {}
        if not isinstance(options, dict) or any(isinstance(v, dict) for v in options.values()):
            raise BadValue(f"{where} has options {options!r}; give a mapping of KEY: VALUE")
        name = str(item.get("regulariser") or own or NONE)
        _check_regulariser(name, run, f"{where}: regulariser")
        one = _candidate(host, name, {str(k): _word(str(k), v) for k, v in options.items()})
        label = str(item.get("label") or one.label)
        if label in found or label == PLAIN:
            raise BadValue(f"{where} has the label {label!r}, which another one has; rename it")
        found[label] = Candidate(label, one.run, one.options)
    return list(found.values())


def read_families(path: str, host: str, hosts: Sequence[str]) -> dict[str, list[Candidate]]:
    """The families of a YAML file for a host: settings by family, of which each chooses by itself.

    The file maps a family's name to a list of grids as in ``configs/select``, each with its
    ``regulariser``. A setting that a family has twice counts once, and one of several families is
    the same object in all of them.

    Args:
        hosts: all trainers that the file may name.

    Returns:
        Families without a grid for the host are left out.

    Raises:
        NotFound: there is no such file.
        BadValue: it is no such mapping; names the file and the family.
    """
    content = _load(path, "the file of families")
    if not isinstance(content, dict) or not content:
        raise BadValue(
            f"{path} is no mapping of families; give each as NAME: and a list of grids with "
            "regulariser and KEY: [VALUE, ...]"
        )
    found: dict[str, list[Candidate]] = {}
    seen: dict[tuple[str, str], Candidate] = {}
    for name, grids in content.items():
        settings = _family(grids, host, hosts, f"{path}: family {str(name)!r}")
        if settings:
            same = [seen.setdefault((one.run, one.variant), one) for one in settings]
            found[str(name)] = list(dict.fromkeys(same))
    return found


def _family(grids: Any, host: str, hosts: Sequence[str], where: str) -> list[Candidate]:
    """The settings of a family for a host; grids for other hosts are checked as well."""
    if not isinstance(grids, list) or not grids:
        raise BadValue(f"{where} is {grids!r}; give a list of grids with regulariser and lists")
    settings: list[Candidate] = []
    for item in grids:
        if not isinstance(item, dict) or not isinstance(item.get("regulariser"), str):
            raise BadValue(f"{where} has {item!r}, which names no regulariser; give one")
        name = item["regulariser"]
        check_regulariser(name, f"{where}: regulariser")
        grid = _grid({k: v for k, v in item.items() if k != "regulariser"}, where)
        for key in grid:
            _check_option(key, name, where)
        named = item.get("hosts", hosts)
        for other in named:
            if other not in hosts:
                raise BadValue(
                    f"{where} has a grid for {other!r}{did_you_mean(other, hosts)}; its hosts may "
                    f"be {', '.join(hosts)}"
                )
        settings += _product(host, [name], [grid]) if host in named else []
    return settings


def _check_option(key: str, regulariser: str, where: str) -> None:
    """Refuse an option that is unknown, or that makes no difference to the regulariser."""
    short = _short(key)
    known = [*(node for node in node_defaults() if node not in _SAID_OTHERWISE), "hosts"]
    if "." not in short and short not in known:
        raise BadValue(
            f"{where} has {key}, which is no option to try{did_you_mean(short, known)}; "
            "docs/options.md has all"
        )
    if not _applies(key, regulariser):
        raise BadValue(f"{where} has {key}, which is no option of {regulariser!r}; leave it out")


# -- grids ----------------------------------------------------------------------------------------


def _product(host: str, names: list[str], grids: list[dict[str, list[str]]]) -> list[Candidate]:
    """All combinations of the values of each grid that a regulariser has options for."""
    found = []
    for name, grid in itertools.product(names, grids):
        own = {key: values for key, values in grid.items() if _applies(key, name)}
        for values in itertools.product(*own.values()):
            found.append(_candidate(host, name, dict(zip(own, values))))
    return found


def _candidate(host: str, name: str, options: dict[str, str]) -> Candidate:
    words = " ".join(f"{_short(key)} {value}" for key, value in options.items())
    label = f"{name} {words}".strip() if name != NONE or not words else words
    return Candidate(label, f"{host}+{name}", tuple((_full(k), v) for k, v in options.items()))


def _grids(path: str, host: str) -> list[dict[str, list[str]]]:
    """The grids of a file of ``configs/select`` that are for a host."""
    content = _load(path, "the grid")
    grids = []
    for item in content if isinstance(content, list) else [content]:
        if not isinstance(item, dict):
            raise BadValue(f"{path} has {item!r}; give mappings of KEY: [VALUE, ...]")
        grid = _grid(item, path)
        if host in item.get("hosts", [host]):
            grids.append(grid)
    return grids


def _grid(item: dict[Any, Any], where: str) -> dict[str, list[str]]:
    """Values by key of one grid, as words of the command line, without its ``hosts``."""
    grid = {str(key): value for key, value in item.items() if key != "hosts"}
    lists = {**grid, "hosts": item.get("hosts", ["all"])}
    wrong = [key for key, value in lists.items() if not isinstance(value, list) or not value]
    if wrong or not grid:
        raise BadValue(
            f"{where} has no list of values for {(wrong or ['any option'])[0]}; give one"
        )
    return {key: [_word(key, v) for v in values] for key, values in grid.items()}


def _load(path: str, what: str) -> Any:
    try:
        with open(path, encoding="utf-8") as file:
            return yaml.safe_load(file)
    except FileNotFoundError:
        raise NotFound(f"{what} {path} does not exist; give the path of a YAML file") from None
    except (yaml.YAMLError, UnicodeDecodeError, IsADirectoryError) as error:
        raise BadValue(f"{what} {path} is not valid YAML: {' '.join(str(error).split())}") from None


def _check_regulariser(name: str, run: str, where: str) -> None:
    check_regulariser(name, where)
    host, own = split_run_name(run)
    if own and name != own:
        raise BadValue(f"{where} is {name!r}, but {run} says {own!r}; name {host} in its place")


def _applies(key: str, regulariser: str) -> bool:
    """Whether an option makes a difference to a regulariser; unknown ones are left to the config's
    reader, which names the nearest."""
    short = _short(key)
    if "." in short or short not in node_defaults():
        return True
    if short in _SAID_OTHERWISE:
        raise BadValue(f"{key} is no option to try: {_SAID_OTHERWISE[short]}")
    if regulariser == NONE:
        return short in _OF_BATCHES
    kind = find(regulariser)
    if short == "SPACES" and kind.kind == "weights":
        return False
    shared = {f.name.upper() for f in fields(PluginOptions)}
    return short in shared or short in {f.name.upper() for f in fields(kind.options_class)}


def _refuse_useless(tries: dict[str, list[str]], found: list[Candidate], names: list[str]) -> None:
    used = {key for one in found for key, _ in one.options}
    for key in tries:
        if _full(key) not in used:
            raise BadValue(
                f"--try names {key}, which is no option of {' or '.join(names) or 'plain batches'};"
                " leave it out or name another regulariser"
            )


# -- words ----------------------------------------------------------------------------------------


def _full(key: str) -> str:
    return key if "." in key else f"{NODE}.{key}"


def _short(key: str) -> str:
    return key[len(NODE) + 1 :] if key.startswith(f"{NODE}.") else key


def _is_list(key: str) -> bool:
    return isinstance(node_defaults().get(_short(key)), tuple)


def _word(key: str, value: Any) -> str:
    """A value as a word of the command line; numbers in one spelling, so that 3.0 and 3 are one."""
    if isinstance(value, (list, tuple)):
        return ",".join(map(str, value)) if _is_list(key) else str(tuple(value))
    try:
        number = float(value)
    except (TypeError, ValueError):
        return str(value)
    if isinstance(value, bool):
        return str(value)
    return str(int(number)) if number.is_integer() else repr(number)
