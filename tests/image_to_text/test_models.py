"""GIT and BLIP of transformers: inputs, what counts in the loss, what is said, regularisers."""

import os
import shutil

import image_text_trees as trees
import pytest
import tiny_image_text as tiny
import torch
from transformers import BertConfig, BertModel

import proxyfda
from datasets.image_text import Example, read_image
from proxyfda.anchors import FrozenCopy
from proxyfda.regularisers import create
from proxyfda.utils.errors import BadModel, BadValue, NotFound
from trainers.image_to_text import layers
from trainers.image_to_text.models import ImageToText, pooled

PATHS = [str(path) for path, _ in trees.pictures("test", 2)]
QUESTIONS = ["colour?", "is it a ship on the water?", "where is the dog?"] * 2
TEXTS = ["green", "a red ship on water", "on grass"] * 2


def examples(kind, texts=TEXTS):
    questions = [""] * len(PATHS) if kind in ("blip", "git-captions") else QUESTIONS
    return [Example(*parts) for parts in zip(PATHS, ((t,) for t in texts), questions)]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {kind: tiny.save(kind, tmp_path_factory.mktemp(kind)) for kind in tiny.KINDS}


@pytest.fixture(params=["git-captions", "git", "blip", "blip_vqa"])
def kind(request):
    return request.param


@pytest.fixture
def model(kind, folders):
    return ImageToText.load(folders[kind.split("-")[0]])


def tuned(model, given, steps=70):
    """The model after some steps on these, which are enough to learn them by heart."""
    optimiser = torch.optim.AdamW(model.model.parameters(), lr=1e-2)
    batch = model.batch(given)
    for _ in range(steps):
        optimiser.zero_grad()
        model.model(**batch).loss.backward()
        optimiser.step()
    return model


def test_it_learns_to_say_it(model, kind):
    """Texts of each image or question are told back, by greedy and by beam search."""
    by_image = [text for text in ("frog", "a plane", "the ship runs") for _ in range(2)]
    given = examples(kind, by_image if kind in ("git-captions", "blip") else TEXTS)
    tuned(model, given)
    assert model.answers(given) == [e.texts[0] for e in given]
    assert model.answers(given, num_beams=3) == [e.texts[0] for e in given]


def test_padding_and_question_do_not_count(model, kind):
    """The loss of a batch is the mean over the tokens that are said, as if one by one."""
    given = examples(kind)
    batch = model.batch(given)
    alone = [model.batch([example]) for example in given]
    with torch.no_grad():
        whole = model.model(**batch).loss
        sums = [
            (model.model(**one).loss, len(e.texts[0].split()) + 1) for one, e in zip(alone, given)
        ]
    expected = sum(loss * tokens for loss, tokens in sums) / sum(tokens for _, tokens in sums)
    torch.testing.assert_close(whole, expected)
    first = tiny.SPECIAL.index("[CLS]" if kind.startswith("git") else "[DEC]")
    said = batch["labels"][1].tolist()
    words = model.tokenizer.convert_ids_to_tokens([i for i in said if i not in (-100, first)])
    assert words == ["a", "red", "ship", "on", "water", "[SEP]"]


def test_what_is_said_does_not_depend_on_the_batch(model, kind):
    given = examples(kind, ["a red ship on water sits in a road"] * 6)
    tuned(model, given, steps=8)  # something is said
    together = model.answers(given, max_new_tokens=6)
    assert any(together)
    assert together == [model.answers([e], max_new_tokens=6)[0] for e in given]
    assert together == model.answers(given, max_new_tokens=6, batch_size=2)
    images = [read_image(e.image) for e in given]
    assert together == model.answers(given, images, max_new_tokens=6)
    assert together == model.answers(given, model.pixels(images), max_new_tokens=6)


def test_answers_leave_the_mode_and_the_seed_alone(model, kind):
    model.model.train()
    state = torch.get_rng_state()
    model.answers(examples(kind)[:2])
    assert model.model.training and torch.equal(torch.get_rng_state(), state)


def test_a_regulariser_reaches_the_image_encoder(model, kind):
    """The gradient is that of the sum of both losses."""
    batch = model.batch(examples(kind))
    regulariser = create("pointwise")
    with torch.no_grad():
        anchors = model.vision(batch["pixel_values"])[0].flip(0)
    seen = []
    hook = model.vision.register_forward_hook(lambda _m, _a, output: seen.append(output[0]))
    loss = model.model(**batch).loss + 3.0 * regulariser(pooled(seen[0]), pooled(anchors))
    loss.backward()
    hook.remove()
    expected = [p.grad.clone() for p in model.vision.parameters() if p.grad is not None]
    model.model.zero_grad()
    with proxyfda.attach(
        model.vision, regulariser, 3.0, lambda *args, **kwargs: anchors, features=pooled
    ):
        model.model(**batch).loss.backward()
    found = [p.grad for p in model.vision.parameters() if p.grad is not None]
    torch.testing.assert_close(found, expected)


