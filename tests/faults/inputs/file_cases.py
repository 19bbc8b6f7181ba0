"""Bad files: splits, configs, descriptions, templates, images, checkpoints, weights, and flags."""

import io
import json
import shutil
from dataclasses import dataclass
from typing import Callable

import numpy as np
import torch
from faults.inputs.calls import CLASSES, ROOT, picture
from PIL import Image


@dataclass(frozen=True)
class FileCase:
    """A case that makes files.

    Attributes:
        id: of the test.
        names: what the sentence has to name.
        make: makes the files at a place and gives the words of the command line.
        while_training: whether it shows only when a run has begun, so that there is a log of it.
    """

    id: str
    names: str
    make: Callable
    while_training: bool = False

    def words(self, place):
        return self.make(place)


def replaced(words, flag, *values):
    """Words with other values of a flag."""
    words = list(words)
    place = words.index(flag)
    words[place + 1 : place + 2] = values
    return words


# -- split files ----------------------------------------------------------------------------------

ENTRIES = {
    "no list": 5, "null": None, "text": "a.png", "two": ["a/0.png", 0], "none": [],
    "four": ["a/0.png", 0, "a", 1], "label text": ["a/0.png", "zero", "a"],
    "label empty": ["a/0.png", "", "a"], "label 0.9": ["a/0.png", 0.9, "a"],
    "label -1": ["a/0.png", -1, "a"], "label -0.5": ["a/0.png", -0.5, "a"],
    "label infinite": ["a/0.png", float("inf"), "a"], "label nan": ["a/0.png", float("nan"), "a"],
    "label -infinite": ["a/0.png", float("-inf"), "a"], "label null": ["a/0.png", None, "a"],
    "label true": ["a/0.png", True, "a"], "label list": ["a/0.png", [0], "a"],
    "label object": ["a/0.png", {"a": 0}, "a"], "label huge": ["a/0.png", 10**30, "a"],
    "label 1e300": ["a/0.png", 1e300, "a"], "label gap": ["a/0.png", 9, "z"],
    "label superscript": ["a/0.png", "²", "a"], "path number": [3, 0, "a"],
    "path null": [None, 0, "a"], "path list": [["a"], 0, "a"], "path empty": ["", 0, "a"],
    "path absolute": ["/etc/hostname", 0, "ant"], "path up": ["../../secret.png", 0, "ant"],
    "path up inside": ["ant/../../0.png", 0, "ant"], "path up windows": ["..\\0.png", 0, "ant"],
    "path nul": ["a\0.png", 0, "ant"], "path missing": ["ant/none.png", 0, "ant"],
    "path folder": ["ant", 0, "ant"], "path long": ["a" * 5000 + ".png", 0, "ant"],
    "name number": ["ant/0.png", 0, 7], "name null": ["ant/0.png", 0, None],
    "name empty": ["ant/0.png", 0, ""], "name blank": ["ant/0.png", 0, " "],
    "name list": ["ant/0.png", 0, ["ant"]], "name of another": ["ant/0.png", 0, "wasp"],
    "object": {"path": "ant/0.png", "label": 0, "name": "ant"},
}  # fmt: skip

TEXTS = {
    "empty": "", "blank": "  \n", "word": "split", "number": "1", "null": "null", "list": "[]",
    "object": "{}", "open": '{"train": [', "cut": '{"train": [["ant/0.png", 0, "an',
    "comma": '{"train": [],}', "deep": "[" * 5000, "two": '{"train": []} {"val": []}',
    "quotes": "{'train': []}", "no val": '{"train": [], "test": []}',
    "lists are objects": '{"train": {}, "val": {}, "test": {}}',
    "lists are null": '{"train": null, "val": [], "test": []}',
    "all empty": '{"train": [], "val": [], "test": []}',
}  # fmt: skip


def split_of_place(place):
    """A sound split of the class folders below images/, and the folder it belongs to."""
    home = place.folder / "data" / "oxford_pets"
    shutil.copytree(place.root, home / "images", ignore=shutil.ignore_patterns("split_fewshot"))
    parts = {"train": range(3), "val": range(3, 4), "test": range(4, 6)}
    split = {
        part: [[f"{name}/{n}.png", label, name] for label, name in enumerate(CLASSES) for n in some]
        for part, some in parts.items()
    }
    return home, split


