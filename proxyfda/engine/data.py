"""Datasets, few-shot sampling, transforms and loaders."""

from __future__ import annotations

import os
import random

import torch
from PIL import Image
from torch.utils.data import DataLoader, RandomSampler, SequentialSampler
from torchvision import transforms as T

from proxyfda.utils.errors import BadValue, NotFound, UserError

from .images import to_rgb
from .registry import build_dataset, check_availability
from .seeds import ImageSeeds


class ImageError(UserError, OSError):
    """An image that cannot be read. Keeps to its one sentence when a loader worker hands it on."""

    def __init__(self, message):
        # A DataLoader rebuilds a worker's exception from its whole traceback as text.
        super().__init__(str(message).rsplit("ImageError: ", 1)[-1].strip())


def read_image(path):
    """Open an image file as RGB, see `.images`. Raises ImageError naming the file if that fails."""
    try:
        with Image.open(path) as image:
            return to_rgb(image, path)
    except FileNotFoundError:
        raise ImageError(f'Image "{path}" is missing: put it back or check DATASET.ROOT') from None
    except Exception as error:  # Pillow raises OSError, SyntaxError, ValueError, struct.error, ...
        raise ImageError(
            f'Image "{path}" cannot be read ({" ".join(str(error).split())}): restore or remove it'
        ) from None


def read_datum(item):
    """The image of a Datum in RGB: from its file, or by its own `read()` where it comes from
    memory. Raises ImageError as `read_image` does."""
    read = getattr(item, "read", None)
    return read_image(item.impath) if read is None else read()


class Datum:
    """An image file with its class label, domain label and class name.

    Raises FileNotFoundError if the file does not exist.
    """

    def __init__(self, impath="", label=0, domain=0, classname=""):
        if not os.path.isfile(impath):
            raise NotFound(
                f'No image file at "{impath}": check DATASET.ROOT and that the data are complete'
            )
        self._impath, self._label = impath, label
        self._domain, self._classname = domain, classname

    impath = property(lambda self: self._impath)
    label = property(lambda self: self._label)
    domain = property(lambda self: self._domain)
    classname = property(lambda self: self._classname)


class DatasetBase:
    """A dataset's splits, lists of Datum: `train_x`, `train_u` (unlabelled), `val`, `test`.

    Class names and the number of classes, max label + 1, are those of `train_x`.
    """

    dataset_dir = ""
    domains = []

    def __init__(self, train_x=None, train_u=None, val=None, test=None):
        if not train_x:
            raise BadValue(f"{type(self).__name__} has no training image")
        self._train_x, self._train_u, self._val, self._test = train_x, train_u, val, test
        self._num_classes = self.get_num_classes(train_x)
        self._lab2cname, self._classnames = self.get_lab2cname(train_x)

    train_x = property(lambda self: self._train_x)
    train_u = property(lambda self: self._train_u)
    val = property(lambda self: self._val)
    test = property(lambda self: self._test)
    lab2cname = property(lambda self: self._lab2cname)
    classnames = property(lambda self: self._classnames)
    num_classes = property(lambda self: self._num_classes)

    @staticmethod
    def get_num_classes(data_source):
        return max(item.label for item in data_source) + 1

    @staticmethod
    def get_lab2cname(data_source):
        """`({label: class name}, [class names by label])`."""
        lab2cname = {item.label: item.classname for item in data_source}
        return lab2cname, [lab2cname[label] for label in sorted(lab2cname)]

    @staticmethod
    def split_dataset_by_label(data_source):
        """`{label: items}`, labels in order of first appearance, items in the given order."""
        groups = {}
        for item in data_source:
            groups.setdefault(item.label, []).append(item)
        return groups

    def generate_fewshot_dataset(self, *data_sources, num_shots=-1, repeat=False):
        """Draw `num_shots` items of every class from each source, with python's `random`.

        A class with fewer items gives all of them (and takes no random number), or, with `repeat`,
        `num_shots` draws with replacement. `num_shots` below 1 gives the sources unchanged. One
        source gives a list, several give a list of lists.
        """
        if num_shots < 1:
            return data_sources[0] if len(data_sources) == 1 else data_sources
        print(f"Creating a {num_shots}-shot dataset")
        output = []
        for source in data_sources:
            chosen = []
            for items in self.split_dataset_by_label(source).values():
                if len(items) >= num_shots:
                    items = random.sample(items, num_shots)
                elif repeat:
                    items = random.choices(items, k=num_shots)
                chosen.extend(items)
            output.append(chosen)
        return output[0] if len(output) == 1 else output


INTERPOLATION_MODES = {
    "bilinear": T.InterpolationMode.BILINEAR,
    "bicubic": T.InterpolationMode.BICUBIC,
    "nearest": T.InterpolationMode.NEAREST,
}
SAMPLERS = {"RandomSampler": RandomSampler, "SequentialSampler": SequentialSampler}
TRANSFORMS = [
    "center_crop",
    "colorjitter",
    "gaussian_blur",
    "normalize",
    "random_crop",
    "random_flip",
    "random_resized_crop",
    "randomgrayscale",
]


