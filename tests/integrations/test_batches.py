"""Balanced and mined batches: what stays the host's, what is encoded and when."""

import pytest
import torch
from torch.utils.data import DataLoader

import proxyfda
from proxyfda.anchors.host_weights import FrozenCLIP
from proxyfda.dassl import TRAINER_REGISTRY, set_random_seed
from proxyfda.integrations.dassl import RegularisedTrainer
from proxyfda.sampling import ClassBalancedBatchSampler, class_similarity
from tests.integrations import dassl_hosts as hosts

proxyfda.register()
BALANCED = {"M": 3, "N": 2}
MINED = {**BALANCED, "MINING": True}


@pytest.mark.parametrize("mining", [False, True], ids=["random", "mined"])
def test_batches_come_through_the_hosts_data_manager(make, mining):
    host = make(hosts.Plain)
    trainer = make("ProxyFDAPlain", **BALANCED, MINING=mining)
    trainer.before_train()
    assert trainer.train_loader_x is trainer.dm.train_loader_x
    batches = [batch["label"] for batch in trainer.train_loader_x]
    for labels in batches:
        assert sorted(labels.bincount().tolist())[-3:] == [2, 2, 2]
        assert len(labels) == 6
    assert len(torch.cat(batches)) == len(host.dm.dataset.train_x) == 24
    trainer.train()


def test_images_of_balanced_batches_are_augmented_as_the_hosts(make):
    host, trainer = make(hosts.Plain), make("FDAPlain", **BALANCED)
    own, balanced = host.train_loader_x.dataset, trainer.train_loader_x.dataset
    assert "RandomHorizontalFlip" in repr(balanced.transform)
    assert repr(balanced.transform) == repr(own.transform) and balanced.is_train
    for index in (0, 7):
        set_random_seed(index)
        want = own[index]
        set_random_seed(index)
        got = balanced[index]
        assert got["impath"] == want["impath"] and torch.equal(got["img"], want["img"])


def paths_of_epochs(trainer, epochs):
    found = []
    for trainer.epoch in range(epochs):
        trainer.before_epoch()
        found.append([path for batch in trainer.train_loader_x for path in batch["impath"]])
    return found


def test_every_epoch_draws_anew_and_alike_in_every_run(make):
    options = {**BALANCED, "REGULARISER": "none"}
    first, second = (paths_of_epochs(make("Plain", **options), 3) for _ in range(2))
    assert first == second
    assert first[0] != first[1] != first[2] != first[0]
    assert [sorted(paths) for paths in first] == [sorted(first[0])] * 3
    labels = [item.label for item in make("Plain", **options).train_loader_x.dataset.data_source]
    by_hand = ClassBalancedBatchSampler(labels, 3, 2, seed=1)
    by_hand.set_epoch(2)
    dataset = make("Plain", **options).train_loader_x.dataset
    assert first[2] == [dataset.data_source[i].impath for batch in by_hand for i in batch]


def collate(items):
    return torch.utils.data.default_collate(items)


def start_worker(worker_id):
    pass


class OwnLoader(hosts.Plain):
    """A host that sets everything that a loader takes."""

    workers = 2

    def build_data_loader(self):
        super().build_data_loader()
        more = {}
        if self.workers:
            more = {
                "persistent_workers": True,
                "prefetch_factor": 3,
                "multiprocessing_context": "fork",
                "timeout": 60,
            }
        self.train_loader_x = DataLoader(
            self.train_loader_x.dataset,
            batch_size=4,
            num_workers=self.workers,
            pin_memory=True,
            collate_fn=collate,
            worker_init_fn=start_worker,
            generator=torch.Generator().manual_seed(3),
            **more,
        )


KEPT = [
    "dataset",
    "num_workers",
    "pin_memory",
    "collate_fn",
    "worker_init_fn",
    "generator",
    "timeout",
    "persistent_workers",
    "prefetch_factor",
    "multiprocessing_context",
]


