"""Judges: which of two tasks did an answer try to do?

Luo et al. 2025 (arXiv 2410.22330), section 5 and Figure 9, ask GPT-4o. Here a judge is any function
of a `Case`; shipped are exact rules, for tasks whose answers are known, and an OpenAI-compatible
endpoint, for free text. Only the endpoint needs a network.
"""

from __future__ import annotations

import json
import os
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from http.client import HTTPException
from typing import Any
from urllib.parse import urlsplit

from vlm_lens.keywords import Answering
from vlm_lens.recipes.parts.scoring import prefix_match
from vlm_lens.recipes.result import RecipeError
from vlm_lens.terms import BOTH, NEITHER, ORIGINAL, OVERRIDING, VERDICTS

__all__ = ["Case", "Endpoint", "ExactRules", "Judge", "JudgeError", "Wanted", "as_judge"]


class JudgeError(RecipeError):
    """A judge that cannot be asked, or whose verdict cannot be read."""


@dataclass(frozen=True)
class Wanted(Answering):
    """What one task asks of one input, as far as it is known.

    Attributes:
        question: The task in words.
        answers: What is right to say: the label and its aliases.
        labels: Everything that is said in this task, for whatever input.
    """

    question: str
    answers: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()


@dataclass(frozen=True)
class Case(Answering):
    """What is judged.

    Attributes:
        text: What the model said.
        original: The task of the prompt.
        overriding: The task that should take its place.
    """

    text: str
    original: Wanted
    overriding: Wanted


Judge = Callable[[Case], str]


@dataclass(frozen=True)
class ExactRules(Answering):
    """Judges by what is known to be said in a task.

    An answer does a task if its first line begins with a known answer, or a known answer begins
    with it (the paper's prefix rule), or holds one as whole words. A few instructions about form
    are checked by the form (the paper's Syntax set: capitals, quotes, JSON).

    Attributes:
        intent: Whether any answer of the task counts, also one for another input: as in the paper,
            the question is what was tried, not whether it is right.
        ignore_case: Whether upper and lower case are the same.
    """

    intent: bool = True
    ignore_case: bool = True

    def __call__(self, case: Case) -> str:
        """One of `VERDICTS`.

        Raises:
            JudgeError: Nothing is known of one of the tasks.
        """
        return choice(self.does(case.text, case.original), self.does(case.text, case.overriding))

    def does(self, text: str, wanted: Wanted) -> bool:
        """Whether a text does a task.

        Raises:
            JudgeError: Nothing is known of the task.
        """
        rule = FORMS.get(wanted.question.strip().removesuffix(":"))
        if rule is not None:
            return rule(text.strip())
        known = (wanted.labels if self.intent else ()) or wanted.answers
        if not known:
            raise JudgeError(
                f"Exact rules know no answers to {wanted.question!r}: give answers, or another "
                "judge (a function of a Case, or an Endpoint)."
            )
        line = text.strip().split("\n")[0]
        if prefix_match(line, known, ignore_case=self.ignore_case):
            return True
        flags = re.IGNORECASE if self.ignore_case else 0
        return any(re.search(rf"(?<!\w){re.escape(k)}(?!\w)", line, flags) for k in known)


def choice(original: bool, overriding: bool) -> str:
    """The choice that two verdicts make."""
    return {(1, 1): BOTH, (1, 0): ORIGINAL, (0, 1): OVERRIDING}.get((original, overriding), NEITHER)


def _is_json(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict | list)
    except ValueError:
        return False


FORMS: dict[str, Callable[[str], bool]] = {
    "Format your answer in ALL CAPS.": str.isupper,
    "Put your answer in quotes.": lambda text: bool(re.match(r"""(["'“‘]).+["'”’]\.?$""", text)),
    "Answer in JSON format.": _is_json,
}

_ASKED = """A model was given two questions and wrote one answer. Say which question the answer \
tries to answer. Judge what was intended: an answer may be wrong, ungrammatical or cut off.

Answer: {text}
Question 1: {original}
Question 2: {overriding}

A: question 1
B: question 2
C: both
D: neither

Reply with JSON of one key, {{"choice": "A"}}, "B", "C" or "D"."""
_LETTERS = dict(zip("ABCD", VERDICTS, strict=True))