def build_transform(cfg, is_train=True, choices=None):
    """The torchvision pipeline of INPUT.TRANSFORMS (or `choices`); None with INPUT.NO_TRANSFORM.

    For training the chosen augmentations, or a plain resize to INPUT.SIZE where no crop is among
    them; for testing a resize of the shorter side and a centre crop. The order is fixed, whatever
    the order of the names. Raises ValueError for an unknown name.
    """
    inp = cfg.INPUT
    if inp.NO_TRANSFORM:
        print("Note: no transform is applied!")
        return None
    choices = inp.TRANSFORMS if choices is None else choices
    for choice in choices:
        check_availability(choice, TRANSFORMS, "name in INPUT.TRANSFORMS")
    check_availability(inp.INTERPOLATION, INTERPOLATION_MODES, "INPUT.INTERPOLATION")
    interpolation = INTERPOLATION_MODES[inp.INTERPOLATION]
    size = tuple(inp.SIZE)
    steps, notes = [], []

    def add(note, transform):
        notes.append(note)
        steps.append(transform)

    if not is_train:
        side = max(size)
        add(f"resize the smaller edge to {side}", T.Resize(side, interpolation))
        add(f"{size[0]}x{size[1]} center crop", T.CenterCrop(size))
    else:
        if not {"random_crop", "random_resized_crop"} & set(choices):
            add(f"resize to {size[0]}x{size[1]}", T.Resize(size, interpolation))
        if "random_crop" in choices:
            pad = inp.CROP_PADDING
            add(f"random crop (padding = {pad})", T.RandomCrop(size, padding=pad))
        if "random_resized_crop" in choices:
            scale = tuple(inp.RRCROP_SCALE)
            add(
                f"random resized crop (size={size}, scale={scale})",
                T.RandomResizedCrop(size, scale=scale, interpolation=interpolation),
            )
        if "random_flip" in choices:
            add("random flip", T.RandomHorizontalFlip())
        if "colorjitter" in choices:
            jitter = inp.COLORJITTER_B, inp.COLORJITTER_C, inp.COLORJITTER_S, inp.COLORJITTER_H
            add(
                "color jitter (brightness={}, contrast={}, saturation={}, hue={})".format(*jitter),
                T.ColorJitter(*jitter),
            )
        if "randomgrayscale" in choices:
            add("random gray scale", T.RandomGrayscale(p=inp.RGS_P))
        if "gaussian_blur" in choices:
            blur = T.RandomApply([T.GaussianBlur(inp.GB_K)], p=inp.GB_P)
            add(f"gaussian blur (kernel={inp.GB_K})", blur)
    add("to torch tensor of range [0, 1]", T.ToTensor())
    if "normalize" in choices:
        add(
            f"normalization (mean={inp.PIXEL_MEAN}, std={inp.PIXEL_STD})",
            T.Normalize(inp.PIXEL_MEAN, inp.PIXEL_STD),
        )
    print(f"transform_{'train' if is_train else 'test'}: {', '.join(notes)}")
    return T.Compose(steps)


class DatasetWrapper(torch.utils.data.Dataset):
    """Reads and transforms the images of a list of Datum.

    An item is a dict with `img`, `label`, `domain`, `impath` and `index`. In training,
    DATALOADER.K_TRANSFORMS > 1 makes `img` a list of views; a tuple of transforms gives `img`,
    `img2`, ...; DATALOADER.RETURN_IMG0 adds `img0`, only resized (and normalised). The file is read
    once for all of them. What transforms draw follows from `seeds`, see :class:`ImageSeeds`.
    """

    def __init__(self, cfg, data_source, transform=None, is_train=False):
        self.cfg = cfg
        self.data_source = data_source
        self.transform = transform
        self.is_train = is_train
        self.seeds = ImageSeeds(cfg.SEED)
        self.k_tfm = cfg.DATALOADER.K_TRANSFORMS if is_train else 1
        self.return_img0 = cfg.DATALOADER.RETURN_IMG0
        if self.k_tfm > 1 and transform is None:
            raise BadValue("DATALOADER.K_TRANSFORMS above 1 needs INPUT.NO_TRANSFORM False")
        plain = [T.Resize(tuple(cfg.INPUT.SIZE), INTERPOLATION_MODES[cfg.INPUT.INTERPOLATION])]
        plain.append(T.ToTensor())
        if "normalize" in cfg.INPUT.TRANSFORMS:
            plain.append(T.Normalize(cfg.INPUT.PIXEL_MEAN, cfg.INPUT.PIXEL_STD))
        self.to_tensor = T.Compose(plain)
        self._kept = {}

    def _image(self, item):
        path = item.impath
        image = self._kept.get(path)
        if image is None:
            image = read_datum(item)
            # Opening an image this small costs more than keeping it (12 KiB, 48 MiB in all).
            if image.width * image.height <= 64 * 64 and len(self._kept) < 4096:
                self._kept[path] = image
        return image

    def __len__(self):
        return len(self.data_source)

    def __getitem__(self, idx):
        item = self.data_source[idx]
        image = self._image(item)
        output = {
            "label": item.label,
            "domain": item.domain,
            "impath": item.impath,
            "index": idx,
        }
        several = isinstance(self.transform, (list, tuple))
        with self.seeds.of(idx):
            for number, transform in enumerate(self.transform if several else [self.transform], 1):
                views = [transform(image) if transform else image for _ in range(self.k_tfm)]
                name = f"img{number}" if number > 1 else "img"
                output[name] = views if self.k_tfm > 1 else views[0]
        if self.return_img0:
            output["img0"] = self.to_tensor(image)
        return output

    def set_epoch(self, epoch):
        """Choose the epoch whose augmentation the next pass shows."""
        self.seeds.set_epoch(epoch)