@pytest.mark.filterwarnings("ignore:'pin_memory' argument:UserWarning")
@pytest.mark.parametrize("workers", [2, 0])
def test_everything_but_the_choice_of_images_stays_the_hosts_loader(make, workers, monkeypatch):
    monkeypatch.setattr(OwnLoader, "workers", workers)
    theirs = []
    build = OwnLoader.build_data_loader

    def noting(self):
        build(self)
        theirs.append(self.train_loader_x)

    monkeypatch.setattr(OwnLoader, "build_data_loader", noting)
    TRAINER_REGISTRY.register(OwnLoader, force=True)
    proxyfda.register(OwnLoader)
    trainer = make("FDAOwnLoader", **BALANCED)
    for name in KEPT:
        assert getattr(trainer.train_loader_x, name) is getattr(theirs[0], name), name
    defaults = DataLoader(trainer.train_loader_x.dataset)
    if workers:  # none of these is what a loader has anyway
        same = [name for name in KEPT if getattr(defaults, name) is getattr(theirs[0], name)]
        assert same == ["dataset"]
        assert len(next(iter(trainer.train_loader_x))["label"]) == 6


# -- K > n ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "shape"),
    [
        # Six classes of four images: 16 x 4 would become all images of all classes.
        ({"M": 16, "N": 2, "K": 4}, (6, 3)),
        ({"M": 16, "N": 2, "K": 8}, (6, 4)),
        ({"M": 16, "N": 2, "K": 2}, (6, 4)),  # K <= n was asked for
        ({"M": 3, "N": 2, "K": 3}, (3, 2)),
    ],
    ids=["bounded", "no-need", "asked-for", "as-asked"],
)
def test_more_images_of_few_classes_leave_neighbourhoods_wider_than_a_class(
    make, options, shape, capsys
):
    trainer = make("FDAPlain", **options)
    sampler = trainer.train_loader_x.batch_sampler
    assert (sampler.m, sampler.n) == shape
    if options["N"] < options["K"]:
        for batch in trainer.train_loader_x:
            assert batch["label"].bincount().max() < options["K"]
    out = capsys.readouterr().out
    assert f"Proxy-FDA batches: {shape[0]} classes x {shape[1]} images, classes at random" in out
    assert (sampler.shape_note in out) and bool(sampler.shape_note) == (shape != (3, 2))
    if options["K"] == 4:
        assert "16 classes x 2 images were asked for and become 6 x 3" in out


def test_without_neighbourhoods_nothing_bounds_the_images_of_a_class(make):
    for options in ({"REGULARISER": "none"}, {"REGULARISER": "kl", "K": 3}):
        sampler = make("Plain", M=16, N=2, **options).train_loader_x.batch_sampler
        assert (sampler.m, sampler.n) == (6, 4)


# -- mining ---------------------------------------------------------------------------------------


@pytest.fixture
def encoded(monkeypatch):
    """Sizes of the batches of training images whose frozen features were made."""
    calls = []

    original = RegularisedTrainer._frozen_training_features

    def noted(self):
        for features in original(self):
            calls.append(len(features))
            yield features

    monkeypatch.setattr(RegularisedTrainer, "_frozen_training_features", noted)
    return calls


HOSTS = ["Plain", "Coupled", "Consistent"]


@pytest.mark.parametrize("host", HOSTS)
def test_nothing_is_encoded_while_a_trainer_is_built_or_evaluated(make, host, encoded, monkeypatch):
    frozen = []
    original = FrozenCLIP.image_features
    monkeypatch.setattr(
        FrozenCLIP, "image_features", lambda *args: frozen.append(1) or original(*args)
    )
    trainer = make(f"FDA{host}", **MINED)
    trainer.test()  # what --eval-only does
    assert encoded == frozen == []
    trainer.before_train()
    assert sum(encoded) == 24 and len(frozen) == len(encoded)


@pytest.mark.parametrize("host", HOSTS)
def test_a_resumed_run_in_the_same_folder_encodes_nothing(make, host, encoded, tmp_path, capsys):
    trainer = make(f"FDA{host}", **MINED)
    trainer.train()
    assert sum(encoded) == 24
    want = paths_of_epochs(trainer, 2)
    encoded.clear()
    capsys.readouterr()
    again = make(f"FDA{host}", epochs=2, **MINED)
    again.train()
    assert encoded == [] and "Proxy-FDA mining" not in capsys.readouterr().out
    assert again.start_epoch == 1
    assert paths_of_epochs(again, 2) == want
    assert (tmp_path / "run" / "class_similarity.pt").is_file()


def other_shots(make):
    return make("FDAConsistent", "DATASET.NUM_SHOTS", 3, **MINED), 18


def other_size_of_images(make):
    return make("FDAConsistent", "INPUT.INTERPOLATION", "nearest", **MINED), 24