def _words_of_split(place):
    config = ROOT / "configs" / "datasets" / "oxford_pets.yaml"
    words = replaced(place.words, "--root", place.folder / "data")
    return replaced(words, "--dataset-config-file", config)


def _split_file(content):
    def make(place):
        home, split = split_of_place(place)
        text = content(split)
        data = text if isinstance(text, bytes) else text.encode()
        (home / "split_zhou_OxfordPets.json").write_bytes(data)
        return _words_of_split(place)

    return make


def _always(content):
    return lambda split: content


def _with_entry(part, entry):
    def content(split):
        split[part].append(entry)
        return json.dumps(split)

    return content


def _without(part):
    def content(split):
        return json.dumps({key: value for key, value in split.items() if key != part})

    return content


def split_cases():
    for part in ("train", "val", "test"):
        for name, entry in ENTRIES.items():
            yield FileCase(
                f"split {part}: {name}", "oxford_pets", _split_file(_with_entry(part, entry))
            )
        yield FileCase(f"split without {part}", part, _split_file(_without(part)))
    for name, text in TEXTS.items():
        yield FileCase(f"split file: {name}", "split_zhou", _split_file(_always(text)))
    yield FileCase("split file: latin", "split_zhou", _split_file(_always(b'{"tr\xe4in": []}')))
    yield FileCase("split file: binary", "split_zhou", _split_file(_always(bytes(range(256)))))


# -- config files and descriptions ----------------------------------------------------------------

YAML = {
    "empty": "", "blank": "\n\n", "comment": "# nothing\n", "word": "options", "number": "3",
    "list": "- OPTIM\n- LR\n", "open": "OPTIM: {", "tab": "OPTIM:\n\tLR: 1\n",
    "indent": "OPTIM:\n  LR: 1\n MOMENTUM: 0\n", "colon": "OPTIM: LR: 1\n", "alias": "OPTIM: *x\n",
    "quote": "OPTIM: {NAME: 'sgd}\n", "python": "OPTIM: !!python/object/apply:os.getcwd []\n",
    "date": "OPTIM: {LR: 2024-99-99}\n", "node is a value": "OPTIM: 5\n",
    "node is a list": "OPTIM: [1, 2]\n", "node is null": "OPTIM:\n", "null": "OPTIM: {LR: null}\n",
    "key is a number": "1: 2\n", "key is null": "null: 2\n", "key is a list": "[1]: 2\n",
    "unknown": "OPTIMS: {LR: 1}\n", "unknown inside": "OPTIM: {LRR: 1}\n",
    "twice": "OPTIM: {LR: 1.0}\nOPTIM: {LR: 2.0}\n", "deep": "a: " + "[" * 3000 + "\n",
    "value is a node": "OPTIM: {LR: {A: 1}}\n", "octal": "OPTIM: {MAX_EPOCH: 0x}\n",
    "two documents": "OPTIM: {LR: 1.0}\n---\nOPTIM: {LR: 2.0}\n",
    "text for a flag": "USE_CUDA: maybe\n", "number for a flag": "USE_CUDA: 0\n",
    "text for a list": "INPUT: {TRANSFORMS: random_flip}\n", "base": "_BASE_: other.yaml\n",
    "binary tag": "OPTIM: {NAME: !!binary aGVsbG8=}\n", "merge": "OPTIM: {<<: 3}\n",
    "set": "OPTIM: !!set {a, b}\n",
}  # fmt: skip


def _config(data, name="mine.yaml", flag="--config-file"):
    def make(place):
        path = place.folder / name
        path.write_bytes(data if isinstance(data, bytes) else data.encode())
        if flag == "--config-file":
            words = list(place.words)
            words.insert(words.index(flag) + 2, path)
            return words
        return replaced(place.words, flag, path)

    return make


def _given(flag, *values):
    return lambda place: replaced(place.words, flag, *values)


