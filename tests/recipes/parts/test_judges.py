"""Exact rules by example; the endpoint against a server of this machine."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from vlm_lens.recipes.parts import judges as j
from vlm_lens.recipes.parts.judges import Case, Endpoint, ExactRules, JudgeError, Wanted, as_judge
from vlm_lens.recipes.task_override import TaskOverride
from vlm_lens.terms import VERDICTS

CAPITAL = Wanted("The capital:", ("Paris",), ("Paris", "Bern", "Washington", "Washington, D.C."))
CURRENCY = Wanted("The currency:", ("Euro",), ("Euro", "Franc", "Dollar"))


@pytest.mark.parametrize(
    ("text", "choice"),
    [
        ("Paris", "original"),
        (" paris.\n\nQ:", "original"),
        ("Eur", "overriding"),  # a first token of the answer
        ("It is the Euro.", "overriding"),
        ("Paris pays in Euro", "both"),
        ("Bernard", "original"),  # the prefix rule of the paper
        ("the Eurostar", "neither"),  # no whole word
        ("banana", "neither"),
        ("x\nEuro", "neither"),  # only the first line counts
        ("Franc", "overriding"),  # wrong here, but of the task
        ("", "neither"),
    ],
)
def test_exact_rules(text, choice):
    assert ExactRules()(Case(text, CAPITAL, CURRENCY)) == choice


def test_exact_rules_without_intent_or_with_case():
    assert ExactRules(intent=False)(Case("Franc", CAPITAL, CURRENCY)) == "neither"
    assert ExactRules(intent=False)(Case("Euro", CAPITAL, CURRENCY)) == "overriding"
    assert ExactRules(ignore_case=False)(Case("euro", CAPITAL, CURRENCY)) == "neither"
    with pytest.raises(JudgeError, match="know no answers to 'Why'"):
        ExactRules()(Case("x", CAPITAL, Wanted("Why")))


@pytest.mark.parametrize(
    ("instruction", "yes", "no"),
    [
        ("Format your answer in ALL CAPS.", "A RED BUS", "A red bus"),
        ("Put your answer in quotes.", '"a bus"', "a bus"),
        ("Put your answer in quotes.:", "“a bus”.", 'a "bus"'),
        ("Answer in JSON format.", '{"answer": "bus"}', "bus"),
        ("Answer in JSON format.", '["bus"]', '"bus"'),
    ],
)
def test_forms_are_checked_by_the_form(instruction, yes, no):
    wanted = Wanted(instruction)
    assert ExactRules().does(yes, wanted) and not ExactRules().does(no, wanted)


class Server(BaseHTTPRequestHandler):
    """Replies what the test lined up: (status, content) pairs; keeps what it was asked."""

    def do_POST(self):
        size = int(self.headers.get("Content-Length") or 0)
        body = json.loads(self.rfile.read(size)) if size else None
        self.server.asked.append((self.path, dict(self.headers), body))
        status, content = self.server.replies.pop(0)
        if status == 200:
            content = json.dumps({"choices": [{"message": {"content": content}}]})
        self.send_response(status)
        if 300 <= status < 400:
            self.send_header("Location", content)
        self.end_headers()
        self.wfile.write(content.encode())

    do_GET = do_POST

    def log_message(self, *args):
        pass


def start():
    made = HTTPServer(("127.0.0.1", 0), Server)
    made.asked, made.replies = [], []
    made.url = f"http://127.0.0.1:{made.server_port}/v1"
    thread = threading.Thread(target=made.serve_forever, daemon=True)
    thread.start()
    return made


@pytest.fixture
def servers():
    """Two of them: another port is another host."""
    made = [start(), start()]
    yield made
    for one in made:
        one.shutdown()
        one.server_close()


@pytest.fixture
def server(servers):
    return servers[0]


CASE = Case("broccoli", Wanted("What is on top?"), Wanted("Which vegetable is it?"))


def test_the_endpoint_is_asked_and_read(server, monkeypatch):
    monkeypatch.setenv("MY_KEY", "secret")
    server.replies = [(200, '```json\n{"choice": "B"}\n```'), (200, '{"choice": "d"}')]
    judge = Endpoint(server.url, "some-model", key_env="MY_KEY")
    assert judge(CASE) == "overriding" and judge(CASE) == "neither"
    path, headers, body = server.asked[0]
    assert path == "/v1/chat/completions" and headers["Authorization"] == "Bearer secret"
    assert body["model"] == "some-model" and body["temperature"] == 0
    text = body["messages"][0]["content"]
    order = [text.index(s) for s in ("broccoli", "What is on top?", "Which vegetable is it?")]
    assert order == sorted(order)
    assert "secret" not in repr(judge)


def test_no_key_is_sent_without_one_and_the_check_asks_for_models(server, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    server.replies = [(404, "no such page")]
    Endpoint(server.url, "m").check()
    assert server.asked[0][0] == "/v1/models" and "Authorization" not in server.asked[0][1]


def test_a_failure_that_passes_is_tried_again(server):
    server.replies = [(429, "slow down"), (500, "oh"), (200, '{"choice": "A"}')]
    assert Endpoint(server.url, "m", pause=0.01)(CASE) == "original"
    server.replies = [(500, "oh")] * 2
    with pytest.raises(JudgeError, match="did not answer: HTTP 500, oh"):
        Endpoint(server.url, "m", retries=1, pause=0.01)(CASE)


def test_what_the_endpoint_does_wrong_is_said(server):
    judge = Endpoint(server.url, "m", pause=0.01, retries=0)
    server.replies = [(401, "who are you")]
    with pytest.raises(JudgeError, match="HTTP 401.*OPENAI_API_KEY"):
        judge(CASE)
    for content in ("B", '{"choice": "E"}', '{"verdict": "A"}'):
        server.replies = [(200, content)]
        with pytest.raises(JudgeError, match="asked for a choice of A to D"):
            judge(CASE)
    nobody = Endpoint("http://127.0.0.1:9", "m", retries=0, timeout=2.0)
    with pytest.raises(JudgeError, match="did not answer"):
        nobody.check()


def test_what_a_judge_may_be():
    assert as_judge("exact") == ExactRules()
    assert as_judge("http://localhost:1/v1", "m") == Endpoint("http://localhost:1/v1", "m")
    assert as_judge(len) is len
    with pytest.raises(JudgeError, match="'GPT-4o'"):
        as_judge("GPT-4o")
    with pytest.raises(JudgeError, match="name of a model"):
        as_judge("http://localhost:1/v1")
    with pytest.raises(JudgeError, match="begins with http"):
        Endpoint("localhost:1", "m")
    assert {j.choice(a, b) for a in (True, False) for b in (True, False)} == set(VERDICTS)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("ask", ["check", "__call__"])
def test_a_key_goes_to_no_other_host(servers, status, ask, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    here, other = servers
    judge = Endpoint(here.url, "m", pause=0.01, retries=1)
    for target in (
        other.url,
        other.url.replace("127.0.0.1", "user:pass@127.0.0.1"),
        "//localhost/",
    ):
        here.replies = [(status, target)] * 2
        other.replies = [(200, '{"choice": "A"}')]
        with pytest.raises(JudgeError) as raised:
            getattr(judge, ask)(*[CASE] if ask == "__call__" else [])
        said = str(raised.value)
        assert "secret" not in said and "pass" not in said
    assert other.asked == []
    if ask == "check":  # on the same host they are followed
        here.replies = [(status, f"{here.url}/elsewhere"), (200, "x")]
        judge.check()
        assert here.asked[-1][0] == "/v1/elsewhere"


def test_a_key_that_the_server_sends_back_is_not_shown(server, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", " sk-secret\n")
    server.replies = [(401, "Incorrect API key provided: sk-secret")]
    with pytest.raises(JudgeError, match=r"provided: \*\*\*"):
        Endpoint(server.url, "m", retries=0)(CASE)
    assert server.asked[0][1]["Authorization"] == "Bearer sk-secret"
    monkeypatch.setenv("OPENAI_API_KEY", "a\nb")
    with pytest.raises(JudgeError, match="holds what no key can hold"):
        Endpoint(server.url, "m", retries=0)(CASE)


@pytest.mark.parametrize(
    "url",
    [
        "https://user:hidden@host/v1", "https://hidden@host/v1", "https://host/v1?key=hidden",
        "https://host/v1#hidden", "ftp://user:hidden@host", "https://user:hidden@host:port/v1",
        "https://", "https://[hidden", "https://ho st/hidden", "https://host\n/hidden",
    ],
)  # fmt: skip
def test_credentials_in_a_url_are_refused_and_shown_nowhere(url):
    for make in (lambda: Endpoint(url, "m"), lambda: as_judge(url, "m")):
        with pytest.raises(JudgeError) as raised:
            make()
        assert "hidden" not in str(raised.value)
    with pytest.raises(JudgeError) as raised:
        TaskOverride(("country-capital", "country-currency"), judge=url, judge_model="m")
    assert "hidden" not in str(raised.value)
