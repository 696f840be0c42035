"""A Space and a handler are pushed complete, and name the model."""

import json
import threading
import urllib.request
from base64 import b64encode
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib.util import module_from_spec, spec_from_file_location
from io import BytesIO

import pytest
import yaml

from geoalign_hf.hub.push import HANDLER, push
from geoalign_hf.hub.spaces import push_space
from geoalign_hf_cli import main


def test_a_space_holds_the_page_and_names_its_model(hub):
    commit = push_space("you/harbor-page", "you/harbors")
    names = hub.list("you/harbor-page", repo_type="space")
    assert set(names) >= {"app.py", "README.md", "requirements.txt", "settings.json", "sample.png"}
    front = hub.read("you/harbor-page", "README.md", repo_type="space").decode().split("---")[1]
    card = yaml.safe_load(front)
    assert (card["sdk"], card["app_file"], card["models"]) == ("gradio", "app.py", ["you/harbors"])
    settings = json.loads(hub.read("you/harbor-page", "settings.json", repo_type="space"))
    assert settings == {"model": "you/harbors"}
    assert hub.repositories["space", "you/harbor-page"].find("main") == commit.oid


def test_the_command_pushes_model_handler_and_page(hub, folder, capsys):
    main(["push", str(folder), "you/harbors", "--handler", "--space", "you/harbor-page"])
    assert hub.read("you/harbors", "handler.py") == HANDLER.read_bytes()
    assert ("space", "you/harbor-page") in hub.repositories
    assert "you/harbor-page" in capsys.readouterr().out


def test_rows_have_no_handler(hub, tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train-00000.parquet").write_bytes(b"PAR1")
    (tmp_path / "README.md").write_text("---\n---\n")
    with pytest.raises(ValueError, match="handler"):
        push(tmp_path, "you/rows", handler=True)
    assert not hub.repositories


@pytest.fixture
def endpoint(folder):
    """Serve the handler over HTTP, as an endpoint does, and return a function that asks it."""
    spec = spec_from_file_location("handler", HANDLER)
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    handler = module.EndpointHandler(str(folder))

    class Server(BaseHTTPRequestHandler):
        def do_POST(self):
            data = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            answer = json.dumps(handler(data)).encode()
            self.send_response(200)
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *arguments):
            """Print nothing."""

    server = HTTPServer(("127.0.0.1", 0), Server)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()

    def ask(data: dict):
        url = f"http://127.0.0.1:{server.server_port}"
        request = urllib.request.Request(url, json.dumps(data).encode(), {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as response:
            return json.loads(response.read())

    yield ask
    server.shutdown()
    thread.join()


def encode(image) -> str:
    buffer = BytesIO()
    image.save(buffer, format="PNG")
    return b64encode(buffer.getvalue()).decode()


def test_an_endpoint_names_regions_over_http(endpoint, toy_rows):
    row = toy_rows[0]
    inputs = {"image": encode(row["image"]), "boxes": row["boxes"], "candidate_labels": ["ship", "road"]}
    answers = endpoint({"inputs": inputs, "parameters": {"top_k": 1}})
    assert len(answers) == len(row["boxes"])
    for (best,), box in zip(answers, row["boxes"], strict=True):
        assert best["label"] in ("ship", "road") and 0.5 <= best["score"] <= 1
        assert best["box"] == pytest.approx(box)


@pytest.mark.parametrize(
    ("change", "fact"),
    [
        ({"image": "no picture"}, "base64"),
        ({"image": 3}, "base64"),
        ({"boxes": [[5, 5, 1, 1]]}, "boxes"),
        ({"candidate_labels": []}, "candidate_labels"),
        ({"labels": ["ship"]}, "labels"),
    ],
)
def test_a_wrong_request_gets_a_message(endpoint, toy_rows, change, fact):
    row = toy_rows[0]
    inputs = {"image": encode(row["image"]), "boxes": row["boxes"], "candidate_labels": ["ship", "road"]}
    assert fact in endpoint({"inputs": inputs | change})["error"]
    assert "inputs" in endpoint({"image": inputs["image"]})["error"]


@pytest.mark.parametrize(
    ("request_", "fact"),
    [
        ([1], "list"),
        (None, "NoneType"),
        ({"inputs": {}, "parameters": [1]}, "[1]"),
        ({"inputs": {}, "parameters": {"boxes": [], "top_k": 1}}, "boxes"),
    ],
)
def test_a_request_of_another_form_gets_a_message(endpoint, request_, fact):
    error = endpoint(request_)["error"]
    assert fact in error and "Pipeline" not in error