def config_cases():
    for name, text in YAML.items():
        yield FileCase(f"config: {name}", "mine.yaml", _config(text))
        if not name.startswith("unknown"):
            yield FileCase(
                f"dataset config: {name}",
                "mine.yaml",
                _config(text, flag="--dataset-config-file"),
            )
    yield FileCase("config: binary", "mine.yaml", _config(bytes(range(256))))
    yield FileCase("config: latin", "mine.yaml", _config(b"OPTIM: {NAME: \xe4}"))
    yield FileCase("config: a README", "README.md", _given("--config-file", ROOT / "README.md"))
    yield FileCase("config: code", "train.py", _given("--config-file", ROOT / "train.py"))
    yield FileCase("config: a folder", "configs", _given("--config-file", ROOT / "configs"))
    yield FileCase("config: missing", "none.yaml", _given("--config-file", "none.yaml"))
    yield FileCase("config: empty word", "--config-file", _given("--config-file", ""))


DESCRIPTIONS = {
    "list": "- ant\n", "word": "birds", "open": "classes: {", "unknown key": "label: x\n",
    "name is a list": "name: [a]\n", "name is a node": "name: {a: b}\n",
    "classes is a list": "classes: [ant, bee]\n", "classes is a word": "classes: ant\n",
    "a class is a list": "classes: {ant: [a, b]}\n", "a class is empty": "classes: {ant: ''}\n",
    "an unknown folder": "classes: {wasp: wasp}\n", "equal names": "classes: {ant: x, bee: x}\n",
    "equal cleaned": "classes: {ant: red_fly, bee: Red fly}\n",
    "equal to a folder": "classes: {ant: bee}\n", "template is a list": "template: [a]\n",
    "key is a list": "[a]: b\n", "deep": "name: " + "[" * 3000,
}  # fmt: skip

TEMPLATES = (
    "a photo", "{} {}", "{} and {x}", "a {} {", "a {} }", "{", "}", "{0}", "{x}", "{:d}", "{!r}",
    "{}{}", "{0} {}", "a {{}}", "a { }", "{.a}", "{[0]}", "{:{}}", "%s",
)  # fmt: skip


