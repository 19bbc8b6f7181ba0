"""Sampling, transforms, loaders, unreadable images, and what a seed determines."""

import json
import os
import pathlib
import random
from types import SimpleNamespace

import numpy
import pytest
import torch
from PIL import Image
from torchvision import transforms as T

from proxyfda.engine import (
    DatasetBase,
    DatasetWrapper,
    Datum,
    ImageError,
    build_data_loader,
    build_transform,
    get_cfg_default,
    read_image,
    set_random_seed,
)
from proxyfda.engine.utils import get_rng_state, set_rng_state

UPSTREAM = pathlib.Path(__file__).parent.parent / "datasets" / "fewshot_upstream.json"


def make_cfg(**inputs):
    cfg = get_cfg_default()
    cfg.INPUT.SIZE = (8, 8)
    cfg.INPUT.TRANSFORMS = ("random_resized_crop", "random_flip", "normalize")
    cfg.INPUT.update(inputs)
    cfg.DATALOADER.NUM_WORKERS = 0
    return cfg


@pytest.fixture
def items(tmp_path):
    """Ten Datum of noisy 16 x 12 images, labels 0 and 1."""
    draw = random.Random(0)
    found = []
    for number in range(10):
        path = tmp_path / f"{number}.png"
        pixels = bytes(draw.randrange(256) for _ in range(16 * 12 * 3))
        Image.frombytes("RGB", (16, 12), pixels).save(path)
        found.append(Datum(str(path), number % 2, classname="ab"[number % 2]))
    return found


def entries(rows):
    return [SimpleNamespace(impath=path, label=label, classname=name) for path, label, name in rows]


@pytest.mark.parametrize("shots", [1, 4, 16])
def test_few_shot_draws_equal_upstream(shots):
    upstream = json.loads(UPSTREAM.read_text())
    classes = list(zip(upstream["letters"], upstream["labels"]))
    base = DatasetBase.__new__(DatasetBase)
    random.seed(1)
    for split, count in (("train", shots), ("val", min(shots, 4))):
        source = entries(
            (number, label, letter)
            for letter, label in classes
            for number in range(upstream["images"][split])
        )
        drawn = base.generate_fewshot_dataset(source, num_shots=count)
        expected = upstream["drawn"][str(shots)][split]
        assert [(item.classname, item.impath) for item in drawn] == [
            (letter, number) for letter, _ in classes for number in expected[letter]
        ]


def test_few_shot_with_few_images():
    source = entries([(f"{i}", label, "") for label, n in ((4, 3), (1, 6)) for i in range(n)])
    base = DatasetBase.__new__(DatasetBase)
    random.seed(5)
    first = base.generate_fewshot_dataset(source, num_shots=4)
    random.seed(5)  # the first class has too few and draws nothing
    assert first == [*source[:3], *random.sample(source[3:], 4)]
    assert len(base.generate_fewshot_dataset(source, num_shots=4, repeat=True)) == 8
    assert base.generate_fewshot_dataset(source) is source
    assert base.generate_fewshot_dataset(source, source[:2]) == (source, source[:2])
    pair = base.generate_fewshot_dataset(source, source[:3], num_shots=1)
    assert [len(part) for part in pair] == [2, 1]


def test_classes_of_a_dataset(items):
    dataset = DatasetBase(train_x=items, test=items[:2])
    assert dataset.num_classes == 2 and dataset.classnames == ["a", "b"]
    assert dataset.lab2cname == {0: "a", 1: "b"} and dataset.val is None
    with pytest.raises(ValueError, match="no training image"):
        DatasetBase(train_x=[])


def test_training_transforms():
    cfg = make_cfg(INTERPOLATION="bicubic")
    crop, flip, to_tensor, normalise = build_transform(cfg).transforms
    assert isinstance(crop, T.RandomResizedCrop) and tuple(crop.scale) == (0.08, 1.0)
    assert crop.interpolation == T.InterpolationMode.BICUBIC
    assert isinstance(flip, T.RandomHorizontalFlip) and isinstance(to_tensor, T.ToTensor)
    assert isinstance(normalise, T.Normalize)


def test_training_without_augmentation_resizes():
    resize, to_tensor = build_transform(make_cfg(), choices=()).transforms
    assert isinstance(resize, T.Resize) and tuple(resize.size) == (8, 8)


