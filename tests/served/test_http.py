"""The client: what stays is said at once, what passes is tried again, nothing keeps it waiting or fills its memory."""

import gzip
import json
import time

import httpx
import pytest

from polysem.errors import ConfigError, FormatError
from polysem.http import Reply, RequestError, Retries, ask_json, retry_after, same_model, send
from polysem.keys import Key, origin
from support.raw import RawServer, answer

GOOD = answer({"model": "m", "choices": [1]})
QUOTA = answer(
    {
        "error": {
            "message": "You exceeded your current quota, please check your plan and billing details.",
            "code": "insufficient_quota",
        }
    },
    status="429 Too Many Requests",
)
PAGE = "<!DOCTYPE html><html><head><title>Sign in</title></head></html>"


def ask(server, *, naps=None, deadline=10.0, key=None, model="m", **more):
    slept = [] if naps is None else naps
    with httpx.Client(timeout=deadline) as client:
        return json.loads(
            ask_json(
                client, f"{server.url}/v1/completions", {"model": model}, key=key, deadline=deadline,
                retries=Retries(attempts=3, first=0.001, sleep=slept.append), **more,
            )
        )  # fmt: skip


@pytest.mark.parametrize(
    ("response", "says", "hint"),
    [
        (QUOTA, "quota", "the account has no credit"),
        (answer({"error": "Payment Required"}, status="402 Payment Required"), "402", "the account has no credit"),
        (answer(PAGE, kind="text/html"), "a web page titled 'Sign in'; expected JSON", "sign in"),
        (answer(PAGE, status="403 Forbidden", kind="text/html"), "HTTP 403.*a web page titled 'Sign in'", "POLYSEM_API_KEY"),
        (answer('data: {"choices": []}\n\n', kind="text/event-stream"), "stream of events", "streaming"),
        (answer({"error": {"message": "no such model m", "code": 404}}), "no such model m", "GET /v1/models"),
        (answer({"error": "something is off"}), "something is off", "check the"),
        (answer({"object": "error", "message": "bad request", "code": 400}), "bad request", "check the model"),
        (answer("", status="307 Temporary Redirect", headers=["location: https://other.example/v1"]), "HTTP 307", "redirects to https://other.example/v1"),
        (answer({"error": "who?"}, status="401 Unauthorized"), "HTTP 401 for model 'm'", "POLYSEM_API_BASE=http://127.0.0.1"),
        (answer("no route", status="404 Not Found", kind="text/plain"), "HTTP 404.*no route", "GET /v1/models"),
        (answer("", status="405 Method Not Allowed"), "HTTP 405", "check the address"),
        (answer("", status="413 Payload Too Large"), "HTTP 413", "send less"),
        (answer({"model": "other", "choices": [1]}), "was asked for the model 'm' and answers as 'other'", "set model to 'other'"),
        (answer(b"x", headers=["content-encoding: br"]), "in the encoding 'br'; expected gzip or none", "stands between"),
    ],
)  # fmt: skip
def test_what_stays_is_said_at_once(response, says, hint):
    with RawServer(response, GOOD) as server, pytest.raises(RequestError, match=says) as caught:
        ask(server)
    assert len(server.requests) == 1
    assert hint in caught.value.hint
    assert "network" not in caught.value.hint


@pytest.mark.parametrize(
    "response",
    [
        answer({"error": "slow down"}, status="429 Too Many Requests"),
        answer(
            {
                "error": {
                    "message": "You exceeded your current quota, please check your plan and billing details. Please retry in 3.2s."
                }
            },
            status="429 Too Many Requests",
        ),
        answer({"error": {"message": "Loading model", "code": 503}}),
        answer({"error": {"message": "Rate limit reached"}}),
        answer("<html>bad gateway</html>", status="502 Bad Gateway", kind="text/html"),
        answer("{}", status="529 Overloaded"),
        answer('{"model": "m", "choi'),
        answer(b'{"model": "m", "choices": ["\xff\xfe"]}'),
        answer(gzip.compress(b'{"choices": [1]}')[:-9], headers=["content-encoding: gzip"]),
        answer(b"not gzip at all", headers=["content-encoding: gzip"]),
        b"HTTP/1.1 200 OK\r\ncontent-length: many\r\n\r\n",
        b"nonsense\r\n\r\n",
        b"",
    ],
)
def test_what_passes_is_tried_again(response):
    with RawServer(response, response, GOOD) as server:
        assert ask(server) == {"model": "m", "choices": [1]}
    assert len(server.requests) == 3
    with (
        RawServer(response) as server,
        pytest.raises(RequestError, match=r"no answer from .* after 3 attempts; last: "),
    ):
        ask(server)
    assert len(server.requests) == 3


def test_bodies_are_read_as_they_are_written():
    for body in (b"\xef\xbb\xbf", b""):
        with RawServer(
            answer(body + b'{"choices": ["\xc3\xa9"]}', kind="application/json; charset=hex")
        ) as server:
            assert ask(server) == {"choices": ["é"]}
    with RawServer(
        answer('{"choices": ["é"]}'.encode("utf-16"), kind="application/json; charset=klingon")
    ) as server:
        assert ask(server) == {"choices": ["é"]}
    with RawServer(
        answer(gzip.compress(b'{"choices"') + gzip.compress(b": [1]}"), headers=["content-encoding: gzip"])
    ) as server:
        assert ask(server) == {"choices": [1]}
        assert b"accept-encoding: gzip\r\n" in server.requests[0].lower()


