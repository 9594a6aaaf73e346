"""The served explorer: its own page only, one run at a time, errors in words, and the page."""

from __future__ import annotations

import base64
import http.client
import io
import json
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import uvicorn
from PIL import Image

from explorer import decoded
from vlm_lens import ActivationPatch, HookedVLM, Last
from vlm_lens.explorer.serve import ServeError, application, listen
from vlm_lens.explorer.service import Service
from vlm_lens.recipes.parts.vector_sources import TaskVectors
from vlm_lens.tasks import Task

TASK = Task.load("country-capital")
JSON = {"Content-Type": "application/json"}


@pytest.fixture(scope="module")
def llava():
    return HookedVLM.from_pretrained("toy-llava")


@pytest.fixture(scope="module")
def port(llava):
    prompts = {name: TASK.query(name, "image") for name in ("Algeria", "Austria")}
    listening = listen(0)
    port = listening.getsockname()[1]
    app = application(Service(llava, prompts, [TASK], "Q:<image>\nA:"), port)
    server = uvicorn.Server(uvicorn.Config(app, log_level="critical"))
    running = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    running.start()
    yield port
    server.should_exit = True
    running.join(20)
    listening.close()


def ask(port, path, body=None, headers=None):
    asking = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    held = body if isinstance(body, bytes | None) else json.dumps(body).encode()
    asking.request("GET" if body is None else "POST", path, held,
                   {**(JSON if body is not None else {}), **(headers or {})})  # fmt: skip
    answer = asking.getresponse()
    text = answer.read().decode()
    asking.close()
    return answer.status, json.loads(text) if answer.headers["Content-Type"] == (
        "application/json"
    ) else text  # fmt: skip


def test_it_listens_on_the_loopback_address_only(port):
    with listen(0) as one, pytest.raises(ServeError, match="choose another"):
        listen(one.getsockname()[1])
    with listen(0) as one:
        assert one.getsockname()[0] == "127.0.0.1"
    for family, kind, _, _, address in socket.getaddrinfo(socket.gethostname(), port):
        if kind == socket.SOCK_STREAM and not address[0].startswith("127."):
            with socket.socket(family, kind) as outside:
                assert outside.connect_ex(address) != 0


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "evil.example"},
        {"Host": "127.0.0.1"},
        {"Host": "evil.example:{port}"},
        {"Host": "127.0.0.1:{port}.evil.example"},
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "https://127.0.0.1:{port}"},
        {"Origin": "http://127.0.0.1:1"},
    ],
    ids=str,
)
@pytest.mark.parametrize("path", ["/", "/scene"])
def test_other_hosts_and_origins_are_refused(port, headers, path):
    headers = {k: v.format(port=port) for k, v in headers.items()}
    body = {"scene": "Algeria"} if path == "/scene" else None
    status, told = ask(port, path, body, headers)
    assert status == 403 and "only" in told["error"]


def test_its_own_are_answered(port):
    own = {"Host": f"localhost:{port}", "Origin": f"http://localhost:{port}"}
    assert ask(port, "/", None, own)[0] == ask(port, "/")[0] == 200
    assert ask(port, "/scene", {"scene": "Algeria"}, own)[0] == 200


@pytest.mark.parametrize(
    ("path", "body", "headers", "status", "told"),
    [
        ("/scene", b"{", {}, 400, "not JSON"),
        ("/scene", b"[" * 100_000, {}, 400, "not JSON"),
        ("/scene", [1], {}, 400, "JSON object"),
        ("/scene", {}, {}, 400, "'scene' is missing"),
        ("/scene", {"scene": "Algera"}, {}, 400, "Did you mean 'Algeria'"),
        ("/scene", {"scene": "Algeria"}, {"Content-Type": "text/plain"}, 415, "application/json"),
        ("/written", {"scene": "Algeria", "vector": "x", "block": 0}, {}, 400, "no vector 'x'"),
        ("/written", {"scene": "Algeria", "vector": TASK.name, "block": 8}, {}, 400, "0 to 7"),
        ("/written", {"scene": "Algeria", "vector": TASK.name, "block": True}, {}, 400, "0 to 7"),
        ("/position", {"scene": "Algeria", "at": -1}, {}, 400, "0 to 21"),
        ("/prompt", {"text": "<image>", "name": "a", "picture": "!"}, {}, 400, "picture"),
        ("/prompt", {"text": "<image>", "name": "a", "picture": "AAAA"}, {}, 400, "picture"),
        ("/prompt", {"text": "<image>", "name": "a", "picture": None}, {}, 400, "<image>"),
        ("/nothing", {}, {}, 404, "not served"),
        ("/scene", None, {}, 405, "not served"),
    ],
)
def test_what_is_wrong_is_said_as_json(port, path, body, headers, status, told):
    found, answer = ask(port, path, body, headers)
    assert found == status and told in answer["error"]