def test_testing_crops_the_centre_and_ignores_augmentation():
    image = Image.new("RGB", (40, 20), (255, 0, 0))
    resize, crop, to_tensor, normalise = build_transform(make_cfg(), is_train=False).transforms
    assert resize(image).size == (16, 8) and crop(resize(image)).size == (8, 8)
    assert isinstance(normalise, T.Normalize)


def test_transforms_off(capsys):
    assert build_transform(make_cfg(NO_TRANSFORM=True)) is None
    assert capsys.readouterr().out == "Note: no transform is applied!\n"


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ({"TRANSFORMS": ("random_flop",)}, "did you mean 'random_flip'"),
        ({"INTERPOLATION": "cubic"}, "did you mean 'bicubic'"),
    ],
)
def test_unknown_transforms(inputs, words):
    with pytest.raises(ValueError, match=words):
        build_transform(make_cfg(**inputs))


def test_wrapper_options(items):
    cfg = make_cfg()
    cfg.DATALOADER.K_TRANSFORMS = 2
    cfg.DATALOADER.RETURN_IMG0 = True
    tfm = build_transform(cfg)
    item = DatasetWrapper(cfg, items, transform=(tfm, tfm), is_train=True)[3]
    assert item["label"] == 1 and item["index"] == 3 and item["impath"] == items[3].impath
    assert [view.shape for view in item["img"] + item["img2"]] == [(3, 8, 8)] * 4
    assert item["img0"].shape == (3, 8, 8)
    assert DatasetWrapper(cfg, items, transform=tfm)[0]["img"].shape == (3, 8, 8)


@pytest.mark.parametrize(("count", "batches"), [(10, 2), (4, 1), (3, 1)])
def test_incomplete_training_batches_are_dropped(items, count, batches):
    cfg = make_cfg()
    loader = build_data_loader(cfg, "RandomSampler", items[:count], 4, tfm=build_transform(cfg))
    assert len(loader) == batches


def test_an_empty_split_is_an_error():
    with pytest.raises(ValueError, match="evaluation split holds no image"):
        build_data_loader(make_cfg(), data_source=[], is_train=False)


def epoch_of(cfg, items):
    loader = build_data_loader(cfg, "RandomSampler", items, 4, tfm=build_transform(cfg))
    return [(batch["index"], batch["img"]) for batch in loader]


def same(a, b):
    return all(torch.equal(x, y) for pair in zip(a, b) for x, y in zip(*pair))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_seed_determines_order_and_augmentation(items, workers):
    cfg = make_cfg()
    cfg.DATALOADER.NUM_WORKERS = workers
    set_random_seed(3)
    first, state = epoch_of(cfg, items), get_rng_state()
    second = epoch_of(cfg, items)
    set_random_seed(3)
    assert same(epoch_of(cfg, items), first)
    assert not same(second, first)
    torch.rand(7)
    set_rng_state(state)
    assert same(epoch_of(cfg, items), second)


class WithProcess(DatasetWrapper):
    """Also says which process has read the image."""

    def __getitem__(self, idx):
        return {**super().__getitem__(idx), "process": os.getpid()}


@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation_keeps_its_workers_and_leaves_training_as_it_was(items, workers):
    """As it was with an ordinary loader, whose workers are new in every evaluation."""
    cfg = make_cfg()
    cfg.DATALOADER.NUM_WORKERS = workers
    loader = build_data_loader(
        cfg, data_source=items, batch_size=4, tfm=build_transform(cfg, False), is_train=False,
        dataset_wrapper=WithProcess,
    )  # fmt: skip
    assert len(loader) == 3  # nothing is dropped
    ordinary = torch.utils.data.DataLoader(loader.dataset, batch_size=4, num_workers=workers)
    results, processes = [], []
    for evaluation in (loader, ordinary):
        set_random_seed(3)
        epochs = []
        for _ in range(3):
            epochs.append(epoch_of(cfg, items))
            batches = list(evaluation)
            epochs.append([(batch["index"], batch["img"]) for batch in batches])
            processes.append({pid for batch in batches for pid in batch["process"].tolist()})
        results.append((epochs, get_rng_state()["torch"]))
    (kept, state), (new, state_new) = results
    assert all(same(ours, theirs) for ours, theirs in zip(kept, new))
    assert torch.equal(state, state_new)
    assert processes[0] == processes[1] == processes[2]
    if workers:
        assert not processes[3] & processes[4]


