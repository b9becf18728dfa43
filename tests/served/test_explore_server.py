"""The server: who is answered, what is sent along, what files it gives."""

import asyncio
import csv
import io
import json
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pyarrow.parquet as pq
import pytest
from starlette.testclient import TestClient

from polysem.errors import ConfigError
from polysem.explore import Book, make_app
from polysem.explore import server as server_module
from polysem.explore.guard import POLICY
from polysem.explore.live import Live
from polysem.explore.output import cell
from polysem.explore.server import hosts_of, impatient, listen, root_of
from support.synthetic import SyntheticStudy, synthetic_run

TOKEN = "the-token-of-this-test"
HERE = "http://127.0.0.1:8000"
FORMULAS = ('=HYPERLINK("http://x")', "+1+1", "-2+3", "@SUM(A1)", "\t=1", " =1", "＝1")
WORLD = SyntheticStudy(
    n_features=60, n_targets=3, n_prompts=4, doses=(0.1,), sources_per_bin=1, glosses=FORMULAS
)


@pytest.fixture(scope="module")
def book(tmp_path_factory):
    made = Book(synthetic_run(tmp_path_factory.mktemp("run"), WORLD))
    yield made
    made.close()


@pytest.fixture
def client(book):
    app = make_app(book, token=TOKEN, hosts=hosts_of("127.0.0.1", 8000))
    return TestClient(app, base_url=HERE, follow_redirects=False)


@pytest.fixture
def known(client):
    client.headers["authorization"] = f"Bearer {TOKEN}"
    return client


def test_without_the_token_nothing_is_said(client):
    for path in (
        "/",
        "/static/main.js",
        "/data/overview.json",
        "/data/rows/pairs",
        "/live",
        "/live/x/changes",
        "/?token=wrong",
    ):
        answer = client.get(path)
        assert answer.status_code == 401
        assert "synthetic" not in answer.text


def test_the_token_of_the_address_becomes_a_cookie_and_leaves_the_address(client):
    answer = client.get(f"/?token={TOKEN}")
    assert answer.status_code == 303
    assert answer.headers["location"] == "/"
    cookie = answer.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=Strict" in cookie
    assert client.get("/").status_code == 200
    assert client.get("/data/overview.json").json()["name"] == "synthetic"


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8000", "127.0.0.1:9999", "127.0.0.1.evil.example:8000", ""]
)
def test_another_host_name_is_refused_even_with_the_token(known, host):
    answer = known.get("/data/overview.json", headers={"host": host})
    assert answer.status_code == 421


def test_hosts_that_are_answered():
    assert hosts_of("127.0.0.1", 80) == ["127.0.0.1:80", "[::1]:80", "localhost:80"]
    assert hosts_of("10.0.0.7", 80, more=["box.lan", "x:9"]) == ["10.0.0.7:80", "box.lan", "x:9"]
    assert "localhost:80" in hosts_of("0.0.0.0", 80)
    for wrong in ("http://box.lan", "box.lan/x", "box:0", "box:99999", "a b", "", "*:x", "me@box"):
        with pytest.raises(ConfigError, match="is no host; expected NAME or NAME:PORT"):
            hosts_of("127.0.0.1", 80, more=[wrong])


@pytest.mark.parametrize(
    ("allowed", "host", "answered"),
    [
        ("localhost:9999", "localhost:9999", True),  # ssh -L 9999:localhost:8000
        ("localhost:9999", "localhost:9998", False),
        ("localhost:9999", "127.0.0.1:9999", False),
        ("localhost", "localhost:4711", True),
        ("hub.example.org", "hub.example.org", True),
        ("hub.example.org", "HUB.example.org:8443", True),
        ("hub.example.org:443", "hub.example.org", True),
        ("hub.example.org:9999", "hub.example.org", False),
        ("hub.example.org", "hub.example.org.evil.example", False),
        ("hub.example.org", "evil.example", False),
        ("[::1]:9999", "[::1]:9999", True),
        ("::1", "[::1]:9999", True),
        ("localhost", "localhost:port", False),
        ("localhost", "evil.example@localhost", False),
    ],
)
def test_names_that_are_allowed(book, allowed, host, answered):
    app = make_app(book, token=TOKEN, hosts=hosts_of("127.0.0.1", 8000, more=[allowed]))
    client = TestClient(app, base_url=HERE, headers={"authorization": f"Bearer {TOKEN}"})
    assert client.get("/data/overview.json", headers={"host": host}).status_code == (200 if answered else 421)
    assert client.get("/data/overview.json").status_code == 200


def test_a_refused_name_is_told_what_to_do(client):
    answer = client.get("/", headers={"host": "localhost:9999"})
    assert answer.status_code == 421
    assert "polysem explore RUN --allow-host localhost:9999\n" in answer.text
    assert "--root-path" in answer.text
    assert answer.headers["content-type"].startswith("text/plain")
    assert "<" not in client.get("/", headers={"host": "<b>\x1b[0m"}).text.replace("<b>", "")