def test_too_much_is_refused(port, monkeypatch):
    monkeypatch.setattr("vlm_lens.explorer.serve._MOST_BYTES", 1000)
    status, told = ask(port, "/scene", b" " * 1001)
    assert status == 413 and "at most" in told["error"]


def test_numbers_are_those_of_the_model(port, llava):
    _, runs = ask(port, "/written", {"scene": "Algeria", "vector": TASK.name, "block": 4})
    assert list(runs) == [str(b) for b in range(8)]
    prompt = llava.prompt(TASK.query("Algeria", "image"))
    vector = TaskVectors(llava, "text")(TASK, 1)
    for block in (0, 4):
        edit = ActivationPatch(f"blocks.{block}.hook_resid_post", at=Last(), value=vector)
        top = llava.run(prompt, interventions=edit)[0, -1].softmax(-1).topk(5)
        found = decoded.answers(runs[str(block)])
        np.testing.assert_allclose(list(found.values()), top.values, atol=2e-5)
        assert list(found)[0] == llava.tokenizer.decode(top.indices[0]).strip()
    _, one = ask(port, "/position", {"scene": "Algeria", "at": 5})
    theirs = llava.attention(prompt, at=5).values.to_numpy()
    np.testing.assert_allclose(decoded.attention(one, 22)[:, :, 0], theirs, atol=2e-5)


def test_one_run_at_a_time(port, llava):
    inside, most = [0], [0]

    def enter(*args, **kwargs):
        inside[0] += 1
        most[0] = max(most[0], inside[0])
        time.sleep(0.02)

    def leave(*args, **kwargs):
        inside[0] -= 1

    hooks = [llava.hf_model.register_forward_pre_hook(enter),
             llava.hf_model.register_forward_hook(leave)]  # fmt: skip
    try:
        with ThreadPoolExecutor(6) as pool:
            asked = [
                pool.submit(ask, port, "/position", {"scene": "Austria", "at": i}) for i in range(6)
            ]
            assert all(one.result()[0] == 200 for one in asked)
    finally:
        for hook in hooks:
            hook.remove()
    assert most == [1] and inside == [0]


def test_a_prompt_that_is_too_large_for_one_answer_comes_in_parts(port, llava, monkeypatch):
    monkeypatch.setattr("vlm_lens.explorer.read.MOST", 8 * 4 * 22 * 3)  # three positions
    picture = io.BytesIO()
    Image.new("RGB", (32, 32), "navy").save(picture, "PNG")
    body = {"text": "Q:<image>\nA:", "name": "navy",
            "picture": base64.b64encode(picture.getvalue()).decode()}  # fmt: skip
    _, scene = ask(port, "/prompt", body)
    assert scene["plain"]["positions"] == [19, 20, 21]
    _, runs = ask(port, "/written", {"scene": "navy", "vector": TASK.name, "block": 3})
    assert [b for b, run in runs.items() if not run["short"]] == ["3"]
    assert all(len(run["answers"]) == 5 for run in runs.values())
    _, again = ask(port, "/prompt", body)
    assert again["name"] == "navy (2)"


def test_the_page_computes_on_demand(browser, port, tmp_path):
    Image.new("RGB", (60, 40), "firebrick").save(tmp_path / "mine.png")
    story = "document.getElementById('story').innerText"
    with browser.open(f"http://127.0.0.1:{port}/") as page:
        page.wait(f"{story}.includes('With the vector of country-capital')")
        assert "goes on with Algeria" in page.js(story)
        page.js("document.querySelector('[data-key=strip4]').click()")
        page.wait(f"{story}.includes('Algiers')")
        page.js("document.querySelectorAll('#scenes input')[1].click()")
        page.wait(f"{story}.includes('Austria') && {story}.includes('With the vector')")
        address, pictures = page.js(
            "[location.hash, document.querySelectorAll('#scenes img').length]"
        )
        page.js("document.getElementById('text').value = 'no place'")
        node = page.ask("DOM.getDocument")["root"]["nodeId"]
        chosen = page.ask("DOM.querySelector", nodeId=node, selector="#file")["nodeId"]
        page.ask("DOM.setFileInputFiles", nodeId=chosen, files=[str(tmp_path / "mine.png")])
        page.js("document.querySelector('#ask button').click()")
        page.wait("document.querySelector('#busy.error')")
        assert "<image>" in page.js("document.getElementById('busy').innerText")
        page.js("document.getElementById('text').value = 'Q:<image>\\\\nA:'")
        page.js("document.querySelector('#ask button').click()")
        page.wait(f"{story}.includes('mine.png')")
        assert page.js("document.querySelectorAll('#scenes img').length") == pictures + 1
        assert page.fetched and all(u.startswith(page.url) for u in page.fetched)
        page.resize(390, 800)
        assert page.wider_than_screen <= 0
    with browser.open(f"http://127.0.0.1:{port}/", fragment=address) as page:
        page.wait(f"{story}.includes('Austria') && {story}.includes('after block 4')")
        assert page.errors == []
