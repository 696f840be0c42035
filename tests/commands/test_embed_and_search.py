"""`geoalign-hf embed` and `geoalign-hf search`."""

import os
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from geoalign_hf.embedding.embedder import Embedder
from geoalign_hf.embedding.shards import read_embeds


def test_search_finds_in_an_embedded_folder_what_brute_force_finds(
    folder, built, coco_folder, geoalign, tmp_path
):
    embed = ["embed", coco_folder, "--coco", coco_folder / "rows.json", "--shard_size", 3, "--model", folder]
    printed = geoalign(*embed, "--output_dir", "embeds")
    assert "process 0 of 1: wrote 3 of 3 shards" in printed and "8 images in all" in printed
    assert printed.endswith("wrote embeds\n")
    assert "wrote 0 of 3 shards" in geoalign(*embed, "--output_dir", "embeds")

    embedder = Embedder(*built)
    queries = ["a ship", "a storage tank near a road"]
    text_embeds, image_embeds = embedder.embed_text(queries), embedder.embed_images([coco_folder / "2.png"])
    everything = read_embeds(tmp_path / "embeds")
    asked = ["--model", folder, "--embeds", "embeds", "--image", coco_folder / "2.png", "--query", *queries]
    for kind in ("image", "region"):
        again = None
        for _ in range(2):  # with the index that is built, and with the one that is loaded
            printed = geoalign("search", *asked, "--kind", kind, "--images", coco_folder, "--top_k", 4)
            assert again in (None, printed)
            again = printed
        rows = [row for row in everything if row["kind"] == kind]
        embeds = np.array([row["embed"] for row in rows])
        expected = ""
        for name, query in zip([*queries, coco_folder / "2.png"], [*text_embeds, *image_embeds], strict=True):
            expected += f"{name}:\n"
            scores = embeds @ query.numpy()
            for i in np.argsort(-scores)[:4]:
                box = [round(side, 1) for side in rows[i]["box"]] if kind == "region" else "whole"
                concept = f"{rows[i]['concept']} " if kind == "region" else ""
                expected += f"  {rows[i]['path']} {box} {concept}{scores[i]:.4f}\n"
        assert printed == expected + "wrote outputs/search\n"
        assert Image.open(tmp_path / "outputs" / "search" / "hits_2.png").height > 400
    assert rows and "  2.png whole 1.0000" in geoalign("search", *asked)


@pytest.mark.slow
def test_two_processes_embed_a_folder_as_one_does_and_a_killed_run_goes_on(
    folder, coco_folder, geoalign, tmp_path
):
    boxes = ["--coco", coco_folder / "rows.json"]
    embed = ["-m", "geoalign_hf", "embed", coco_folder, "--model", folder, "--shard_size", 1, *boxes]
    geoalign(*embed[2:], "--output_dir", "one")
    embed += ["--output_dir", "two"]
    port = 29400 + os.getpid() % 500
    launcher = ["-m", "torch.distributed.run", "--nproc_per_node", 2, "--master_port", port]
    command = list(map(str, [sys.executable, *launcher, *embed]))
    environment = os.environ | {"ACCELERATE_USE_CPU": "true"}
    alone = subprocess.Popen(
        list(map(str, [sys.executable, *embed])), cwd=tmp_path, stderr=subprocess.DEVNULL
    )
    while not list((tmp_path / "two").glob("*.parquet")):
        assert alone.poll() is None
        time.sleep(0.001)
    alone.kill()
    alone.wait()
    result = subprocess.run(
        command, capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=300
    )
    assert result.returncode == 0, result.stderr
    assert "process 0 of 2: wrote" in result.stdout and "process 1 of 2: wrote" in result.stdout
    assert not list((tmp_path / "two").glob("*.partial"))
    one, two = (read_embeds(tmp_path / name) for name in ("one", "two"))
    assert np.array(two["embed"]) == pytest.approx(np.array(one["embed"]), abs=1e-6)  # but for rounding
    assert two.remove_columns("embed").to_list() == one.remove_columns("embed").to_list()