@pytest.mark.parametrize("strips", [True, False])
def test_behind_a_path(book, strips):
    """As jupyter-server-proxy does it: under /proxy/PORT the path is taken off, under /proxy/absolute/PORT it stays."""
    root = root_of("user/me%40x/proxy/{port}/", 8000)
    assert root == "/user/me%40x/proxy/8000"
    app = make_app(
        book, token=TOKEN, hosts=hosts_of("127.0.0.1", 8000, more=["hub.example"]), root=root, live=Bench()
    )
    client = TestClient(app, base_url="http://hub.example", follow_redirects=False)
    above = "" if strips else root
    first = client.get(f"{above}/?token={TOKEN}")
    assert (first.status_code, first.headers["location"]) == (303, f"{root}/")
    assert f"Path={root}/;" in first.headers["set-cookie"]
    cookie = first.headers["set-cookie"].partition(";")[0]
    for path in ("/", "/static/main.js", "/data/overview.json"):
        assert client.get(above + path, headers={"cookie": cookie}).status_code == 200
        assert client.get(above + path, headers={"cookie": ""}).status_code == 401
    assert (
        client.get("/user/other/proxy/8000/data/overview.json", headers={"cookie": cookie}).status_code == 404
    )
    post = {"cookie": cookie, "content-type": "application/json"}
    for origin, status in (
        ("https://hub.example", 200),
        ("http://hub.example", 200),
        ("https://evil.example", 403),
        ("", 403),
    ):
        assert (
            client.post(f"{above}/live", content="{}", headers={**post, "origin": origin}).status_code
            == status
        )
    for wrong in ("a b", "/../x", "x?y", "/a//b", "\nx"):
        with pytest.raises(ConfigError, match="is no path"):
            root_of(wrong, 1)
    assert root_of("", 1) == root_of("/", 1) == ""


class Bench:
    """In the place of `Live`."""

    def start(self, asked):
        return {"job": "1"}

    def close(self):
        pass


def test_two_host_headers_are_none(book):
    seen = []

    async def send(message):
        seen.append(message)

    scope = {"type": "http", "method": "GET", "path": "/", "query_string": b"", "headers": [
        (b"host", b"127.0.0.1:8000"), (b"host", b"evil.example"), (b"authorization", f"Bearer {TOKEN}".encode())]}  # fmt: skip
    app = make_app(book, token=TOKEN, hosts=hosts_of("127.0.0.1", 8000))
    with ThreadPoolExecutor(1) as pool:  # a browser's loop may be running in this thread
        pool.submit(lambda: asyncio.run(app(scope, None, send))).result()
    assert seen[0]["status"] == 421


def test_headers_that_do_not_come_end_the_connection(book, monkeypatch):
    """A first request that stops in its headers, and one after a good one; a request that is at work is not touched."""
    import uvicorn

    monkeypatch.setattr(server_module, "HEADERS_WITHIN", 0.3)
    app = make_app(book, token=TOKEN, hosts=["127.0.0.1"])
    bound = listen("127.0.0.1", 0)
    config = uvicorn.Config(app, http=impatient(), log_level="error", server_header=False, date_header=False)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]}, daemon=True)
    thread.start()
    whole = f"GET /data/progress.json HTTP/1.1\r\nhost: 127.0.0.1\r\nauthorization: Bearer {TOKEN}\r\n\r\n".encode()
    try:
        for before in (b"", whole):
            with socket.create_connection(bound.getsockname(), timeout=10) as slow:
                slow.sendall(before)
                if before:
                    assert b"200 OK" in slow.recv(1 << 16)
                slow.sendall(b"GET / HTTP/1.1\r\nhost: 127.0")
                begun = time.monotonic()
                while slow.recv(1 << 16):
                    pass
                assert 0.1 < time.monotonic() - begun < 15  # of 20 s that it has otherwise
    finally:
        server.should_exit = True
        thread.join(timeout=10)


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
def test_the_explorer_only_reads(known, method):
    for path in ("/data/overview.json", "/data/rows/pairs", "/"):
        assert known.request(method, path).status_code == 403


def test_every_answer_carries_the_policy(known, client):
    for path in ("/", "/static/app.css", "/data/overview.json", "/data/rows/pairs?f=x", "/nothing"):
        headers = known.get(path).headers
        assert headers["content-security-policy"] == POLICY
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"
        assert "access-control-allow-origin" not in headers
    assert "unsafe" not in POLICY
    assert "http" not in POLICY
    assert "default-src 'none'" in POLICY


