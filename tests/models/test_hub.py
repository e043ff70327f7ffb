"""`fintune push` against a loopback hub: what is sent, what is not, and what is said."""

import base64
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from fintune.cli import main

TOKEN = "hf_secretsecretsecret"


class Hub(BaseHTTPRequestHandler):
    """The endpoints that huggingface_hub calls to make a repository and commit to it."""

    def do_GET(self):
        self.answer(
            {}
            if self.server.status != 200
            else {"id": "me/model", "private": self.server.private, "siblings": [], "tags": []},
            self.server.status,
        )

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.asked.append((self.path, self.headers.get("Authorization")))
        if self.server.status != 200:
            return self.answer({"error": f"{self.headers.get('Authorization')} is wrong"}, self.server.status)
        if self.path == "/api/repos/create":
            self.server.created = json.loads(body)
            return self.answer({"url": f"{self.server.home}/me/model", "id": "me/model"})
        if "/preupload/" in self.path:
            files = json.loads(body)["files"]
            mode = lambda path: "lfs" if path.endswith(".safetensors") else "regular"  # noqa: E731
            modes = [{"path": f["path"], "uploadMode": mode(f["path"]), "shouldIgnore": False} for f in files]
            return self.answer({"files": modes})
        if self.path.endswith("/info/lfs/objects/batch"):
            actions = {"upload": {"href": f"{self.server.home}/store"}}
            objects = [{**each, "actions": actions} for each in json.loads(body)["objects"]]
            return self.answer({"transfer": "basic", "objects": objects})
        if "/commit/" in self.path:
            self.server.commit = [json.loads(line) for line in body.splitlines()]
            return self.answer({"commitUrl": f"{self.server.home}/me/model/commit/1", "commitOid": "1"})
        return self.answer({})

    def do_PUT(self):
        self.server.stored += self.rfile.read(int(self.headers["Content-Length"]))
        self.answer({})

    def answer(self, value, status=200):
        content = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *args):
        pass


@pytest.fixture
def hub(monkeypatch):
    from huggingface_hub import HfApi, close_session, constants

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.home = f"http://127.0.0.1:{server.server_port}"
    server.private, server.status, server.asked, server.commit, server.stored = True, 200, [], None, b""
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(constants, "ENDPOINT", server.home)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert HfApi().endpoint == server.home
    close_session()  # its client may be of a test that named a proxy
    yield server
    server.shutdown()
    close_session()


@pytest.fixture
def adapter(random_adapter, tmp_path):
    import shutil

    folder = shutil.copytree(random_adapter, tmp_path / "adapter")
    (folder / "README.md").write_text("---\nlibrary_name: peft\n---\n\n# A card\n\n| sentiment | 0.9 |\n")
    (folder / "results-predictions.jsonl").write_text('{"text": "a licensed text"}\n')
    raw = json.loads((folder / "fintune.json").read_text())
    data = {"sentiment": {"dataset": "financial_phrasebank", "licence": "CC BY-NC-SA 3.0"}}
    (folder / "fintune.json").write_text(json.dumps({**raw, "data": {"tasks": data}}))
    return folder


def test_an_adapter_goes_to_a_private_repository_with_its_card_and_no_texts_of_the_data(hub, adapter, capfd):
    assert main(["push", "me/model", "--model_path", str(adapter)]) == 0
    shown = "".join(capfd.readouterr())
    assert f"Sent to {hub.home}/me/model" in shown
    # Another test of the session may have left the adapter a profile.
    assert re.search(r"Not sent: (profile\.json, )?results-predictions\.jsonl", shown)
    assert TOKEN not in shown and all(token == f"Bearer {TOKEN}" for _, token in hub.asked if token)
    assert hub.created["visibility"] == "private"
    files = {line["value"]["path"]: line["value"] for line in hub.commit if line["key"] != "header"}
    assert set(files) == {"README.md", "adapter_config.json", "adapter_model.safetensors", "fintune.json"}
    assert (adapter / "adapter_model.safetensors").read_bytes() == hub.stored
    card = base64.b64decode(files["README.md"]["content"]).decode()
    assert "| sentiment | 0.9 |" in card and "## Intended use and limits" in card
    assert (
        "**Not for commercial use**, as the licence of its data says: financial_phrasebank (CC BY-NC-SA 3.0)"
        in card
    )


def test_a_dry_run_shows_all_and_asks_nothing(hub, adapter, capfd):
    assert main(["push", "me/model", "--model_path", str(adapter), "--dry_run", "--public"]) == 0
    shown = capfd.readouterr().out
    assert "adapter_model.safetensors" in shown and "## Licence note" in shown
    assert "Nothing was sent. me/model would be public" in shown and not hub.asked
    assert main(["push", "me/model", "--model_path", str(adapter), "--dry_run", "--json"]) == 0
    told = json.loads(capfd.readouterr().out)
    assert told["sent_to"] is None and sum(file["bytes"] for file in told["files"]) < told["bytes"]


def test_what_the_hub_refuses_is_a_sentence_without_the_token(hub, adapter, capfd):
    command = ["push", "me/model", "--model_path", str(adapter)]
    hub.private = False
    assert main(command) != 0
    assert "me/model exists and is public: add --public" in capfd.readouterr().err and hub.commit is None
    assert main([*command, "--public"]) == 0
    for status, told in ((401, "hf auth login"), (403, "may not write there")):
        hub.status = status
        assert main(command) != 0
        shown = "".join(capfd.readouterr())
        assert told in shown and TOKEN not in shown and "Traceback" not in shown
    assert main(["push", "a/b/c", "--model_path", str(adapter)]) != 0
    assert "which is not a repository name" in capfd.readouterr().err
    (adapter / "README.md").unlink()
    assert main(command) != 0 and "has no README.md, the model card" in capfd.readouterr().err


def test_a_hub_that_cannot_be_reached_is_said_in_a_sentence(hub, adapter, capsys):
    hub.shutdown()
    hub.server_close()
    assert main(["push", "me/model", "--model_path", str(adapter)]) == 2
    assert f"The hub at {hub.home} cannot be reached: ConnectError." in capsys.readouterr().err


def test_a_base_that_the_hub_does_not_give_is_refused_by_one_request(hub, tmp_path, capsys):
    hub.status = 404
    flags = ["--output_dir", str(tmp_path / "out"), "--set", "base_model.name=no/model"]
    assert main(["train", "--debug", *flags]) == 2
    assert "base_model.name is no/model, which cannot be loaded" in capsys.readouterr().err
    assert not (tmp_path / "out").exists() and not hub.asked
