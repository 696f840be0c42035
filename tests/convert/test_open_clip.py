"""Laws of conversion from OpenCLIP's layout: embeddings are open_clip's own; what has no place is named."""

import argparse
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from refusals import refuses
from safetensors.torch import save_file
from torch import nn
from transformers import AutoModel, AutoProcessor

from geoalign_hf.convert.convert import convert_clip
from geoalign_hf.convert.from_scratch import train_tokenizer
from geoalign_hf.convert.open_clip import measure_towers, stretch_positions

TEXTS = ["a ship at a pier", "two storage tanks", "x"]
SIZES = {"layers": 2, "width": 128}
GIVEN = {"activation": "gelu"}


@pytest.fixture(scope="module")
def open_clip():
    """open_clip's own model.py. The package itself asks for torchvision, which its models do not need."""
    spec = importlib.util.find_spec("open_clip")
    if spec is None:
        pytest.skip("needs open_clip: pip install --no-deps open_clip_torch")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "open_clip", importlib.util.module_from_spec(spec))
        if importlib.util.find_spec("torchvision") is None:
            for name in ("torchvision", "torchvision.ops", "torchvision.ops.misc"):
                patch.setitem(sys.modules, name, ModuleType(name))
            sys.modules["torchvision.ops.misc"].FrozenBatchNorm2d = nn.BatchNorm2d  # of ResNets
        yield importlib.import_module("open_clip.model")
        for name in [name for name in sys.modules if name.startswith("open_clip.")]:
            del sys.modules[name]


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer(TEXTS).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def build(open_clip):
    """Build open_clip's own model, of two layers a tower, every weight random."""

    def build(custom_text=False, quick_gelu=False, context_length=77, vision=None, text=None):
        torch.manual_seed(0)
        vocabulary = len(train_tokenizer(TEXTS))
        model = (open_clip.CustomTextCLIP if custom_text else open_clip.CLIP)(
            32,
            open_clip.CLIPVisionCfg(**SIZES | {"patch_size": 8, "image_size": 32} | (vision or {})),
            open_clip.CLIPTextCfg(
                **SIZES
                | {"heads": 2, "vocab_size": vocabulary, "context_length": context_length}
                | (text or {})
            ),
            quick_gelu=quick_gelu,
        )
        for weight in model.parameters():
            weight.data += 0.1 * torch.randn_like(weight)
        return model.eval()

    return build


@pytest.fixture
def convert(tokenizer_folder, tmp_path):
    """Save content as a file and convert it."""

    def convert(content, name="clip.pt", **options):
        path = tmp_path / name
        save_file(content, path) if path.suffix == ".safetensors" else torch.save(content, path)
        return convert_clip(path, **{"tokenizer": tokenizer_folder} | GIVEN | options)[0]

    return convert