@pytest.mark.parametrize(
    "path",
    [
        "/static/../server.py",
        "/static/%2e%2e/server.py",
        "/static//etc/passwd",
        "/static/..%2f..%2fcli/app.py",
        "/data/..%2f..%2fstudy.toml",
    ],
)
def test_no_path_leads_out(known, path):
    answer = known.get(path)
    assert answer.status_code in (404, 422)
    assert "import" not in answer.text
    assert "[model]" not in answer.text


def test_a_wrong_question_is_an_answer_with_a_reason(known):
    answer = known.get("/data/rows/pairs", params={"f": "interference>=much"})
    assert answer.status_code == 400
    assert "is no number" in answer.json()["error"]
    assert known.get("/data/rows/nothing").status_code == 404
    assert known.get("/data/feature", params={"sae": "none", "feature": 3}).status_code == 404
    assert known.get("/data/rows/pairs", params={"format": "xlsx"}).status_code == 400


@pytest.mark.parametrize("number", [2**31, 2**63 - 1, 2**63, 10**100, -1])
def test_numbers_beyond_any_table_are_answered(known, number):
    for question in (
        "rows/pairs?offset={}",
        "rows/pairs?limit={}",
        "rows/pairs?near={}",
        "rows/pairs?f=i={}",
    ):
        assert known.get(f"/data/{question.format(number)}").status_code in (200, 400, 422)
    assert known.get(f"/data/feature?sae=a&feature={number}").status_code in (404, 422)


@pytest.mark.parametrize(
    "body",
    [b"[" * 30_000, b'{"a":' * 9_000, b"9" * 60_000, b"\xff\xfe", b'{"prompt": "\\ud800"}', b"", b"null"],
)
def test_what_is_posted_is_bounded(book, body):
    app = make_app(book, token=TOKEN, hosts=hosts_of("127.0.0.1", 8000), live=Live(book))
    client = TestClient(app, base_url=HERE)
    headers = {"authorization": f"Bearer {TOKEN}", "origin": HERE, "content-type": "application/json"}
    assert client.post("/live", content=body, headers=headers).status_code == 400


def test_csv_holds_all_rows_and_no_formula(known):
    answer = known.get("/data/rows/pairs", params={"f": "interference>0.2", "format": "csv", "limit": 3})
    rows = list(csv.DictReader(io.StringIO(answer.text, newline="")))
    total = known.get("/data/rows/pairs", params={"f": "interference>0.2"}).json()["total"]
    assert len(rows) == total > 50
    for row in rows:
        for name in ("gloss_i", "gloss_j"):
            assert row[name].startswith("'")
            assert row[name][1:] in FORMULAS
        float(row["interference"])  # numbers stay numbers, negative ones too


def test_cells():
    assert [cell(v) for v in (None, True, -0.5, "a=b", "", ["x", "=y"])] == [
        "",
        "true",
        "-0.5",
        "a=b",
        "",
        '["x", "=y"]',
    ]
    assert all(cell(f) == f"'{f}" for f in FORMULAS)


def test_parquet_and_json_lines_hold_the_same_rows(known):
    asked = {"sort": "-strength", "f": "is_duplicate=false"}
    table = pq.read_table(
        io.BytesIO(known.get("/data/rows/pairs", params={**asked, "format": "parquet"}).content)
    )
    lines = known.get("/data/rows/pairs", params={**asked, "format": "jsonl"}).text.splitlines()
    page = known.get("/data/rows/pairs", params={**asked, "limit": 20}).json()
    assert table.num_rows == len(lines) == page["total"]
    assert [json.loads(line) for line in lines[:20]] == page["rows"] == table.slice(0, 20).to_pylist()


def test_a_feature_comes_with_all_that_is_stored(known):
    sae = known.get("/data/overview.json").json()["saes"][0]["label"]
    record = known.get("/data/feature", params={"sae": sae, "feature": 3}).json()
    assert record["feature"] == 3
    assert len(record["contexts"]) == 2
    assert len(record["glosses"]) == 1
    assert record["partners"]
    assert record["clusters"]
    assert record["link"] is None


def test_live_is_not_there_unless_asked_for(known):
    assert known.get("/live").status_code == 404
    answer = known.post("/live", json={}, headers={"origin": HERE})
    assert answer.status_code == 404


def test_opening_a_study_imports_no_torch(book):
    """Nor do its figures; for those pyarrow's filters import pandas."""
    code = (
        "import sys; from pathlib import Path; from polysem.explore import Book, make_app; from polysem.explore import documents as d, figures as g;"
        f"b = Book(Path({str(book.folder)!r})); make_app(b, token='t', hosts=['h']); d.overview(b); d.floors(b);"
        "print([m for m in ('torch', 'transformers', 'statsmodels', 'pandas', 'sklearn') if m in sys.modules]);"
        "[g.section(b, n) for n in g.SECTIONS];"
        "print([m for m in ('torch', 'transformers', 'statsmodels', 'sklearn') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["[]", "[]"]