class KeptLoader(DataLoader):
    """A DataLoader that keeps its workers, if it has any, from one pass to the next, and counts the
    passes for the `seeds` of its dataset where nobody sets the epoch.

    For new workers torch draws a seed from the global generator, for kept ones it draws none. Here
    every pass draws one, so that what is drawn afterwards does not depend on the workers.
    """

    def __init__(self, dataset, num_workers=0, **options):
        options["persistent_workers"] = num_workers > 0
        super().__init__(dataset, num_workers=num_workers, **options)
        self._has_workers = False
        self._seeds = getattr(dataset, "seeds", None)
        if num_workers and self._seeds:
            self._seeds.share()

    alike = property(lambda self: type(self), doc="What makes another loader of this kind.")

    def __iter__(self):
        if self._has_workers:
            torch.empty((), dtype=torch.int64).random_(generator=self.generator)
        self._has_workers = self.persistent_workers
        if self._seeds:
            self._seeds.begin_pass()
        return super().__iter__()


def build_data_loader(
    cfg,
    sampler_type="SequentialSampler",
    data_source=None,
    batch_size=64,
    n_domain=0,
    n_ins=2,
    tfm=None,
    is_train=True,
    dataset_wrapper=None,
):
    """A DataLoader over a list of Datum; in training an incomplete last batch is dropped.

    Its workers are kept from one pass to the next; their number changes no number of a run.

    `n_domain` and `n_ins` belong to Dassl's signature and to samplers that are not here.
    """
    if not data_source:
        split = "training" if is_train else "evaluation"
        raise BadValue(f"{cfg.DATASET.NAME}: the {split} split holds no image")
    check_availability(sampler_type, SAMPLERS, "sampler")
    return KeptLoader(
        (dataset_wrapper or DatasetWrapper)(cfg, data_source, transform=tfm, is_train=is_train),
        batch_size=batch_size,
        sampler=SAMPLERS[sampler_type](data_source),
        num_workers=cfg.DATALOADER.NUM_WORKERS,
        drop_last=is_train and len(data_source) >= batch_size,
        pin_memory=torch.cuda.is_available() and cfg.USE_CUDA,
    )


class DataManager:
    """The dataset of the config with its loaders: `train_loader_x`, `val_loader`, `test_loader`.

    `val_loader` is None without validation data, `train_loader_u` always (labelled data only).
    """

    def __init__(self, cfg, custom_tfm_train=None, custom_tfm_test=None, dataset_wrapper=None):
        dataset = build_dataset(cfg)
        if custom_tfm_train is not None:
            print("* Using custom transform for training")
        if custom_tfm_test is not None:
            print("* Using custom transform for testing")
        tfm_train = build_transform(cfg) if custom_tfm_train is None else custom_tfm_train
        tfm_test = build_transform(cfg, False) if custom_tfm_test is None else custom_tfm_test

        def loader(node, items, tfm, is_train):
            return build_data_loader(
                cfg,
                node.SAMPLER,
                items,
                node.BATCH_SIZE,
                tfm=tfm,
                is_train=is_train,
                dataset_wrapper=dataset_wrapper,
            )

        self.dataset = dataset
        self.train_loader_x = loader(cfg.DATALOADER.TRAIN_X, dataset.train_x, tfm_train, True)
        self.train_loader_u = None
        self.val_loader = None
        if dataset.val:
            self.val_loader = loader(cfg.DATALOADER.TEST, dataset.val, tfm_test, False)
        self.test_loader = loader(cfg.DATALOADER.TEST, dataset.test, tfm_test, False)
        self.num_classes = dataset.num_classes
        self.num_source_domains = len(cfg.DATASET.SOURCE_DOMAINS)
        self.lab2cname = dataset.lab2cname
        if cfg.VERBOSE:
            self.show_dataset_summary(cfg)

    def show_dataset_summary(self, cfg):
        counts = [f"{self.num_classes:,} classes"]
        for split in ("train_x", "val", "test"):
            items = getattr(self.dataset, split)
            if items:
                counts.append(f"{len(items):,} images in {split}")
        print(f"Dataset {cfg.DATASET.NAME}: {', '.join(counts)}")
