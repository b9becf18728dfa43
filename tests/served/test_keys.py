"""Keys: bound to servers that the user named, in no message, in no file; also where a study, a server or a library is hostile."""

import base64
import gzip
import json
import logging
import os
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pytest
from typer.testing import CliRunner

from polysem.cli.app import app
from polysem.config import parse_study
from polysem.errors import ConfigError, FormatError, PolysemError
from polysem.glosses.embed import embed_texts
from polysem.http import RequestError, Retries
from polysem.keys import Key, Keyring, checked_address, endpoint, hidden, origin
from polysem.store import io
from polysem.targets import Budget, ResponseCache, ServedTarget, Serving, TargetPrompt
from polysem.transfer.config import parse_transfer
from support.raw import RawServer, answer
from support.synthetic import SyntheticStudy, synthetic_run

SECRET = "sk-proj-Very/Secret+Key=7731"
FORMS = (
    SECRET,
    quote(SECRET, safe=""),
    base64.b64encode(SECRET.encode()).decode(),
    SECRET.replace("/", "\\/"),
)
ONCE = Retries(attempts=2, first=0.001)


def on_disk(folder: Path) -> bytes:
    """Every byte below a folder, unpacked."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return b"\n".join(gzip.decompress(p.read_bytes()) if p.suffix == ".gz" else p.read_bytes() for p in files)


def no_key_in(*places: str | bytes) -> None:
    for place in places:
        text = place.decode(errors="replace") if isinstance(place, bytes) else place
        for form in (*FORMS, SECRET[8:]):
            assert form not in text


@pytest.fixture
def mine(monkeypatch):
    """A user with a key for a server of their own."""
    with RawServer(answer({"choices": []})) as server:
        monkeypatch.setenv("POLYSEM_API_KEY", SECRET)
        monkeypatch.setenv("POLYSEM_API_BASE", f"{server.url}/v1")
        yield server


def repeats_what_it_was_sent(status: str = "200 OK"):
    """A server that writes all headers into its answer, in every way that it can think of."""

    def response(request: bytes) -> bytes:
        head = request.decode(errors="replace").partition("\r\n\r\n")[0]
        escaped = "".join(f"\\u{ord(c):04x}" for c in head)
        said = json.dumps([head, quote(head, safe=""), base64.b64encode(head.encode()).decode()])
        text = f'{{"choices": [{{"message": {{"content": "{escaped}"}}}}], "error": {said}}}'
        return answer(text, status=status, headers=[f"x-seen: {quote(head)}"])

    return response


def target_of(url: str, folder: Path, **more) -> ServedTarget:
    serving = Serving(url=url, model="m", api="chat")
    return ServedTarget(serving, cache=ResponseCache(folder), budget=Budget(), retries=ONCE, **more)


# a stranger's files


PANEL = """
[[judges]]
name = "helper"
url = "{url}/v1"
model = "m"
max_requests = 500
[pairs]
n = 2
n_choices = 0
min_interference = 0.3
max_similarity = 0.25
"""


@pytest.mark.parametrize("status", ["200 OK", "401 Unauthorized"])
def test_a_strangers_panel_gets_no_key_and_the_user_a_question(status, mine, tmp_path):
    run = synthetic_run(
        tmp_path / "run",
        SyntheticStudy(saes=("blocks.2.hook_resid_post",), n_features=120),
        stages=("features", "pairs"),
    )
    vectors = {"blocks.2.hook_resid_post": np.eye(120, dtype=np.float32)}
    io.write_arrays(run / "features" / "embeddings.safetensors", vectors)
    with RawServer(repeats_what_it_was_sent(status)) as hostile:
        (tmp_path / "judges.toml").write_text(PANEL.format(url=hostile.url), encoding="utf-8")
        ended = CliRunner().invoke(app, ["judge", str(run), str(tmp_path / "judges.toml")])
        assert hostile.requests, ended.output
        assert not mine.requests
        here = origin(hostile.url)
    no_key_in(*hostile.requests, ended.output, on_disk(tmp_path))
    assert not any(b"authorization" in request.lower() for request in hostile.requests)
    assert f"{here} is sent no key: POLYSEM_API_KEY is for {origin(mine.url)}" in ended.output
    assert f"Is {here} a server that you trust with a key of yours?" in ended.output
    assert "Traceback" not in ended.output


def test_a_strangers_embedder_gets_no_key_and_the_user_a_question(mine, tmp_path, caplog):
    with RawServer(repeats_what_it_was_sent()) as hostile, pytest.raises(PolysemError) as caught:
        embed_texts(["a gloss"], f"openai:m@{hostile.url}", cache=tmp_path, retries=ONCE)
    no_key_in(*hostile.requests, str(caught.value), caplog.text, on_disk(tmp_path))
    assert "a server that you trust with a key of yours?" in caplog.text


@pytest.mark.parametrize(
    "near",
    [
        "http://127.0.0.2:{port}",
        "https://127.0.0.1:{port}",
        "http://127.0.0.1.evil.example:{port}",
        "http://localhost:{port}",
        "http://127.0.0.1",
    ],
)
def test_a_key_is_bound_to_scheme_host_and_port(near, mine):
    port = mine.url.rpartition(":")[2]
    ring = Keyring.of(os.environ)
    assert ring.key(f"{mine.url}/v1/chat/completions").value == SECRET
    assert ring.key(near.format(port=port)) is None
    assert ring.question(near.format(port=port))
    assert not ring.question(mine.url)


def test_openais_key_goes_to_openai_or_where_the_environment_says():
    ring = Keyring.of({"OPENAI_API_KEY": "k"})
    assert ring.key("https://API.openai.com:443/v1/completions").value == "k"
    assert ring.key("http://api.openai.com/v1") is None
    assert ring.key("https://api.openai.com.evil.test/v1") is None
    moved = Keyring.of({"OPENAI_API_KEY": "k", "OPENAI_BASE_URL": "http://mine:8000/v1"})
    assert moved.key("http://mine:8000/v1/completions").value == "k"
    assert moved.key("https://api.openai.com/v1") is None
    assert Keyring.of({}).question("http://any") == ""


def test_a_key_without_an_address_goes_nowhere():
    ring = Keyring.of({"POLYSEM_API_KEY": SECRET})
    assert ring.key("http://any:8000") is None
    assert "POLYSEM_API_BASE is not set" in ring.question("http://any:8000")
    no_key_in(ring.question("http://any:8000"))


def test_a_keys_file_serves_several_servers(tmp_path, monkeypatch):
    path = tmp_path / "keys.toml"
    path.write_text(f'"https://a.example/v1" = "{SECRET}"\n"http://b:8000" = "kb"\n', encoding="utf-8")
    path.chmod(0o640)
    with pytest.raises(ConfigError, match="can be read by others") as caught:
        Keyring.of({"POLYSEM_KEYS": str(path)})
    assert caught.value.hint == f"chmod 600 {path}"
    path.chmod(0o600)
    ring = Keyring.of({"POLYSEM_KEYS": str(path)})
    assert (ring.key("https://a.example/v1/completions").value, ring.key("http://b:8000/v1").value) == (
        SECRET,
        "kb",
    )
    assert ring.key("http://c:8000") is None
    path.write_text(f'"https://a.example" = "{SECRET}', encoding="utf-8")
    for content in (None, '"https://a.example" = 3', f'key = "{SECRET}"'):
        if content:
            path.write_text(content, encoding="utf-8")
        with pytest.raises(ConfigError) as caught:
            Keyring.of({"POLYSEM_KEYS": str(path)})
        no_key_in(str(caught.value))
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        Keyring.of({"POLYSEM_KEYS": str(tmp_path / "none.toml")})


# what a key may be


@pytest.mark.parametrize("wrong", ["\n", "\r\nX-Other: 1", "\t", " and more", "ü", "\x7f", "‮"])
def test_a_key_that_cannot_be_sent_is_refused_before_it_is(wrong, mine, tmp_path, monkeypatch):
    monkeypatch.setenv("POLYSEM_API_KEY", SECRET + wrong)
    with pytest.raises(ConfigError, match="POLYSEM_API_KEY cannot be sent") as caught:
        target_of(mine.url, tmp_path).probe([TargetPrompt("x")])
    no_key_in(str(caught.value))
    with pytest.raises(ConfigError, match="api_key cannot be sent"):
        embed_texts(["a"], f"openai:m@{mine.url}", cache=None, api_key=SECRET + "\0" + wrong, retries=ONCE)
    assert not mine.requests


# servers and libraries that repeat it


@pytest.mark.parametrize(
    "status", ["200 OK", "400 Bad Request", "401 Unauthorized", "429 Too Many Requests", "500 Broken"]
)
def test_a_server_that_repeats_the_key_is_masked_and_not_kept(status, tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.DEBUG)
    with RawServer(repeats_what_it_was_sent(status)) as server:
        monkeypatch.setenv("POLYSEM_API_KEY", SECRET)
        monkeypatch.setenv("POLYSEM_API_BASE", server.url)
        with pytest.raises(RequestError) as caught:
            target_of(server.url, tmp_path).probe([TargetPrompt("x")])
        with pytest.raises(RequestError) as also:
            embed_texts(["a"], f"openai:m@{server.url}", cache=tmp_path, retries=ONCE)
    assert SECRET.encode() in server.requests[0]
    no_key_in(str(caught.value), str(also.value), on_disk(tmp_path), caplog.text)
    chain = caught.value.__cause__ or (
        caught.value.__context__ if not caught.value.__suppress_context__ else None
    )
    no_key_in(repr(chain))


def test_a_key_is_in_no_representation():
    key = Key(SECRET, "http://a", "test")
    no_key_in(repr(key), str(key), repr(Keyring((key,))))
    assert key.masked(f"Bearer {SECRET}!") == "Bearer ***!"
    assert not Key("EMPTY", "http://a", "test").echoed('{"text": " EMPTY"}'), "a word that is no secret"


# addresses


@pytest.mark.parametrize(
    "url",
    [
        "http://me:pa55word@host/v1", "http://pa55word@host/v1", "http://me:pa55word#x@host/v1", "http://me:pa55word/x@host/v1",
        "me:pa55word@host/v1", "https://host/v1?api_key=pa55word", "https://host/v1?sig=pa55word&v=1", "http://me:pa55word@[::1",
    ],
)  # fmt: skip
def test_secrets_in_addresses_are_refused_unseen(url, tmp_path, monkeypatch):
    target = f'[[targets]]\nname = "t"\nkind = "chat"\nmodel = "m"\nmax_requests = 1\nurl = "{url}"\n'
    sources = '[[sources]]\nmodel = "a"\nsae = "b"\n' * 2
    study = '[model]\nref = "m"\n[[saes]]\nref = "s"\n[glosses]\n'
    attempts = [
        lambda: checked_address(url),
        lambda: parse_transfer(sources + target),
        lambda: embed_texts(["a"], f"openai:m@{url}", cache=None),
        lambda: Keyring.of({"POLYSEM_API_KEY": "k", "POLYSEM_API_BASE": url}),
    ]
    attempts += [lambda: parse_study(f'{study}embedder = "openai:m@{url}"\n')]
    if "://" in url:
        attempts += [
            lambda: parse_study(f'{study}source = "neuronpedia:{url}"\n'),
            lambda: parse_study(f'{study}[features]\nsource = "neuronpedia:{url}"\n'),
            lambda: parse_study(f'[model]\nref = "m"\n[[saes]]\nref = "s"\nglosses = "neuronpedia:{url}"\n'),
        ]
    for attempt in attempts:
        with pytest.raises(ConfigError) as caught:
            attempt()
        assert "pa55word" not in str(caught.value)
    assert "pa55word" not in hidden(f"got {url!r}") or "://" not in url


@pytest.mark.parametrize(
    "url", ["", "host", "localhost:8000/v1", "ftp://host", "http://", "http://:80", "http://host:abc", "http://host:99999", "http://host:0",
            "http://ho st", "http://host\n", "http://a..b/v1", f"http://{'a' * 64}.b", "http://[::1", "http://host/v1#x", "http:\\\\host"]
)  # fmt: skip
def test_addresses_that_cannot_be_asked(url):
    with pytest.raises(ConfigError, match="is no usable address"):
        checked_address(url)


def test_addresses():
    for url in (
        "http://host",
        "https://host:8443/v1/",
        "http://[::1]:8000/v1",
        "http://münchen.example/v1",
        "https://x/v1?api-version=3",
    ):
        assert checked_address(url) == url
    assert origin("HTTPS://Host:443/v1") == "https://host"
    assert origin("http://[::1]:8000/v1") == "http://[::1]:8000"
    assert endpoint("http://host:8000", "/embeddings") == "http://host:8000/v1/embeddings"
    assert endpoint("http://host:8000/", "/embeddings") == "http://host:8000/v1/embeddings"
    assert endpoint("https://host/v1/", "/embeddings") == "https://host/v1/embeddings"
    assert endpoint("https://host/openai/v1", "/embeddings") == "https://host/openai/v1/embeddings"
    assert endpoint("https://host/v1/embeddings", "/embeddings") == "https://host/v1/embeddings"
    assert (
        endpoint("https://host/v1?api-version=3", "/embeddings") == "https://host/v1/embeddings?api-version=3"
    )


def test_an_embedder_that_is_no_address_is_not_taken_for_a_model_of_openai():
    with pytest.raises(ConfigError, match="no usable address"):
        embed_texts(["a"], "openai:m@ftp://me:pa55word@host", cache=None)


def test_a_reply_that_cannot_be_written_to_a_file_is_none(tmp_path):
    with (
        RawServer(answer('{"choices": [{"message": {"content": "\\ud83d"}}]}')) as server,
        pytest.raises(FormatError),
    ):
        target_of(server.url, tmp_path).chat([{"role": "user", "content": "x"}], max_tokens=3)
    assert len(server.requests) == 1