def test_ldifs_compares_layers_of_the_image_encoder(model, kind):
    """The gradient is that of the sum of both losses, over layers that the library hands out."""
    batch = model.batch(examples(kind))
    regulariser, kept = create("ldifs"), FrozenCopy(model.vision)
    with torch.no_grad():
        for weight in model.vision.parameters():
            weight.add_(0.02 * torch.randn_like(weight))
    seen = []
    hook = model.vision.register_forward_hook(lambda _m, _a, output: seen.append(output))
    model.vision.config.output_hidden_states = True
    loss = model.model(**batch).loss
    anchors = kept(batch["pixel_values"], output_hidden_states=True)["hidden_states"]
    (loss + 30.0 * regulariser(seen[0]["hidden_states"], anchors)).backward()
    hook.remove()
    model.vision.config.output_hidden_states = False
    expected = [p.grad.clone() for p in model.vision.parameters() if p.grad is not None]
    model.model.zero_grad()
    with layers.handed_out(model.vision), layers.handed_out(kept.module):
        chosen = {"output": layers.OUTPUT, "features": layers.listed}
        with proxyfda.attach(model.vision, regulariser, 30.0, kept, **chosen) as handle:
            again = model.model(**batch).loss
            again.backward()
    found = [p.grad for p in model.vision.parameters() if p.grad is not None]
    assert handle.terms["loss_ldifs"] > 0 and torch.equal(again, loss)
    torch.testing.assert_close(found, expected)
    assert len(expected) == len(found)
    assert not isinstance(model.vision(batch["pixel_values"]).get("hidden_states"), torch.Tensor)


def test_features_are_the_class_tokens(model):
    images = [read_image(path) for path in PATHS]
    found = model.features(images)
    assert found.shape == (6, 16) and not found.requires_grad
    torch.testing.assert_close(found[:1], model.features(images[:1]))


def test_it_is_saved_and_loaded(model, kind, tmp_path):
    tuned(model, examples(kind), steps=3)
    model.save(tmp_path / "tuned")
    again = ImageToText.load(tmp_path / "tuned")
    for name, weight in model.model.state_dict().items():
        assert torch.equal(weight, again.model.state_dict()[name]), name


def test_half_precision_on_request(folders):
    model = ImageToText.load(folders["git"], dtype=torch.bfloat16)
    batch = model.batch(examples("git"))
    assert batch["pixel_values"].dtype == torch.bfloat16
    assert model.model(**batch).loss.isfinite()


# -- what does not fit ----------------------------------------------------------------------------


def test_questions_and_captions_are_not_mixed_up(folders):
    with pytest.raises(BadValue, match="BlipForConditionalGeneration only captions images"):
        ImageToText.load(folders["blip"]).batch(examples("git"))
    with pytest.raises(BadValue, match="BlipForQuestionAnswering only answers questions"):
        ImageToText.load(folders["blip_vqa"]).answers(examples("blip"))


def test_a_text_that_is_too_long(model, kind):
    with pytest.raises(BadValue, match="has 30 tokens, the model takes 22"):
        model.batch(examples(kind, ["dog " * 30] * 6))


def test_what_is_said_ends_where_the_model_does(model, kind):
    given = examples(kind)
    for text in model.answers(given, max_new_tokens=500):
        assert len(text.split()) <= 24


def without(name):
    return lambda folder: (folder / name).unlink()


def written(name, content):
    return lambda folder: (folder / name).write_bytes(content)


def lacking_a_weight(folder):
    from safetensors.torch import load_file, save_file

    state = load_file(folder / "model.safetensors")
    del state["output.bias"]
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


def another_model(folder):
    small = BertConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8
    )
    BertModel(small).save_pretrained(folder)


@pytest.mark.parametrize(
    ("spoil", "kind", "message"),
    [
        (without("config.json"), NotFound, "has no config.json"),
        (without("model.safetensors"), NotFound, "has no model.safetensors or"),
        (without("tokenizer.json"), BadValue, "the tokenizer in .* cannot be read"),
        (without("preprocessor_config.json"), BadValue, "the image processor in .* cannot be read"),
        (written("config.json", b"{"), BadValue, "config.json is no JSON"),
        (written("model.safetensors", b"half"), BadValue, "the weights in .* cannot be read"),
        (lacking_a_weight, BadValue, "do not fit its config.json .missing: output.bias"),
        (another_model, BadModel, "holds a BertModel; give one of GitForCausalLM, Blip"),
    ],
    ids=[
        "config", "weights", "tokenizer", "processor", "no-json", "damaged", "lacking", "another",
    ],
)  # fmt: skip
def test_folders_that_are_not_whole(folders, tmp_path, spoil, kind, message):
    shutil.copytree(folders["git"], tmp_path / "model")
    spoil(tmp_path / "model")
    with pytest.raises(kind, match=message) as caught:
        ImageToText.load(tmp_path / "model")
    assert "\n" not in str(caught.value)


def test_nothing_of_a_pickle_is_run(folders, tmp_path):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    shutil.copytree(folders["git"], tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").unlink()
    torch.save({"output.bias": Evil()}, tmp_path / "model" / "pytorch_model.bin")
    with pytest.raises(BadValue, match="the weights in .* cannot be read"):
        ImageToText.load(tmp_path / "model")
    assert not (tmp_path / "ran").exists()


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(NotFound, match="nowhere does not exist"):
        ImageToText.load(tmp_path / "nowhere")


def test_the_hub_out_of_reach(monkeypatch):
    from trainers.image_to_text import loading

    monkeypatch.setattr(loading, "unreachable", lambda address: "no network")
    with pytest.raises(NotFound, match="base-coco could not be fetched from the hub .no network"):
        ImageToText.load("microsoft/git-base-coco")


def test_a_model_of_another_kind():
    with pytest.raises(BadModel, match="Linear is none of the models that fit"):
        ImageToText(torch.nn.Linear(1, 1), tiny.tokenizer(), None)