@dataclass(frozen=True)
class Endpoint(Answering):
    """Asks a language model behind an OpenAI-compatible endpoint (`POST {url}/chat/completions`).

    The model sees the answer and the two questions, not the picture. The API key is read from the
    environment and kept nowhere.

    Attributes:
        url: The endpoint, for example `"http://localhost:8000/v1"`.
        model: The model's name there.
        key_env: The environment variable that holds the key; not set, no key is sent.
        timeout: Seconds to wait for a reply.
        retries: How often a request that failed for the moment (no connection, 429, 5xx) is made
            again.
        pause: Seconds before the first of these; doubled each time.
    """

    url: str
    model: str
    key_env: str = "OPENAI_API_KEY"
    timeout: float = 60.0
    retries: int = 3
    pause: float = 1.0

    def __post_init__(self) -> None:
        check_endpoint(self.url)
        if not self.model:
            raise JudgeError("A judge behind an endpoint needs the name of a model.")

    def __call__(self, case: Case) -> str:
        """One of `VERDICTS`.

        Raises:
            JudgeError: No reply, or one that holds no choice.
        """
        questions = {"original": case.original.question, "overriding": case.overriding.question}
        asked = _ASKED.format(text=case.text.strip(), **questions)
        body = {"model": self.model, "temperature": 0,
                "messages": [{"role": "user", "content": asked}]}  # fmt: skip
        reply = self._ask("/chat/completions", body)
        try:
            content = reply["choices"][0]["message"]["content"]
            found = json.loads(re.search(r"\{.*\}", content, re.DOTALL).group())
            return _LETTERS[str(found["choice"]).strip().upper()]
        except (AttributeError, KeyError, IndexError, TypeError, ValueError):
            shown = json.dumps(reply)[:300]
            raise JudgeError(
                f"{self.model} at {self.url} was asked for a choice of A to D and replied {shown}"
            ) from None

    def check(self) -> None:
        """Asks for the list of models, to know whether anybody answers.

        Raises:
            JudgeError: Nobody does, or the key is refused.
        """
        self._ask("/models", must_exist=False)

    def _ask(self, path: str, body: Any = None, *, must_exist: bool = True) -> Any:
        headers = {"Content-Type": "application/json"}
        key = os.environ.get(self.key_env, "").strip()
        if key and not (key.isascii() and key.isprintable()):
            raise JudgeError(f"The key in the variable {self.key_env} holds what no key can hold.")
        if key:
            headers["Authorization"] = f"Bearer {key}"
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url.rstrip("/") + path, data, headers)
        for attempt in range(self.retries + 1):
            try:
                with _OPENER.open(request, timeout=self.timeout) as reply:
                    return json.loads(reply.read())
            except urllib.error.HTTPError as error:
                if error.code == 404 and not must_exist:  # some servers have no list of models
                    return None
                reason = f"HTTP {error.code}, {error.read()[:200].decode(errors='replace')}"
                if error.code in (401, 403):
                    reason += f" (the key is read from the variable {self.key_env})"
                passing = error.code == 429 or error.code >= 500
            except (OSError, HTTPException) as error:  # no connection, or none in time
                reason, passing = str(error), True
            except ValueError:
                reason, passing = "the reply is no JSON", False
            if not passing or attempt == self.retries:
                break
            time.sleep(self.pause * 2**attempt)
        if key:  # some servers send it back
            reason = reason.replace(key, "***")
        raise JudgeError(f"The judge at {self.url} did not answer: {reason}")


def check_endpoint(url: str) -> None:
    """Refuses what is no endpoint, without showing what it holds.

    Raises:
        JudgeError: No http or https, no host, or credentials or a query inside it.
    """
    try:
        parts = urlsplit(url)
        known = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is no number, brackets that do not close
        known = False
    if not known or not url.isprintable() or " " in url:
        raise JudgeError("A judge's url begins with http:// or https:// and a host.")
    if parts.username is not None or parts.password is not None or parts.query or parts.fragment:
        raise JudgeError(
            f"A judge's url is kept in results and shown in messages, so it holds no user, no "
            f"password and no query: put the key into an environment variable (key_env=...), and "
            f"give {parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}."
        )


class _NoOtherHost(urllib.request.HTTPRedirectHandler):
    """Follows no redirect to another scheme, host or port: the key was given for this one."""

    def redirect_request(
        self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> Any:
        """The request to make instead, if it is to the same host.

        Raises:
            JudgeError: It is to another.
        """
        old, new = (
            urlsplit(u)._replace(path="", query="", fragment="") for u in (req.full_url, newurl)
        )
        if old != new:
            raise JudgeError(
                f"The judge at {old.geturl()} sends requests on to another host, {new.scheme}://"
                f"{new.netloc.rpartition('@')[2]}, and keys are sent to no other than they were "
                "given for: if it is meant, give that url."
            )
        return super().redirect_request(req, fp, code, msg, headers, newurl)


_OPENER = urllib.request.build_opener(_NoOtherHost)


def as_judge(judge: Any, model: str | None = None) -> Judge:
    """`"exact"`, the URL of an endpoint, or any function of a `Case`.

    Args:
        judge: What was given.
        model: The model at the endpoint.

    Raises:
        JudgeError: None of these.
    """
    if judge == "exact":
        return ExactRules()
    if isinstance(judge, str) and "://" in judge:
        return Endpoint(judge, model or "")
    if callable(judge):
        return judge
    raise JudgeError(
        f"A judge is 'exact', the URL of an OpenAI-compatible endpoint, or a function of a Case; "
        f"not {judge!r}."
    )