@torch.no_grad()
def compare(model, clip):
    """Compare embeddings of random images and texts; texts end at random places and are padded with 0."""
    generator = torch.Generator().manual_seed(1)
    vision, text = model.config.vision_config, model.config.text_config
    pixel_values = torch.randn(4, 3, vision.image_size, vision.image_size, generator=generator)
    L, last = text.max_position_embeddings, text.vocab_size - 1
    input_ids = torch.randint(1, last, (4, L), generator=generator)
    ends = torch.tensor([2, 9, L // 2, L - 1])
    input_ids[torch.arange(4), ends] = last
    input_ids[torch.arange(L) > ends.unsqueeze(-1)] = 0
    theirs = clip.encode_image(pixel_values, normalize=True), clip.encode_text(input_ids, normalize=True)
    ours = model.embed_images(pixel_values), model.embed_text(input_ids)
    for embeds, expected in zip(ours, theirs, strict=True):
        assert (expected @ expected.T).triu(1).abs().max() < 0.999  # they do depend on what goes in
        torch.testing.assert_close(embeds, expected, rtol=0, atol=1e-5)
    assert model.logit_scale.item() == pytest.approx(clip.logit_scale.item())
    assert model.region_scale.logit_scale.item() == pytest.approx(clip.logit_scale.item())


# What stays


@pytest.mark.parametrize("activation", ["gelu", "quick_gelu"])
@pytest.mark.parametrize("custom_text", [False, True])
def test_embeddings_are_open_clip_s(build, convert, activation, custom_text):
    clip = build(custom_text, activation == "quick_gelu")
    model = convert(clip.state_dict(), activation=activation)
    assert model.config.text_config.hidden_act == model.config.vision_config.hidden_act == activation
    compare(model, clip)


def test_the_activation_makes_a_difference(build, convert):
    with pytest.raises(AssertionError, match="not close"):
        compare(convert(build().state_dict(), activation="quick_gelu"), build())


FORMS = {
    "safetensors": lambda weights: weights,
    "training checkpoint": lambda weights: {
        "epoch": 3,
        "name": "run",
        "state_dict": {f"module.{name}": weight for name, weight in weights.items()},
        "optimizer": torch.optim.AdamW([nn.Parameter(torch.ones(1))]).state_dict(),
    },
    "model": lambda weights: {"model": weights},
    "compiled": lambda weights: {f"_orig_mod.{name}": weight for name, weight in weights.items()},
    "buffers": lambda weights: (
        weights
        | {"attn_mask": torch.full((77, 77), -torch.inf)}
        | {name: torch.tensor(1) for name in ("input_resolution", "context_length", "vocab_size")}
    ),
    "scale in a list": lambda weights: weights | {"logit_scale": weights["logit_scale"].reshape(1)},
}


@pytest.mark.parametrize("form", FORMS)
def test_the_form_of_a_checkpoint_does_not_matter(build, convert, form):
    clip = build()
    name = "clip.safetensors" if form == "safetensors" else "clip.pt"
    compare(convert(FORMS[form](clip.state_dict()), name), clip)


@pytest.mark.parametrize("custom_text", [False, True])
def test_half_precision_becomes_float32_of_the_same_values(build, convert, custom_text):
    clip = build(custom_text).half()
    model = convert(clip.state_dict())
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}
    compare(model, clip.float())


def test_towers_of_unlike_sizes(build, convert):
    clip = build(
        vision={"layers": 3, "width": 192, "mlp_ratio": 2.5, "patch_size": 16, "image_size": 64},
        text={"layers": 1, "width": 64, "heads": 4, "context_length": 30},
    )
    compare(convert(clip.state_dict(), text_heads=4), clip)


def write_folder(
    folder: Path, clip, weights="open_clip_model.safetensors", text=None, **model_config
) -> Path:
    folder.mkdir()
    if weights.endswith("safetensors"):
        save_file(clip.state_dict(), folder / weights)
    else:
        torch.save(clip.state_dict(), folder / weights)
    text_config = SIZES | {"heads": 4} | (text or {})
    config = {"embed_dim": 32, "vision_cfg": SIZES | {"head_width": 32}, "text_cfg": text_config}
    pixels = {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "interpolation": "bilinear"}
    content = {"model_cfg": config | model_config, "preprocess_cfg": pixels}
    (folder / "open_clip_config.json").write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize("weights", ["open_clip_model.safetensors", "open_clip_pytorch_model.bin"])
def test_a_folder_of_open_clip_tells_all_that_is_needed(build, tokenizer_folder, tmp_path, weights):
    clip = build(quick_gelu=True, vision={"head_width": 32}, text={"heads": 4})
    folder = write_folder(tmp_path / "clip", clip, weights, quick_gelu=True)
    train_tokenizer(TEXTS).save_pretrained(folder)
    model, processor = convert_clip(folder)
    compare(model, clip)
    image_processor = processor.image_processor
    assert list(image_processor.image_mean) == [0.1, 0.2, 0.3]
    assert list(image_processor.image_std) == [0.4, 0.5, 0.6]
    assert image_processor.resample == 2
    assert processor(text=TEXTS).input_ids == train_tokenizer(TEXTS)(TEXTS).input_ids


def test_heads_are_those_of_open_clip_s_own_towers(open_clip):
    checked = set()
    for path in Path(open_clip.__file__).parent.glob("model_configs/*.json"):
        config = json.loads(path.read_text())
        vision, text = config["vision_cfg"], config["text_cfg"]
        if not isinstance(vision.get("layers"), int) or "heads" not in text:
            continue
        weights = {
            "visual.conv1.weight": (vision["width"], 3, 14, 14),
            "visual.positional_embedding": (257, vision["width"]),
            "visual.transformer.resblocks.0.mlp.c_fc.weight": (64, vision["width"]),
            "visual.proj": (vision["width"], config["embed_dim"]),
            "token_embedding.weight": (text["vocab_size"], text["width"]),
            "positional_embedding": (77, text["width"]),
            "transformer.resblocks.0.mlp.c_fc.weight": (64, text["width"]),
            "text_projection": (text["width"], config["embed_dim"]),
        }
        weights = {name: torch.empty(shape, device="meta") for name, shape in weights.items()}
        fields = measure_towers(weights, path, activation="gelu")
        heads = vision["width"] // vision.get("head_width", 64)
        assert fields["vision_config"]["num_attention_heads"] == heads, path
        assert fields["text_config"]["num_attention_heads"] == text["heads"], path
        checked.add(vision["width"])
    assert checked >= {384, 512, 768, 896, 1024, 1280, 1408, 1664, 1792}


def test_the_merges_of_open_clip_give_clip_s_tokens(build, convert, tmp_path):
    clip = build(text={"vocab_size": 49408})
    torch.save(clip.state_dict(), tmp_path / "clip.pt")
    _, processor = convert_clip(tmp_path / "clip.pt", activation="gelu")
    # the ids that OpenAI's tokenizer gives
    assert processor(text="a photo of a cat").input_ids == [49406, 320, 1125, 539, 320, 2368, 49407]
    assert processor.tokenizer.model_max_length == 77


def test_the_file_of_merges_can_be_named(open_clip, build, convert):
    merges = Path(open_clip.__file__).with_name("bpe_simple_vocab_16e6.txt.gz")
    model = convert(build(text={"vocab_size": 49408}).state_dict(), tokenizer=merges)
    text = model.config.text_config
    assert (text.bos_token_id, text.eos_token_id, text.pad_token_id) == (49406, 49407, 49407)


# Long texts


@pytest.mark.parametrize("custom_text", [False, True])
def test_a_long_clip_of_one_table(build, convert, custom_text):
    clip = build(custom_text, context_length=248)
    model = convert(clip.state_dict())
    assert model.config.text_config.max_position_embeddings == 248
    compare(model, clip)


def test_the_two_tables_of_long_clip_are_read_as_it_reads_them(build, convert):
    clip = build(context_length=248)
    weights = clip.state_dict() | {"positional_embedding_res": torch.randn(248, 128)}
    mask1 = torch.zeros(248, 1)
    mask1[:20] = 1
    mask2 = 1 - mask1
    with torch.no_grad():
        clip.positional_embedding.copy_(
            weights["positional_embedding"] * mask1 + weights["positional_embedding_res"] * mask2
        )
    compare(convert(weights | {"positional_embedding": build(context_length=248).positional_embedding}), clip)


def test_77_positions_are_stretched_to_248_as_long_clip_stretches_them():
    table = torch.randn(77, 8, generator=torch.Generator().manual_seed(0))
    expected = torch.empty(248, 8)
    expected[:20] = table[:20]
    for i in range(57):
        step = table[i + 21] - table[i + 20] if i < 56 else table[76] - table[75]
        for quarter in range(4):
            expected[20 + 4 * i + quarter] = table[i + 20] + step * quarter / 4
    torch.testing.assert_close(stretch_positions(table, 248), expected)


def test_a_stretched_line_stays_a_line():
    table = torch.arange(30.0).unsqueeze(-1)
    stretched = stretch_positions(table, 45).squeeze(-1)
    assert stretched[:20].tolist() == list(range(20))
    torch.testing.assert_close(stretched[20:], 20 + torch.arange(25) * 10 / 25)


def test_short_texts_keep_their_embeddings_when_positions_are_stretched(build, convert):
    weights = build().state_dict()
    model, stretched = convert(weights), convert(weights, text_length=248)
    input_ids = torch.randint(1, 99, (3, 20), generator=torch.Generator().manual_seed(0))
    input_ids[:, -1] = model.config.text_config.eos_token_id
    with torch.no_grad():
        assert torch.equal(model.embed_text(input_ids), stretched.embed_text(input_ids))


@pytest.mark.parametrize("text_length", [77, 60])
def test_positions_only_grow(build, convert, text_length):
    with refuses(f"text_length is {text_length}", "77", "20"):
        convert(build().state_dict(), text_length=text_length)


# What is refused


def complain(path, problems: str) -> str:
    return f"{path} do not match its configuration: {problems}. Give a complete"


def test_every_key_is_accounted_for(build, convert, tmp_path):
    weights = build().state_dict()
    del weights["visual.ln_pre.weight"], weights["transformer.resblocks.1.attn.in_proj_bias"]
    weights["extra.weight"] = torch.ones(2)
    weights["visual.proj"] = torch.ones(127, 32)
    weights["ln_final.bias"][3] = torch.nan
    with refuses(
        complain(
            tmp_path / "clip.pt",
            "missing: ['transformer.resblocks.1.attn.in_proj_bias', 'visual.ln_pre.weight']; "
            "not used: ['extra.weight']; of another shape: ['visual.proj']; not finite: ['ln_final.bias']",
        )
    ):
        convert(weights)


def test_two_text_towers_are_not_mistaken_for_one(build, convert, tmp_path):
    weights, other = build().state_dict(), build(custom_text=True).state_dict()
    second = {name: weight for name, weight in other.items() if name.startswith("text.")}
    with refuses(complain(tmp_path / "clip.pt", f"not used: {sorted(second)}")):
        convert(weights | second)


def test_a_layer_that_is_missing_in_the_middle_is_named(build, convert, tmp_path):
    weights = build(text={"layers": 3}).state_dict()
    lost = sorted(name for name in weights if name.startswith("transformer.resblocks.1."))
    with refuses(complain(tmp_path / "clip.pt", f"missing: {lost}")):
        convert({name: weight for name, weight in weights.items() if name not in lost})


def test_the_activation_is_never_guessed(build, convert, tmp_path):
    with refuses(str(tmp_path / "clip.pt"), "--activation", "quick_gelu for OpenAI", "RemoteCLIP"):
        convert(build().state_dict(), activation=None)


FOREIGN = {
    "vision_model.embeddings.class_embedding": (
        "the layout of transformers; give the folder with its config.json"
    ),
    "visual.trunk.cls_token": "a vision tower of timm",
    "visual.layer1.0.conv1.weight": "a ResNet",
    "visual.attn_pool.query": "attention pooling",
    "text_decoder.ln_final.bias": "CoCa's decoder",
    "text.transformer.embeddings.word_embeddings.weight": "a text tower of transformers",
    "logit_bias": "SigLIP's bias",
    "visual.transformer.resblocks.0.ls_1.gamma": "LayerScale",
}


@pytest.mark.parametrize("key", FOREIGN)
def test_other_architectures_are_refused_by_their_keys(build, convert, tmp_path, key):
    with refuses(str(tmp_path / "clip.pt"), FOREIGN[key], f"['{key}']"):
        convert(build().state_dict() | {key: torch.ones(1)})


def test_of_many_keys_the_first_are_named(build, convert, tmp_path):
    keys = [f"visual.layer1.{i:02}.conv1.weight" for i in range(25)]
    with refuses("a ResNet", f"{keys[:20]} and 5 more"):
        convert(build().state_dict() | dict.fromkeys(keys, torch.ones(1)))


def test_a_state_dict_of_something_else_is_refused(convert, tmp_path):
    with refuses(
        str(tmp_path / "clip.pt"),
        "['visual.conv1.weight', 'visual.positional_embedding', "
        "'visual.transformer.resblocks.0.mlp.c_fc.weight', 'visual.proj', 'token_embedding.weight', "
        "'positional_embedding', 'transformer.resblocks.0.mlp.c_fc.weight', 'text_projection']",
        "['bias', 'weight']",
    ):
        convert(nn.Linear(2, 2).state_dict())


def test_images_that_are_not_square_are_refused(build, convert, tmp_path):
    with refuses(f"{tmp_path / 'clip.pt'}: visual.positional_embedding has 9 rows", "square"):
        convert(build(vision={"image_size": (16, 32)}).state_dict())


def test_a_pickle_of_more_than_tensors_is_not_run(build, convert, tmp_path):
    content = {"state_dict": build().state_dict(), "args": argparse.Namespace(lr=1)}
    with refuses(str(tmp_path / "clip.pt"), "argparse.Namespace", "not executed"):
        convert(content)


def test_code_in_a_pickle_does_not_run(convert, tmp_path):
    class Trap:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "sprung",))

    with pytest.raises(ValueError, match="cannot be read as plain tensors"):
        convert({"state_dict": Trap()})
    assert not (tmp_path / "sprung").exists()


