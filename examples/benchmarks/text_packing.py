"""Compares methods of encoding all texts of a training batch: time of one forward and backward pass.

The texts are those of a batch with regions. Each image has a description of 60 to 150 tokens, a short
caption, 8 phrases, their concepts in 3 templates, and 3 hard negatives per phrase. The text tower has CLIP's
size, 248 positions and random weights. Tokenizing and packing are not timed. All methods run once in each
round, so that other work on the machine slows all of them equally.

    OMP_NUM_THREADS=1 python examples/benchmarks/text_packing.py

Prints the number of calls and tokens of each method, and its median time relative to ours. It fails if two
methods differ in an embedding by more than 1e-4. It takes about 6 minutes on one CPU core, and needs no
network.
"""

import argparse
import random
import time
from statistics import median

import torch
from measure import synchronize

from geoalign_hf.convert.from_scratch import train_tokenizer
from geoalign_hf.model.configuration_geoalign_clip import GeoAlignCLIPConfig
from geoalign_hf.model.modeling_geoalign_clip import GeoAlignCLIPModel
from geoalign_hf.model.packing_geoalign_clip import pack_texts
from geoalign_hf.model.processing_geoalign_clip import CONCEPT_TEMPLATES

SHORT, LONG, TOLERANCE = 77, 248, 1e-4
SIZES, COLOURS = ("small", "large", "long", "narrow"), ("white", "red", "grey", "blue", "green", "brown")
CONCEPTS = ("airplane", "ship", "storage tank", "tennis court", "bridge", "vehicle", "harbor", "track field")
PLACES = ("in the upper left", "near the center", "along the lower edge", "at the far right of the image")
GROUNDS = ("a paved apron", "open water", "dry grassland", "a dense residential block", "a wide river bank")
PHRASE = "a {} {} {} {}"
SENTENCES = (
    "Next to {ground} stands {phrase}, and its shadow falls towards the road that runs past it.",
    "Two rows of buildings follow {ground}; beside them lies {phrase} with bright edges.",
)


def draw_texts(num_images: int, rng: random.Random) -> dict[str, list[str]]:
    """Write the texts of a batch, by granularity."""
    texts = {name: [] for name in ("description", "caption", "phrase", "concept", "negative")}
    for _ in range(num_images):
        concepts = rng.sample(CONCEPTS, 3)  # the regions of an image have few concepts
        regions = [[rng.choice(words) for words in (SIZES, COLOURS, concepts, PLACES)] for _ in range(8)]
        phrases = [PHRASE.format(*words) for words in regions]
        caption = f"an overhead view of {rng.choice(GROUNDS)} with a {concepts[0]} and a {concepts[1]}"
        sentences = [
            rng.choice(SENTENCES).format(phrase=rng.choice(phrases), ground=rng.choice(GROUNDS))
            for _ in range(rng.randint(2, 4))
        ]
        texts["caption"].append(caption)
        texts["description"].append(" ".join([f"{caption}.", *sentences]))
        texts["phrase"] += phrases
        for words in regions:
            texts["concept"] += [template.format(words[2]) for template in CONCEPT_TEMPLATES[:3]]
            for i, choices in enumerate((SIZES, COLOURS, CONCEPTS)):
                wrong = rng.choice([word for word in choices if word != words[i]])
                texts["negative"].append(PHRASE.format(*words[:i], wrong, *words[i + 1 :]))
    return texts


