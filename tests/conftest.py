"""A two-layer model, its processor, eight toy rows and a tiny vision-language model, all made in memory."""

import json
import os
import sys
from datetime import timedelta
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before any import of the library reads it
sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))

import hypothesis
import pytest
import torch
from toy_rows import CONCEPTS, draw_rows

from geoalign_hf.convert.from_scratch import build_model
from geoalign_hf.data.schema import build_rows
from geoalign_hf.model.processing_geoalign_clip import CONCEPT_TEMPLATES

# The same tests draw the same examples; --hypothesis-profile=others --hypothesis-seed=N draws others.
for name, is_repeated in {"repeatable": True, "others": False}.items():
    hypothesis.settings.register_profile(
        name,
        derandomize=is_repeated,
        database=None,
        deadline=timedelta(minutes=5),  # a hang is an error; a busy machine is not
        suppress_health_check=list(hypothesis.HealthCheck),
    )
hypothesis.settings.load_profile("repeatable")
torch.set_num_threads(1)  # small tensors: more threads wait for each other


@pytest.fixture(scope="session")
def toy_rows():
    """Eight rows, drawn once."""
    return draw_rows(8, seed=9)  # has five or more regions of every concept


@pytest.fixture(scope="session")
def rows(toy_rows):
    """The same as a dataset."""
    return build_rows(toy_rows)


@pytest.fixture(scope="session")
def built(toy_rows):
    """A model of two layers with fresh weights, and its processor; not to be changed."""
    texts = [text for row in toy_rows for text in [*row["captions"], *row["phrases"]]]
    texts += [template.format(concept) for template in CONCEPT_TEMPLATES for concept in CONCEPTS]
    torch.manual_seed(0)
    model, processor = build_model(
        texts, image_size=64, patch_size=16, width=64, depth=2, text_width=64, text_depth=2, embed_dim=32,
        region_view="image",
    )  # fmt: skip
    return model.eval(), processor


@pytest.fixture
def model(built):
    """A copy that a test may change."""
    import copy

    return copy.deepcopy(built[0])


@pytest.fixture(scope="session")
def processor(built):
    """The processor of `model`."""
    return built[1]


@pytest.fixture(scope="session")
def folder(built, tmp_path_factory):
    """The model and its processor, saved."""
    path = tmp_path_factory.mktemp("saved") / "model"
    built[0].save_pretrained(path)
    built[1].save_pretrained(path)
    return path


@pytest.fixture(scope="session")
def modules_folder(tmp_path_factory):
    """evaluate copies metrics below this folder, and imports them from the first folder it was given."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("evaluate.config.HF_MODULES_CACHE", str(tmp_path_factory.mktemp("modules")))
        yield


@pytest.fixture(scope="session")
def clip_folder(processor, tmp_path_factory):
    """A stock CLIP of two layers with fresh weights, as transformers saves one."""
    from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPProcessor

    tower = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    tokenizer = processor.tokenizer
    names = ("bos_token_id", "eos_token_id", "pad_token_id")
    text = tower | {"vocab_size": len(tokenizer)} | {name: getattr(tokenizer, name) for name in names}
    vision = tower | {"image_size": 64, "patch_size": 16}
    path = tmp_path_factory.mktemp("clip")
    torch.manual_seed(0)
    config = CLIPConfig(vision_config=vision, text_config=text, projection_dim=16)
    CLIPModel(config).save_pretrained(path)
    images = CLIPImageProcessorPil(size={"shortest_edge": 64}, crop_size=64)
    CLIPProcessor(images, tokenizer).save_pretrained(path)
    return path


@pytest.fixture(scope="session")
def tiny_pipeline():
    """A vision-language model of one layer with fresh weights, which answers with words of its own."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import (
        CLIPImageProcessorPil,
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
        PreTrainedTokenizerFast,
        pipeline,
    )

    words = ["<pad>", "<s>", "</s>", "<unk>", "<image>", "user", ":"]
    words += "a white ship at the harbor two storage tanks near an old bridge seen from above".split()
    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(dict.fromkeys(words))}, "<unk>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>",
        additional_special_tokens=["<image>"], padding_side="left",
    )  # fmt: skip
    processor = LlavaProcessor(
        image_processor=CLIPImageProcessorPil(size={"height": 32, "width": 32}, crop_size=32),
        tokenizer=tokenizer,
        patch_size=16,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template="{% for part in messages[0]['content'] %}{{ '<image> ' if part['type'] == 'image' "
        "else part['text'] }}{% endfor %}",
    )
    small = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2}
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(num_hidden_layers=2, image_size=32, patch_size=16, **small),
        text_config=LlamaConfig(num_hidden_layers=1, vocab_size=len(tokenizer), **small),
        image_token_index=4,
    )
    torch.manual_seed(0)
    model = LlavaForConditionalGeneration(config).eval()
    return pipeline("image-text-to-text", model=model, processor=processor)


@pytest.fixture
def geoalign(monkeypatch, capsys, tmp_path):
    """Run `geoalign-hf` in this process, in the folder `tmp_path`; returns what it printed."""
    from geoalign_hf_cli import main

    def run(*words) -> str:
        monkeypatch.chdir(tmp_path)
        code = main(list(map(str, words)))
        printed = capsys.readouterr()
        assert code == 0, printed.err
        return printed.out

    return run


@pytest.fixture
def geoalign_refuses(monkeypatch, capsys, tmp_path):
    """The same for a command that must end with exit code 2; returns its one line on stderr."""
    from geoalign_hf_cli import main

    def run(*words) -> str:
        monkeypatch.chdir(tmp_path)
        assert main(list(map(str, words))) == 2
        printed = capsys.readouterr().err
        bars, command, line = printed.partition("geoalign-hf")  # progress bars may come first
        line = line.replace("\x1b[A", "").strip()  # and close afterwards
        assert command and "Traceback" not in bars and "\n" not in line, printed
        return f"{command}{line}"

    return run


@pytest.fixture
def coco_folder(toy_rows, tmp_path):
    """The toy rows as a COCO file beside its images."""
    path = tmp_path / "coco"
    path.mkdir()
    names = sorted({concept for row in toy_rows for concept in row["concepts"]})
    categories = [{"id": i, "name": name} for i, name in enumerate(names)]
    images, annotations = [], []
    for i, row in enumerate(toy_rows):
        row["image"].save(path / f"{i}.png")
        size = {"width": row["image"].width, "height": row["image"].height}
        images.append({"id": i, "file_name": f"{i}.png"} | size)
        for (x0, y0, x1, y1), concept in zip(row["boxes"], row["concepts"], strict=True):
            annotation = {"id": len(annotations), "image_id": i, "bbox": [x0, y0, x1 - x0, y1 - y0]}
            annotations.append(annotation | {"category_id": names.index(concept)})
    content = {"images": images, "annotations": annotations, "categories": categories}
    (path / "rows.json").write_text(json.dumps(content))
    return path


@pytest.fixture
def hub(monkeypatch):
    """A Hub of this test's own, which this process takes for the only one."""
    import huggingface_hub
    from hub_server import HubServer
    from huggingface_hub.utils import close_session

    with HubServer() as server:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", server.url)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setenv("HF_TOKEN", "hf_writer")
        monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)  # of its retries
        close_session()
        yield server
        close_session()