def test_torchscript_is_not_run(tmp_path):
    path = tmp_path / "ViT-B-32.pt"
    torch.jit.script(nn.Linear(2, 2)).save(path)
    with refuses(str(path), "TorchScript", "not executed", "torch.save(torch.jit.load("):
        convert_clip(path)


@pytest.mark.parametrize(
    ("name", "content", "fact"),
    [
        ("clip.pt", b"hello hello", "cannot be read as weights (KeyError)"),
        ("clip.safetensors", b"hello hello", "header too large"),
        ("clip.pt", b"<!DOCTYPE html><html></html>", "web page"),
        ("clip.safetensors", b"<HTML><body>404</body></HTML>", "web page"),
    ],
)
def test_a_broken_file_is_refused(tmp_path, name, content, fact):
    (tmp_path / name).write_bytes(content)
    with refuses(str(tmp_path / name), fact):
        convert_clip(tmp_path / name, **GIVEN)


def test_what_is_no_state_dict_is_refused(convert, tmp_path):
    path = tmp_path / "clip.pt"
    with refuses(f"{path} has a Tensor", "state dict"):
        convert(torch.ones(2))
    with refuses(str(path), "['epoch', 'net']", "('state_dict', 'model_state_dict', 'model', 'module')"):
        convert({"epoch": 3, "net": {"weight": torch.ones(2)}})
    with refuses(str(path), "['state_dict', 'model']"):
        convert({"state_dict": {}, "model": {}})