def build_model(tokenizer, depth: int, width: int) -> GeoAlignCLIPModel:
    """Build a CLIP with a text tower of the given size. Its vision tower is tiny and not used."""
    text = {"hidden_size": width, "num_hidden_layers": depth, "num_attention_heads": width // 64}
    text |= {"intermediate_size": 4 * width, "max_position_embeddings": LONG, "vocab_size": 49_408}
    text |= {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    vision = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 64}
    return GeoAlignCLIPModel(GeoAlignCLIPConfig(text_config=text, vision_config=vision, projection_dim=width))


def list_methods(tokens: dict[str, list[list[int]]], padding: int) -> dict[str, tuple[list, torch.Tensor]]:
    """Arrange the texts by every method: the inputs of each call, and the position of each embedding."""
    every = [text for texts in tokens.values() for text in texts]
    unique = list(map(list, dict.fromkeys(map(tuple, every))))
    longest = {name: max(map(len, texts)) for name, texts in tokens.items()}
    fixed = dict.fromkeys(tokens, SHORT) | {"description": LONG}
    in_order = torch.arange(len(every))

    def pack(texts):
        input_ids, text_ids, order = pack_texts(texts, padding)
        return [{"input_ids": input_ids, "text_ids": text_ids}], order.argsort()

    def pad(texts, length):  # no mask: the tower is causal and read at the end of the text
        return {"input_ids": torch.tensor([text + [padding] * (length - len(text)) for text in texts])}

    calls, position = pack(unique)
    cut, full = ([pad(tokens[name], to[name]) for name in tokens] for to in (longest, fixed))
    return {
        "ours: each text once, packed": (calls, position[[unique.index(text) for text in every]]),
        "every text, packed": pack(every),
        "one call per granularity, padded to its longest": (cut, in_order),
        f"one call per granularity, {SHORT} or {LONG} (FG-CLIP)": (full, in_order),
        "one call, padded to the longest": ([pad(every, max(longest.values()))], in_order),
    }


def embed(model: GeoAlignCLIPModel, calls: list[dict], position: torch.Tensor) -> torch.Tensor:
    """Embed all texts in the order of the batch: (N, D)."""
    return torch.cat([model(**inputs, return_logits=False).text_embeds for inputs in calls])[position]


def time_pass(model: GeoAlignCLIPModel, method: tuple, gradient: torch.Tensor) -> float:
    """Measure the seconds of one forward and backward pass."""
    model.zero_grad()
    start = time.perf_counter()
    embed(model, *method).backward(gradient)
    synchronize(gradient.device.type)
    return time.perf_counter() - start


def main():
    """Check that all methods agree, time them, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--num_images", type=int, default=2, help="Number of images of the batch.")
    parser.add_argument("--depth", type=int, default=12, help="Number of blocks of the text tower.")
    parser.add_argument("--width", type=int, default=512, help="Width of the text tower, a multiple of 64.")
    parser.add_argument("--rounds", type=int, default=3, help="Number of rounds; the median is reported.")
    parser.add_argument(
        "--device", default="cuda" if torch.cuda.is_available() else "cpu", help="Device to run on."
    )
    args = parser.parse_args()
    torch.set_default_device(args.device)
    torch.manual_seed(0)
    # 1. The texts, a tokenizer trained on them, the tower, and the methods.
    texts = draw_texts(args.num_images, random.Random(0))
    tokenizer = train_tokenizer([text for group in texts.values() for text in group], max_length=LONG)
    tokens = {name: tokenizer(group)["input_ids"] for name, group in texts.items()}
    model = build_model(tokenizer, args.depth, args.width)
    methods = list_methods(tokens, tokenizer.pad_token_id)
    # 2. All methods must agree.
    with torch.no_grad():
        first, *others = [embed(model, *method) for method in methods.values()]
    difference = max((embeds - first).abs().max().item() for embeds in others)
    if not difference <= TOLERANCE:
        raise SystemExit(f"the embeddings of two methods differ by {difference:.1e}, over {TOLERANCE}.")
    # 3. The rounds and the table.
    gradient = torch.randn_like(first)
    time_pass(model, next(iter(methods.values())), gradient)  # starts threads and loads libraries
    rounds = [
        {name: time_pass(model, methods[name], gradient) for name in methods} for _ in range(args.rounds)
    ]
    seconds = [median(times[name] for times in rounds) for name in methods]
    for name, group in tokens.items():
        print(f"{len(group):4} x {name}, {min(map(len, group))} to {max(map(len, group))} tokens")
    print(f"\n{'':47}{'calls':>6}{'tokens':>9}{'time':>8}")
    for (name, (calls, _)), time_taken in zip(methods.items(), seconds, strict=True):
        num_tokens = sum(inputs["input_ids"].numel() for inputs in calls)
        print(f"{name:47}{len(calls):6}{num_tokens:9,}{time_taken / seconds[0]:8.2f}")
    print(f"{'ours, seconds':62}{seconds[0]:8.2f}\nlargest difference of embeddings: {difference:.1e}")


if __name__ == "__main__":
    main()