def _description(text):
    def make(place):
        root = place.folder / "described"
        shutil.copytree(place.root, root, ignore=shutil.ignore_patterns("split_fewshot"))
        (root / "dataset.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
        return replaced(place.words, "--root", root)

    return make


def description_cases():
    for name, text in DESCRIPTIONS.items():
        yield FileCase(f"description: {name}", "dataset.yaml", _description(text))
    yield FileCase("description: binary", "dataset.yaml", _description(bytes(range(256))))
    for text in TEMPLATES:
        said = json.dumps({"template": text})
        yield FileCase(f"template {text}", "template", _description(said))
        words = "TRAINER.PROXYFDA.TEMPLATE", text
        yield FileCase(f"option template {text}", "TEMPLATE", _option(*words))


# -- images ---------------------------------------------------------------------------------------


def _bytes_of(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def images():
    """Files that are no images that can be read, by what is wrong with them."""
    grey = Image.fromarray(np.arange(32 * 32, dtype="uint8").reshape(32, 32) % 251)
    png, jpeg = _bytes_of(grey, "PNG"), _bytes_of(grey, "JPEG")
    floats = Image.fromarray(np.linspace(-5, 5, 1024, dtype="float32").reshape(32, 32))
    wide = Image.fromarray(np.full((32, 32), 2**30, dtype="int32"))
    lost = Image.fromarray(np.full((32, 32), np.nan, dtype="float32"))
    return {
        "empty": b"", "text": b"not an image", "half a PNG": png[: len(png) // 2],
        "a PNG's head": png[:20], "half a JPEG": jpeg[: len(jpeg) // 2], "a JPEG's head": jpeg[:30],
        "broken PNG": png[:60] + b"\0" * 40 + png[100:], "HTML": b"<html>404</html>",
        "a page of LFS": b"version https://git-lfs.github.com/spec/v1\n", "GIF's head": b"GIF89a",
        "negative floats": _bytes_of(floats, "TIFF"), "32 bits": _bytes_of(wide, "TIFF"),
        "floats that are no numbers": _bytes_of(lost, "TIFF"), "zip": b"PK\x03\x04" + b"\0" * 40,
    }  # fmt: skip


def _image(data):
    def make(place):
        root = place.folder / "spoilt"
        shutil.copytree(place.root, root, ignore=shutil.ignore_patterns("split_fewshot"))
        for path in root.glob("*/*.png"):
            path.write_bytes(data)
        return replaced(place.words, "--root", root)

    return make


def _folders(change):
    def make(place):
        root = place.folder / "changed"
        shutil.copytree(place.root, root, ignore=shutil.ignore_patterns("split_fewshot"))
        change(root)
        return replaced(place.words, "--root", root)

    return make


def _one_class(root):
    for name in CLASSES[1:]:
        shutil.rmtree(root / name)


def _same_cleaned(root):
    (root / "Red_fly").mkdir()
    (root / "red fly").mkdir()
    for number in range(6):
        picture(root / "Red_fly" / f"{number}.png")
        picture(root / "red fly" / f"{number}.png")


def image_cases():
    for name, data in images().items():
        yield FileCase(f"images: {name}", "spoilt", _image(data), while_training=True)
    yield FileCase("folders: one class", "changed", _folders(_one_class))
    yield FileCase("folders: equal names", "red fly", _folders(_same_cleaned))
    yield FileCase(
        "folders: no image", "ant", _folders(lambda r: [p.unlink() for p in (r / "ant").iterdir()])
    )
    yield FileCase(
        "folders: one image",
        "ant",
        _folders(lambda r: [p.unlink() for p in list((r / "ant").iterdir())[1:]]),
    )
    yield FileCase("root: a file", "small.yaml", lambda p: replaced(p.words, "--root", p.config))
    yield FileCase("root: missing", "nowhere", _given("--root", "nowhere"))
    yield FileCase("root: empty", "DATASET.ROOT", _given("--root", ""))


# -- checkpoints and weights ----------------------------------------------------------------------


def _state(**entries):
    return {"state_dict": {"ctx": torch.zeros(2, 64)}, "epoch": 1, **entries}


CHECKPOINTS = {
    "empty": b"", "text": b"weights", "zip": b"PK\x03\x04" + b"\0" * 100, "a number": 3,
    "a list": [1, 2], "a tensor": torch.zeros(3), "no dict": _state(state_dict=[1]),
    "no weights": {}, "null weights": _state(state_dict=None), 
    "no tensors": _state(state_dict={"ctx": 1}),
    "wrong names": _state(state_dict={"w": torch.zeros(2, 64)}),
    "wrong shape": _state(state_dict={"ctx": torch.zeros(2, 3)}),
    "wrong length": _state(state_dict={"ctx": torch.zeros(5, 64)}),
    "scalar": _state(state_dict={"ctx": torch.tensor(1.0)}),
}  # fmt: skip


def _evaluation(content, epoch=1):
    def make(place):
        run = place.folder / "run"
        shutil.copytree(place.run, run)
        path = run / "prompt_learner" / f"model.pth.tar-{epoch}"
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            torch.save(content, path)
        return [*place.words[:-2], "--output-dir", place.output, "--eval-only", "--model-dir", run]

    return make


WEIGHTS = {
    "empty": b"", "text": b"weights", "half a zip": b"PK\x03\x04" + b"\0" * 100, "a number": 3,
    "a list": [torch.zeros(2)], "no weights": {}, "names alone": {"a": 1},
    "of something else": {"layer.weight": torch.zeros(2, 2)},
    "a part": {"visual.proj": torch.zeros(2, 2), "text_projection": torch.zeros(2, 2)},
    "odd shapes": {"visual.proj": torch.zeros(2), "text_projection": torch.zeros(2)},
}  # fmt: skip


def _weights(content, name="clip.pt"):
    def make(place):
        path = place.folder / name
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            torch.save(content, path)
        return [*place.words, "MODEL.BACKBONE.WEIGHTS", path]

    return make


def _of_trainer(trainer, *words):
    return lambda place: [*replaced(place.words, "--trainer", trainer), *words]


def _option(*words):
    return lambda place: [*place.words, *words]


def checkpoint_cases():
    for name, content in CHECKPOINTS.items():
        yield FileCase(f"checkpoint: {name}", "model.pth.tar-1", _evaluation(content))
    for name, content in WEIGHTS.items():
        yield FileCase(f"weights: {name}", "clip.pt", _weights(content))
    for name in ("empty", "text"):
        make = _weights(WEIGHTS[name], "clip.safetensors")
        yield FileCase(f"safetensors: {name}", "clip.safetensors", make)
    node = "MODEL.BACKBONE."
    for name, option, value, said in (
        ("a folder", "WEIGHTS", "/tmp", "/tmp"),
        ("missing", "WEIGHTS", "none.pt", "none.pt"),
        ("no tag", "WEIGHTS", "opnai", "opnai"),
        ("a name", "NAME", "ViT-B/61", "ViT-B/16"),
        ("another kind", "NAME", "RN50", "RN50"),
        ("bundled", "WEIGHTS", "bundled", "ViT-Bundled"),
        ("not prompted", "NAME", "ViT-B-16-SigLIP", "SigLIP"),
        ("of timm", "NAME", "timm:vit_tiny_patch16_224", "timm"),
    ):
        yield FileCase(f"backbone: {name}", said, _option(node + option, value))
    for trainer in ("MaPLe", "PromptSRC"):
        words = [f"{node}NAME", "RN50", f"{node}WEIGHTS", "openai"]
        yield FileCase(f"{trainer} with a ResNet", "RN50", _of_trainer(trainer, *words))


# -- flags ----------------------------------------------------------------------------------------


def flag_cases():
    def with_words(*words):
        return lambda place: [*place.words[:-2], *words, "--output-dir", place.output]

    for words, said in (
        ("--seed x", "--seed"),
        ("--seed 1.5", "--seed"),
        ("--seed 99999999999999999999", "SEED"),
        ("--trainer", "--trainer"),
        ("--trainer CoOpp", "CoOp"),
        ("--trainer CoOp+rkd", "CoOp+rkd"),
        ("--regulariser rdk", "rkd"),
        ("--regularizer rkd", "--regularizer"),
        ("--backbone ViT", "ViT"),
        ("--transforms flip", "flip"),
        ("--transforms", "--transforms"),
        ("--eval-only", "--model-dir"),
        ("--eval-only --model-dir nowhere", "nowhere"),
        ("--model-dir nowhere", "--model-dir"),
        ("--load-epoch x", "--load-epoch"),
        ("--alpha x", "--alpha"),
        ("--alpha 0.5", "--alpha"),
        ("--no-cash", "--no-cash"),
        ("--protocol other", "other"),
        ("--probe nowhere.yaml", "nowhere.yaml"),
        ("--workers 3", "--workers"),
        ("--load-epoch 3", "--load-epoch"),
    ):
        yield FileCase(f"flag: {words}", said, with_words(*words.split()))
    for words, said in (
        ("OPTIM.LR", "OPTIM.LR"),
        ("OPTIM.LR 0.1 OPTIM.MOMENTUM", "OPTIM.MOMENTUM"),
        ("OPTIM.LR=0.1", "OPTIM.LR"),
        ("=", "="),
        (". 1", "."),
        ("OPTIM. 1", "OPTIM."),
        (".LR 1", "OPTIM.LR"),
        ("optim.lr 1", "OPTIM.LR"),
        ("é 1", "é"),
    ):
        yield FileCase(f"options: {words}", said, _option(*words.split()))
    for trainer, words, said in (
        ("MaPLe", "TRAINER.MAPLE.PROMPT_DEPTH 99", "PROMPT_DEPTH"),
        ("MaPLe", "TRAINER.MAPLE.N_CTX 100000", "N_CTX"),
        ("PromptSRC", "TRAINER.PROMPTSRC.N_CTX_VISION 100000", "N_CTX_VISION"),
        ("PromptSRC", "TRAINER.PROMPTSRC.N_CTX_TEXT 100000 TRAINER.PROMPTSRC.PROMPT_DEPTH_TEXT 1 "
         "TRAINER.PROMPTSRC.PROMPT_DEPTH_VISION 1", "N_CTX_TEXT"),
        ("PromptSRC", "TRAINER.PROMPTSRC.GPA_MEAN 1000", "GPA_MEAN"),
        ("CoOp", "TRAINER.COOP.N_CTX 100000", "N_CTX"),
        ("CoOp", "MODEL.INIT_WEIGHTS nowhere", "nowhere"),
        ("CoOp", "INPUT.SIZE (64,64)", "INPUT.SIZE"),
        ("CoOp", "OPTIM.STAGED_LR True OPTIM.NEW_LAYERS ('ctx',)", "STAGED_LR"),
        ("CoOp", "OPTIM.SGD_NESTEROV True OPTIM.MOMENTUM 0", "NESTEROV"),
        ("FineTune", "TRAINER.FINETUNE.START_FROM nowhere", "nowhere"),
        ("CoOp", "OPTIM.WARMUP_EPOCH -2", "OPTIM.WARMUP_EPOCH"),
        ("CoOp", "OPTIM.WARMUP_EPOCH 9 OPTIM.MAX_EPOCH 8", "WARMUP_EPOCH"),
        ("CoOp", "TRAIN.CHECKPOINT_FREQ -2", "CHECKPOINT_FREQ"),
        ("CoOp", "TRAINER.COOP.CTX_INIT a_{}_{", "CTX_INIT"),
        ("MaPLe", "TRAINER.MAPLE.CTX_INIT a_{}", "CTX_INIT"),
        ("PromptSRC", "TRAINER.PROMPTSRC.CTX_INIT }a", "CTX_INIT"),
        ("FineTune", "OPTIM.WARMUP_EPOCH 3", "WARMUP_EPOCH"),
        ("FineTune", "INPUT.SIZE (32,64)", "INPUT.SIZE"),
        ("FineTune", "MODEL.BACKBONE.NAME timm:vit_tiny", "vit_tiny"),
        ("FineTune", "MODEL.BACKBONE.NAME RN50", "RN50"),
        ("FineTune", "MODEL.BACKBONE.NAME flava", "flava"),
        ("FineTune", "MODEL.BACKBONE.NAME timm:vit_tiny_patch16_224", "timm"),
        ("CoOp", "TRAINER.PROXYFDA.REGULARISER fda TRAINER.PROXYFDA.M 4", "TRAINER.PROXYFDA.M"),
        ("CoOp", "TRAINER.PROXYFDA.MINING True", "MINING"),
        ("CoOp", "TRAINER.PROXYFDA.REGULARISER rkd TRAINER.PROXYFDA.SIMILARITY 0", "SIMILARITY"),
        ("CoOp", "TRAINER.PROXYFDA.REGULARISER rkd TRAINER.PROXYFDA.SPACES text,text", "SPACES"),
        ("CoOp", "TRAINER.PROXYFDA.REGULARISER pointwise TRAINER.PROXYFDA.SPACES words "
         "TRAINER.PROXYFDA.VOCABULARY nowhere", "nowhere"),
        ("CoOp", "DATASET.SUBSAMPLE_CLASSES seen@0", "seen@0"),
        ("CoOp", "DATASET.SUBSAMPLE_CLASSES seen@1", "seen@1"),
        ("CoOp", "DATASET.SPLIT ldifs", "LDIFS"),
        ("CoOp", "OPTIM.WEIGHT_DECAY 1e300", "WEIGHT_DECAY"),
        ("CoOp", "TRAINER.PROXYFDA.REGULARISER fda TRAINER.PROXYFDA.WEIGHT 1e300", "WEIGHT"),
    ):  # fmt: skip
        make = _of_trainer(trainer, *words.split())
        yield FileCase(f"{trainer}: {words}", said, make)


FILE_CASES = [
    *split_cases(),
    *config_cases(),
    *description_cases(),
    *image_cases(),
    *checkpoint_cases(),
    *flag_cases(),
]