def test_an_answer_that_unpacks_without_end_or_nests_without_end_is_refused():
    bomb = gzip.compress(b"0" * 40_000_000)
    with (
        RawServer(answer(bomb, headers=["content-encoding: gzip"])) as server,
        httpx.Client() as client,
        pytest.raises(RequestError, match="longer than 1000000 bytes"),
    ):
        send(client, "GET", server.url, retries=Retries(attempts=3), ceiling=1_000_000)
    assert len(server.requests) == 1
    with RawServer(answer("[" * 200_000)) as server, pytest.raises(FormatError, match="nested too deeply"):
        ask(server)


@pytest.mark.parametrize("drip", [0.05, 30.0])
def test_an_attempt_ends_at_its_deadline_however_the_server_writes(drip):
    """A byte now and then, in the headers as in the body, keeps a timeout between bytes from ever coming."""
    with RawServer(GOOD, drip=drip) as server:
        begun = time.monotonic()
        with pytest.raises(
            RequestError, match=r"after 3 attempts; last: no whole answer within 0\.3 s"
        ) as caught:
            ask(server, deadline=0.3)
        assert time.monotonic() - begun < 20  # three attempts; a byte every 30 s would take longer than one
    assert "timeout" in caught.value.hint


def test_retry_after():
    def seconds(*pairs):
        return retry_after(Reply("u", 429, httpx.Headers(list(pairs)), b""))

    date, later = "Fri, 27 Nov 2026 10:00:00 GMT", "Fri, 27 Nov 2026 10:00:07 GMT"
    assert seconds(("retry-after", "7")) == 7
    assert seconds(("retry-after", "-7")) == 0
    assert seconds(("retry-after", "nan")) is None
    assert seconds(("retry-after", "soon")) is None
    assert seconds(("retry-after", later), ("date", date)) == 7
    assert seconds(("retry-after", later), ("date", date), ("date", "Thu, 01 Jan 1970 00:00:00 GMT")) == 7
    assert seconds(("retry-after", "5"), ("retry-after", "9")) == 5
    assert seconds(("retry-after", later.replace("GMT", "-0000")), ("date", date)) == 7
    assert seconds(("retry-after", "Fri, 27 Nov 2026 11:00:07 +0100"), ("date", date)) == 7
    for odd in ("+9999", "+99999999999999", "XYZ"):
        assert seconds(("retry-after", later.replace("GMT", odd)), ("date", date)) in (7, None)
    assert seconds(("retry-after", later)) is None


def test_a_server_that_doubles_its_dates_is_waited_for():
    busy = answer("{}", status="429 Busy", headers=[
        "retry-after: Fri, 27 Nov 2026 10:00:07 -0000", "date: Fri, 27 Nov 2026 10:00:00 GMT", "date: Fri, 27 Nov 2026 10:00:00 GMT",
    ])  # fmt: skip
    naps = []
    with RawServer(busy, GOOD) as server:
        ask(server, naps=naps)
    assert naps == [7.0]


@pytest.mark.parametrize(
    ("said", "asked", "same"),
    [
        ("m", "m", True),
        ("gpt-4o-mini-2024-07-18", "gpt-4o-mini", True),
        ("text-embedding-ada-002-v2", "text-embedding-ada-002", True),
        ("llama3:latest", "llama3", True),
        ("/models/SmolLM2-135M.gguf", "SmolLM2-135M", True),
        ("C:\\models\\a.gguf", "a.gguf", True),
        ("openai/gpt-4o", "gpt-4o", True),
        ("gpt-4o-mini", "gpt-4o", False),
        ("llama-8b", "llama-70b", False),
        ("gpt-3.5-turbo", "SmolLM2", False),
        ("m", "mm", False),
    ],
)
def test_names_of_models(said, asked, same):
    assert same_model(said, asked) == same


def test_another_name_of_the_model_can_be_declared():
    with RawServer(answer({"model": "gateway-7", "choices": [1]})) as server:
        assert ask(server, known_as="gateway-7")["choices"] == [1]


def test_a_library_error_about_the_address_is_an_error_of_ours():
    with httpx.Client() as client:
        for url in (
            "http://[::1",
            "http://a..b/v1",
            "http://ho st/v1",
            "ftp://host/v1",
            "http://host:99999/v1",
        ):
            with pytest.raises((RequestError, ConfigError)):
                send(client, "POST", url, retries=Retries(attempts=3, first=0.001))


def test_https_to_a_server_without_is_said_at_once():
    with (
        RawServer(GOOD) as server,
        httpx.Client() as client,
        pytest.raises(RequestError, match=r"after 1 attempt; last: .*SSL") as caught,
    ):
        send(client, "GET", server.url.replace("http:", "https:"), retries=Retries(attempts=3, first=0.001))
    assert "https://" in caught.value.hint


def test_the_key_follows_no_redirect_and_goes_to_no_other_port():
    with RawServer(answer({"choices": [1]})) as other:
        away = answer("", status="307 Temporary Redirect", headers=[f"location: {other.url}/v1/completions"])
        with RawServer(away) as server:
            key = Key("sk-very-secret", origin(server.url), "test")
            with pytest.raises(RequestError, match="HTTP 307"):
                ask(server, key=key)
            assert not other.requests
            ask(other, key=key)
        assert b"sk-very-secret" in server.requests[0]
        assert b"sk-very-secret" not in other.requests[0]