def other_weights(make):
    trainer = make("FDAConsistent", **MINED)
    with torch.no_grad():
        trainer.model.image_encoder.transformer.resblocks[1].mlp.c_fc.weight[0, 0] += 0.01
    return trainer, 24


@pytest.mark.parametrize("change", [other_shots, other_size_of_images, other_weights])
def test_another_data_set_or_other_weights_are_encoded_again(make, change, encoded):
    make("FDAConsistent", **MINED).before_train()
    encoded.clear()
    make("FDAConsistent", **MINED).before_train()
    assert encoded == []
    trainer, images = change(make)
    trainer.before_train()
    assert sum(encoded) == images


@pytest.mark.parametrize("content", [b"", b"not a tensor"], ids=["empty", "damaged"])
def test_a_damaged_file_is_no_obstacle(make, content, encoded, tmp_path, capsys):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "class_similarity.pt").write_bytes(content)
    make("FDAPlain", **MINED).before_train()
    assert sum(encoded) == 24
    assert "class_similarity.pt cannot be read" in capsys.readouterr().out
    encoded.clear()
    make("FDAPlain", **MINED).before_train()
    assert encoded == []


def test_a_run_that_finds_the_similarities_draws_the_same_numbers_afterwards(make, encoded):
    states = []
    for _ in range(2):  # with and without encoding
        trainer = make("FDAPlain", **MINED)
        set_random_seed(3)
        trainer.before_train()
        states.append(torch.get_rng_state())
    assert sum(encoded) == 24
    assert torch.equal(*states)


def test_classes_are_mined_by_features_of_the_images_as_in_a_test(make):
    trainer = make("FDAConsistent", **MINED)
    trainer.before_train()
    source = trainer.train_loader_x.dataset.data_source
    labels = [item.label for item in source]
    tests = type(trainer.train_loader_x.dataset)(
        trainer.cfg, source, transform=trainer.test_loader.dataset.transform
    )
    assert "RandomHorizontalFlip" not in repr(tests.transform)
    images = torch.stack([tests[i]["img"] for i in range(len(tests))])
    features, _ = hosts.pristine_anchors(images)
    similarity = class_similarity(features, labels)
    kept = torch.load(
        f"{trainer.cfg.OUTPUT_DIR}/class_similarity.pt", map_location="cpu", weights_only=True
    )
    torch.testing.assert_close(kept["value"], similarity, rtol=1e-5, atol=1e-6)
    want = ClassBalancedBatchSampler(labels, 3, 2, similarity=similarity, seed=1)
    assert list(trainer.train_loader_x.batch_sampler) == list(want)
    at_random = ClassBalancedBatchSampler(labels, 3, 2, seed=1)
    assert list(want) != list(at_random)


def test_every_image_is_seen_once_by_the_mining_whatever_its_augmentation(make):
    """The train transform would flip each image with a chance of one half."""
    trainer = make("FDAPlain", **MINED)
    seen = []
    for _ in range(2):
        features = list(trainer._frozen_training_features())
        seen.append(torch.cat(features))
    assert len(seen[0]) == 24 and torch.equal(*seen)


def test_features_that_the_host_makes_itself_are_used(make):
    calls = []

    def images_of(trainer, images):
        calls.append(len(images))
        return images.flatten(1)[:, : hosts.DIM]

    class Given(hosts.Plain):
        pass

    given = proxyfda.make_trainer(Given, "fda", frozen_image_features=images_of)
    TRAINER_REGISTRY.register(given, force=True)
    trainer = make("FDAGiven", **MINED)
    assert calls == []
    trainer.before_train()
    assert sum(calls) == 24
    again = make("FDAGiven", **MINED)
    again.before_train()
    assert sum(calls) == 24


def test_without_an_output_folder_or_known_weights_nothing_is_kept(make, tmp_path):
    class AllTrained(hosts.Plain):
        """Every weight of its image encoder is trained, and the frozen ones are its own."""

        def build_model(self):
            super().build_model()
            self.model.image_encoder.requires_grad_(True)

        def frozen_image_features(self, images):
            return images.flatten(1)[:, : hosts.DIM]

    trainer_class = proxyfda.make_trainer(AllTrained, "fda")
    TRAINER_REGISTRY.register(trainer_class, force=True)
    make("FDAAllTrained", **MINED, SPACES=("text",)).before_train()
    assert not (tmp_path / "run" / "class_similarity.pt").exists()
