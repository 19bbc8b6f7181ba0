"""Bad values of every option, made from the rules that the options have."""

from dataclasses import dataclass, fields

import yaml

from proxyfda.experiments.config import _literal, default_config, option_rules
from proxyfda.integrations.dassl_options import NODE, PluginOptions
from proxyfda.regularisers import REGULARISERS
from proxyfda.utils.nested import flat
from proxyfda.utils.rules import Real, Several

# What somebody may type for a value; each option is given those that its rule refuses.
WORDS = (
    "-1", "0", "-0.5", "1.5", "7", "1e400", "-1e400", "100000000000000000000", "1e300", "''", "x",
    "True", "None", "()", "(1,)", "(-1, 1)", "(2, 1)", "(1, 2, 3)", "(0, 0, 0)", "('x',)",
    "{'a': 1}", "[", "(1e400, 1e400)", "nan", "inf", "1,0", "0x", "1_", "two words",
)  # fmt: skip
# By the type of the default, for options whose classes check themselves.
WORDS_BY_TYPE = {
    float: ("1e400", "-1e400", "x", "''", "True", "None", "(1,)", "nan", "1,0"),
    int: ("1.5", "1e400", "x", "''", "True", "None", "(1,)", "-100000000000000000000"),
    bool: ("1", "0.5", "x", "''", "None", "()"),
    str: ("1", "0.5", "True", "None", "(1,)", "{} and {x}"),
    tuple: ("1", "0.5", "True", "None", "('x',)", "nowhere"),
}
# Words that these options take.
_TAKEN = {("VOCABULARY", "{} and {x}")}


@dataclass(frozen=True)
class Option:
    """An option with a value that it cannot have, as words or in a config file."""

    option: str
    value: str
    in_file: bool = False

    @property
    def id(self):
        return f"{self.option} {self.value}{' in a file' * self.in_file}"

    @property
    def names(self):
        return self.option

    def words(self, place):
        if not self.in_file:
            return [*place.words, self.option, self.value]
        tree = yaml.safe_load(self.value)
        for part in reversed(self.option.split(".")):
            tree = {part: tree}
        path = place.folder / "bad.yaml"
        path.write_text(yaml.safe_dump(tree))
        words = list(place.words)
        words.insert(words.index("--config-file") + 2, path)
        return words


# The command line sets these by flags, after the files.
_BY_FLAGS = {"OUTPUT_DIR", "RESUME", "SEED", "DATASET.ROOT", "TRAINER.NAME", "DATASET.NAME"}


def option_cases():
    """For every option the words that it cannot have."""
    rules, defaults = option_rules(), dict(flat(default_config()))
    for option, rule in rules.items():
        for word in WORDS:
            value = _literal(word)
            if isinstance(defaults[option], float) and type(value) is int and value < 10**19:
                value = float(value)
            if not rule.accepts(value):
                yield Option(option, word)
        numbers = isinstance(rule.rule if isinstance(rule, Several) else rule, Real)
        if option not in _BY_FLAGS:
            if numbers:
                yield Option(
                    option, "[.nan, .nan, .nan]" if isinstance(rule, Several) else ".nan", True
                )
            yield Option(option, "2020-01-01", True)
            yield Option(option, "{a: {b: 1}}", True)
    for name, default in _own_options():
        for word in WORDS_BY_TYPE[type(default)]:
            if (name, word) not in _TAKEN and _literal(word) != default:
                yield Option(f"{NODE}.{name}", word)
        yield Option(f"{NODE}.{name}", "{a: {b: 1}}", True)


def _own_options():
    """Names and defaults of TRAINER.PROXYFDA."""
    node = default_config().TRAINER.PROXYFDA
    for one in [PluginOptions, *(kind.options_class for kind in REGULARISERS.values())]:
        for field in fields(one):
            if field.name.upper() in node:
                yield field.name.upper(), node[field.name.upper()]


OPTION_CASES = list({case.id: case for case in option_cases()}.values())

# Told by users: each has to be refused by the option's own name.
TOLD = [
    Option(*words.split(" ", 1))
    for words in """
    DATALOADER.TRAIN_X.BATCH_SIZE 0
    DATALOADER.TRAIN_X.BATCH_SIZE -1
    DATALOADER.TEST.BATCH_SIZE 0
    DATALOADER.NUM_WORKERS -1
    TRAIN.PRINT_FREQ 0
    OPTIM.LR -1
    OPTIM.LR 1e400
    OPTIM.LR nan
    OPTIM.MOMENTUM -0.9
    OPTIM.MOMENTUM 2
    OPTIM.WEIGHT_DECAY -1
    OPTIM.MAX_EPOCH -1
    OPTIM.STAGED_LR True
    OPTIM.STEPSIZE ()
    INPUT.SIZE (32,)
    INPUT.PIXEL_STD (0,0,0)
    INPUT.PIXEL_STD (1,1)
    INPUT.RRCROP_SCALE (1,0.5)
    INPUT.RRCROP_SCALE (0,1)
    INPUT.RRCROP_SCALE 0.5
    DATALOADER.K_TRANSFORMS 0
    DATALOADER.K_TRANSFORMS 2
    INPUT.NO_TRANSFORM True
    INPUT.TRANSFORMS ('flip',)
    INPUT.TRANSFORMS random_flip
    SEED 100000000000000000000
    TRAINER.PROXYFDA.WEIGHT -2
    TRAINER.PROXYFDA.TEMPLATE {} and {x}
    TRAINER.PROXYFDA.TEMPLATE a {} {
    TRAINER.PROXYFDA.TEMPLATE a photo
    TRAINER.PROXYFDA.k 8
    TRAINER.PROXYFDA.Q 8
    K 8
    OPTIM.LRR 1
    OPTIM 1
    OPTIM.LR.X 1
    TRAINER.PROXYFDA.FORM paper
    DATASET.SUBSAMPLE_CLASSES old
    DATASET.SPLIT other
    DATASET.NUM_SHOTS 0
    DATASET.NAME EuroSAAT
    OUTPUT_DIR ''
    """.strip().splitlines()
    for words in [words.strip()]
]