def draws_of_everything(image):
    """A transform that draws from all streams."""
    return torch.tensor([random.random(), numpy.random.rand(), torch.rand(()).item()])


def passes_of(items, workers, epochs, views=1):
    """Images of some epochs in the order of the list, and the processes that have read them."""
    cfg = make_cfg()
    cfg.SEED, cfg.DATALOADER.NUM_WORKERS, cfg.DATALOADER.K_TRANSFORMS = 3, workers, views
    loader = build_data_loader(
        cfg, data_source=items, batch_size=2, tfm=draws_of_everything, dataset_wrapper=WithProcess
    )
    found, processes = [], []
    for epoch in epochs:
        if epoch is not None:
            loader.dataset.set_epoch(epoch)
        batches = list(loader)
        images = [batch["img"] for batch in batches]
        images = images if views == 1 else [torch.stack(each, 1) for each in images]
        found.append(torch.cat(images))
        processes.append({pid for batch in batches for pid in batch["process"].tolist()})
    return found, processes


@pytest.mark.parametrize("workers", [1, 2, 4])
@pytest.mark.parametrize("views", [1, 2])
def test_augmentation_follows_from_seed_epoch_and_image(items, workers, views):
    """Whatever the number of workers, in a run from its start and in one that goes on."""
    alone, _ = passes_of(items, 0, [0, 1, 2], views)
    assert torch.equal(
        torch.stack(passes_of(items, workers, [0, 1, 2], views)[0]), torch.stack(alone)
    )
    assert torch.equal(passes_of(items, workers, [2], views)[0][0], alone[2])
    assert torch.equal(passes_of(items, workers, [0, None, None], views)[0][2], alone[2])
    assert len(torch.stack(alone).flatten().unique()) == torch.stack(alone).numel()


@pytest.mark.parametrize("workers", [0, 2])
def test_reading_images_moves_no_random_stream_by_itself(items, workers):
    streams = []
    for count in (2, 10):
        set_random_seed(5)
        passes_of(items[:count], workers, [0, 1])
        streams.append([random.random(), numpy.random.rand(), torch.rand(()).item()])
    assert streams[0] == streams[1]


def test_training_keeps_its_workers(items):
    _, processes = passes_of(items, 2, [0, 1])
    assert processes[0] == processes[1] and len(processes[0]) == 2


def test_without_a_seed_runs_differ(items):
    seeds = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        seeds.append(DatasetWrapper(make_cfg(), items).seeds.seed)
    assert seeds[0] != seeds[1]


def test_an_image_is_read_once_for_all_views(items, monkeypatch):
    monkeypatch.setattr("proxyfda.engine.data.read_image", lambda path: reads.append(path) or image)
    reads, image = [], Image.new("RGB", (200, 200))
    cfg = make_cfg()
    cfg.DATALOADER.K_TRANSFORMS, cfg.DATALOADER.RETURN_IMG0 = 3, True
    list(build_data_loader(cfg, data_source=items, batch_size=2, tfm=build_transform(cfg)))
    assert sorted(reads) == sorted(item.impath for item in items)


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("spoil", ["truncate", "text", "delete"])
def test_an_unreadable_image_is_named_in_one_sentence(items, workers, spoil):
    path = pathlib.Path(items[2].impath)
    if spoil == "delete":
        path.unlink()
    else:
        path.write_bytes(b"not an image" if spoil == "text" else path.read_bytes()[:120])
    cfg = make_cfg()
    cfg.DATALOADER.NUM_WORKERS = workers
    loader = build_data_loader(cfg, data_source=items, tfm=build_transform(cfg), is_train=False)
    with pytest.raises(ImageError, match="2.png") as caught:
        list(loader)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("Image ")


def test_images_are_read_as_rgb(tmp_path):
    Image.new("LA", (3, 2)).save(tmp_path / "grey.png")
    assert read_image(tmp_path / "grey.png").mode == "RGB"


def test_datum_of_a_missing_file():
    with pytest.raises(FileNotFoundError, match=r'"nowhere.jpg".*DATASET.ROOT'):
        Datum("nowhere.jpg")