def test_tables_of_positions_that_do_not_fit_are_refused(build, convert, tmp_path):
    with refuses(
        f"{tmp_path / 'clip.pt'}: positional_embedding has shape (77, 128)",
        "positional_embedding_res has shape (248, 128)",
    ):
        convert(build().state_dict() | {"positional_embedding_res": torch.ones(248, 128)})


def test_a_tokenizer_that_does_not_fit_is_refused(build, convert, tmp_path):
    weights = build(text={"vocab_size": 100}).state_dict()
    last = len(train_tokenizer(TEXTS)) - 1
    with refuses(f"{last + 1} tokens", f"token {last}", f"{tmp_path / 'clip.pt'}", "100", "--tokenizer"):
        convert(weights)


def test_heads_that_do_not_divide_the_width_are_refused(build, convert, tmp_path):
    path, weights = tmp_path / "clip.pt", build().state_dict()
    with refuses(f"{path}: a tower of width 128 cannot have 3 heads", "--text_heads"):
        convert(weights, text_heads=3)
    weights = build(vision={"width": 96, "head_width": 32}).state_dict()
    with refuses(f"{path}: a tower of width 96 cannot have 1.5 heads", "--vision_heads"):
        convert(weights)


def test_a_setting_that_transformers_clip_does_not_support_is_refused(build, tmp_path):
    folder = write_folder(tmp_path / "clip", build(), text={"pool_type": "last"})
    with refuses(f"{folder}: open_clip_config.json sets text_cfg.pool_type to 'last'", "'argmax'"):
        convert_clip(folder)


