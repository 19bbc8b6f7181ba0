"""Own images: a root of class folders, no code and no split file needed."""

from __future__ import annotations

import os

import yaml

from datasets.classes import in_hash_order
from datasets.entry import PARTS, Entry, same_prompts
from datasets.make_split import is_image
from datasets.split import SplitDataset
from proxyfda.dassl import DATASET_REGISTRY
from proxyfda.utils.errors import BadValue, NotFound
from proxyfda.utils.templates import check_template

DESCRIPTION = "dataset.yaml"
PART_NAMES = {"train": ("train",), "val": ("val", "valid", "validation"), "test": ("test",)}
FEWEST_IMAGES = 4


@DATASET_REGISTRY.register()
class ImageFolder(SplitDataset):
    """Own images under ``DATASET.ROOT``, one folder per class.

    The root is one of

    * ``train/<class>/``, ``val/<class>/``, ``test/<class>/`` (``valid`` and ``validation`` are
      taken for ``val``);
    * ``train`` and ``test`` only: a fifth of each class's training images becomes val;
    * ``train`` and ``val`` only: the val images are the test images, and val is cut from train as
      above, which a line says;
    * the class folders themselves: 50 % of each class train, 20 % val, the rest test, for which a
      class needs at least 4 images.

    What is cut is decided by a hash of each file's path below the root: it depends on neither the
    seed, the listing order nor the other classes. Class folders are read with their subfolders.
    Files that are hidden, no images, or in no class folder are skipped, and a line counts them.

    An optional ``dataset.yaml`` in the root may give ::

        name: my birds                        # shown in tables; default: the root folder's name
        template: "a photo of a {}, a bird."  # default: "a photo of a {}."
        classes:                              # folder: class name; default: the folder's name
          001_kea: kea
          002_robin: European robin

    Labels follow the order of ``classes``, then the remaining folders sorted by name; this order
    decides which half of the classes is base. Nothing is written but the few-shot cache, in
    ``<root>/split_fewshot/``, and the run goes on without where that is not allowed.

    Raises:
        FileNotFoundError: no root, or no class folders in it.
        ValueError: a class with too few images, parts that do not fit, a faulty ``dataset.yaml``.
    """

    hint = "restore it or remove the link"

    def locate(self, root):
        self.dataset_dir = self.image_dir = root
        self.split_path = os.path.join(root, DESCRIPTION)
        self.split_fewshot_dir = os.path.join(root, "split_fewshot")

    def parts(self):
        root = self.image_dir
        self._skipped = []
        names = self._describe()
        parts = self._folders()
        found = {part: self._images_by_class(folder) for part, folder in parts.items()}
        if self._skipped:
            print(
                f"ImageFolder: skipped {len(self._skipped)} files (hidden, no image, or in no "
                f"class folder), the first is {self._skipped[0]}"
            )
        classes = found.get("train", found.get("all"))
        if len(classes) < 2:
            raise NotFound(
                f"ImageFolder needs at least 2 class folders in {parts.get('train', root)}, found "
                f"{len(classes)}; point DATASET.ROOT to the folder that holds the class folders"
            )
        self._check_class_folders(found, classes, names)
        for first, second in same_prompts([names.get(folder, folder) for folder in classes]):
            raise BadValue(
                f"ImageFolder: two classes are called {first!r} and {second!r}, whose prompts are "
                f"the same; give them different names (classes: in {self.split_path}), or put the "
                "images into one folder"
            )
        order = {folder: i for i, folder in enumerate(names)}
        classes = sorted(classes, key=lambda folder: (order.get(folder, len(order)), folder))
        split = self._split(found, classes)
        return {
            part: [
                Entry(self._below_root(path), label, names.get(folder, folder))
                for label, folder in enumerate(classes)
                for path in sorted(split[part][folder])
            ]
            for part in PARTS
        }

    def _describe(self):
        """Take over ``dataset.yaml``; returns its class names by folder."""
        self.name = os.path.basename(self.image_dir) or self.name
        if not os.path.exists(self.split_path):
            return {}

        def fault(what):
            return BadValue(f"{self.split_path}: {what}; correct it or remove the file")

        try:
            with open(self.split_path, encoding="utf-8") as file:
                # Every value as text: a folder may be called 001, no or null.
                given = yaml.load(file, Loader=yaml.BaseLoader) or {}
        except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
            raise fault("not YAML (" + " ".join(str(error).split()) + ")") from error
        if not isinstance(given, dict) or set(given) - {"name", "template", "classes"}:
            raise fault("it may hold the keys name, template and classes only")
        names = given.get("classes") or {}
        if not isinstance(names, dict) or not all(isinstance(n, str) and n for n in names.values()):
            raise fault("classes must map each folder to one class name")
        self.name = given.get("name") or self.name
        self.template = given.get("template") or self.template
        if not isinstance(self.name, str):
            raise fault("name must be text")
        check_template(self.template, f"{self.split_path}: template")
        return names

    def _folders(self):
        """The folders of train, val and test, or the root as ``all``."""
        parts = {}
        for part, spellings in PART_NAMES.items():
            here = [os.path.join(self.image_dir, word) for word in spellings]
            here = [folder for folder in here if os.path.isdir(folder)]
            if len(here) > 1:
                raise BadValue(f"ImageFolder: {here[0]} and {here[1]} are both val; remove one")
            if here:
                parts[part] = here[0]
        if "train" not in parts or len(parts) == 1:  # "train" alone may be a class, with trams
            return {"all": self.image_dir}
        if "test" not in parts:
            print(
                f"ImageFolder: no test folder in {self.image_dir}, so the images in "
                f"{parts['val']} are the test images and val is cut from train"
            )
            parts["test"] = parts.pop("val")
        return parts

    def _images_by_class(self, folder):
        """Image paths by class folder, in sorted order."""
        found = {}
        for name in sorted(os.listdir(folder)):
            path = os.path.join(folder, name)
            if os.path.isdir(path) and not name.startswith(".") and path != self.split_fewshot_dir:
                found[name] = list(self._images(path))
            elif os.path.isfile(path) and path != self.split_path:
                self._skipped.append(path)
        return found

    def _images(self, folder):
        for here, folders, files in os.walk(folder):
            folders[:] = sorted(f for f in folders if not f.startswith("."))
            for name in sorted(files):
                path = os.path.join(here, name)
                if name.startswith(".") or not is_image(name):
                    self._skipped.append(path)
                else:
                    yield path

    def _check_class_folders(self, found, classes, names):
        unknown = [folder for folder in names if folder not in classes]
        if unknown:
            raise BadValue(
                f"{self.split_path} names the class folder {unknown[0]!r}, which does not exist; "
                "correct the name (it is case-sensitive)"
            )
        for part, folders in found.items():
            unknown = [folder for folder in folders if folder not in classes]
            if unknown:
                raise BadValue(
                    f"ImageFolder: {part} has the class {unknown[0]!r}, which has no folder in "
                    "train; use the same class folders everywhere"
                )
            empty = [folder for folder in classes if not folders.get(folder)]
            if empty:
                kind = "" if part == "all" else f"{part} "
                raise BadValue(
                    f"ImageFolder: {len(empty)} of {len(classes)} classes have no {kind}images, "
                    f"the first is {empty[0]!r}; add images or remove the folder"
                )

    def _split(self, found, classes):
        split = {"train": {}, "val": {}, "test": {}}
        if "all" in found:
            self._check_numbers(found["all"], FEWEST_IMAGES, "the split into train, val and test")
            for folder in classes:
                images = self._shuffled(found["all"][folder])
                n_train, n_val = round(0.5 * len(images)), round(0.2 * len(images))
                split["train"][folder] = images[:n_train]
                split["val"][folder] = images[n_train : n_train + n_val]
                split["test"][folder] = images[n_train + n_val :]
            return split
        split.update(found)
        if "val" not in found:
            self._check_numbers(found["train"], 2, "cutting val from train")
            for folder in classes:
                images = self._shuffled(found["train"][folder])
                n_val = max(1, round(0.2 * len(images)))
                split["val"][folder] = images[:n_val]
                split["train"][folder] = images[n_val:]
        return split

    @staticmethod
    def _check_numbers(found, fewest, purpose):
        few = {folder: len(images) for folder, images in found.items() if len(images) < fewest}
        if few:
            folder, n = next(iter(few.items()))
            raise BadValue(
                f"ImageFolder: {len(few)} classes have fewer than the {fewest} images that "
                f"{purpose} needs, the first is {folder!r} with {n}; add images or remove the class"
            )

    def _shuffled(self, images):
        return in_hash_order(images, self._below_root)

    def _below_root(self, path):
        return os.path.relpath(path, self.image_dir).replace(os.sep, "/")