@pytest.mark.parametrize(
    ("name", "told", "given"),
    [("activation", "gelu", "quick_gelu"), ("vision_heads", 4, 2), ("text_heads", 4, 2)],
)
def test_what_is_told_twice_must_agree(build, tmp_path, name, told, given):
    folder = write_folder(tmp_path / "clip", build())
    with refuses(f"{folder} has {name} {told}", f"{given} is given", f"--{name}"):
        convert_clip(folder, **{name: given})


# The Hub


@pytest.mark.slow
def test_a_repository_and_a_file_in_one_are_read_from_the_cache(build, tokenizer_folder, tmp_path):
    repository = tmp_path / "hub" / "models--you--clips"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    (repository / "snapshots").mkdir()
    clip = build(vision={"head_width": 32}, text={"heads": 4})
    folder = write_folder(repository / "snapshots" / ("0" * 40), clip)
    torch.save(build().state_dict(), folder / "other.pt")
    code = f"""
from geoalign_hf.convert.convert import convert_clip
options = {{"tokenizer": "{tokenizer_folder}"}}
convert_clip("you/clips", **options)[0].save_pretrained("repository")
convert_clip("you/clips/other.pt", activation="gelu", **options)[0].save_pretrained("file")
"""
    environment = os.environ | {"HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"}
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path, env=environment, timeout=120)
    compare(AutoModel.from_pretrained(tmp_path / "repository").eval(), clip)
    compare(AutoModel.from_pretrained(tmp_path / "file").eval(), build())


# The command line


def test_the_command_writes_a_folder_that_loads(build, tokenizer_folder, geoalign, tmp_path):
    clip = build(quick_gelu=True)
    torch.save({"state_dict": clip.state_dict()}, tmp_path / "clip.pt")
    options = {"activation": "quick_gelu", "tokenizer": str(tokenizer_folder), "text_length": "248"}
    options = [word for name, value in options.items() for word in (f"--{name}", value)]
    geoalign("convert", tmp_path / "clip.pt", tmp_path / "dest", *options)
    model = AutoModel.from_pretrained(tmp_path / "dest").eval()
    processor = AutoProcessor.from_pretrained(tmp_path / "dest")
    assert model.config.text_config.max_position_embeddings == 248
    assert processor.tokenizer.model_max_length == 248
    batch = processor(text=["a ship " * 300], truncation=True, return_tensors="pt")
    assert batch["input_ids"].shape == (1, 248)
    short = processor(text=TEXTS, padding=True, return_tensors="pt")
    padded = torch.zeros(3, 77, dtype=int)
    padded[:, : short["input_ids"].shape[1]] = short["input_ids"]
    with torch.no_grad():
        assert model.embed_text(**batch).isfinite().all()
        expected = clip.encode_text(padded, normalize=True)
        torch.testing.assert_close(model.embed_text(**short), expected, rtol=0, atol=1e-5)
