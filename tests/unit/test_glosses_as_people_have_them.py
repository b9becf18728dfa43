"""Gloss files out of spreadsheets, pipelines and servers: read as meant, or named as what they are."""

import json
import logging
import subprocess
import zlib

import pytest

from polysem.errors import FormatError, MismatchError
from polysem.glosses import read_glosses
from polysem.glosses.bytelevel import mend, text_of
from polysem.glosses.failures import is_failure
from polysem.glosses.read import read_gloss_source
from polysem.types import Site

SITE = Site.parse("blocks.5.hook_resid_post")


def lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return f"file:{path}"


def texts(source, **known):
    return {(g.feature, g.text) for g in read_glosses(source, **known)}


# whose they are


@pytest.mark.parametrize(
    "sae_id",
    [
        "gemma-2-2b/20-gemmascope-res-16k",
        "blocks.9.hook_resid_post",
        "gpt2-small-res-jb/blocks.9.hook_resid_pre",
        "layer_9/width_16k/average_l0_80",
        "blocks.5.hook_mlp_out",
    ],
)
def test_glosses_of_another_sae_by_its_id_are_refused(tmp_path, sae_id):
    source = lines(tmp_path / "g.jsonl", [{"sae_id": sae_id, "index": 3, "explanation": "words of the sea"}])
    with pytest.raises(MismatchError, match="another SAE"):
        read_glosses(source, site=SITE, model_id="gpt2", d_sae=8)


@pytest.mark.parametrize(
    "sae_id",
    ["gpt2-small/6-res-jb", "blocks.5.hook_resid_post", "blocks.6.hook_resid_pre", "layer_5/width_16k"],
)
def test_glosses_of_this_sae_by_its_id_are_read(tmp_path, sae_id):
    source = lines(tmp_path / "g.jsonl", [{"sae_id": sae_id, "index": 3, "explanation": "words of the sea"}])
    assert texts(source, site=SITE, model_id="gpt2", d_sae=8) == {(3, "words of the sea")}


def test_explainers_stay_apart_and_their_agreement_is_no_repetition(tmp_path):
    rows = [
        {"sae_id": "gpt2-small/6-res-jb", "index": f, "llm_explainer": by, "explanation": "the sea"}
        for f in range(4)
        for by in ("gpt-4o", "claude", "llama")
    ]
    read = read_gloss_source(lines(tmp_path / "g.jsonl", rows), site=SITE, model_id="gpt2", d_sae=4)
    assert len(read.glosses) == 12
    assert {g.explainer for g in read.glosses} == {"gpt-4o", "claude", "llama"}
    assert read.report.n_duplicates == 0


@pytest.mark.parametrize(
    "column", ["index", "latent", "neuron", "latent_id", "feature_id", "Neuron Index", "id", "unit"]
)
def test_the_number_of_a_feature_has_many_names(tmp_path, column):
    (tmp_path / "g.csv").write_text(f"{column},label\n3,the sea\n5,the king\n")
    assert texts(f"file:{tmp_path / 'g.csv'}", d_sae=8) == {(3, "the sea"), (5, "the king")}


def test_two_candidates_for_the_number_are_named(tmp_path):
    (tmp_path / "g.csv").write_text("index,latent,label\n0,3,the sea\n1,5,the king\n")
    with pytest.raises(FormatError, match=r"index is '0', latent is '3'") as caught:
        read_glosses(f"file:{tmp_path / 'g.csv'}")
    assert "rename one of the columns index and latent" in caught.value.hint


# what is no gloss

FAILURES = [
    "Explanation could not be parsed.", "ERROR", "Error: 429", "Error: Rate limit exceeded", "?", "-", "...", "\u200b\u200d",
    "I'm sorry, but I can't help with that.", "I cannot determine a pattern from these examples.",
    "As an AI language model, I have no access.", "<think>The user wants me to look at", "N/A", "HTTP 500 Internal Server Error",
    "Failed to generate explanation", "Unable to parse response", "None", "No explanation available", "TimeoutError: read timed out",
    "No clear pattern found.", "RateLimitError", "[explanation]", '{"error": "overloaded"}', "Sorry, I don't know.",
    "429 Too Many Requests", "Request timed out.", "undefined", "I don\u2019t see any pattern.", "Please provide the examples.",
]  # fmt: skip
GLOSSES = [
    "error messages in code", "errors and exceptions in Python tracebacks", "apologies and regret in letters", "the word 'sorry'",
    "unfortunately and similar adverbs", "refusals by an assistant", "HTTP status codes such as 404", "the number 429", "timeouts in networks",
    "clear patterns in data", "failure to act in time", "null pointers", "unknown persons", "rate limits on roads", "the letter I",
    "questions that end in ?", "explanations of grammar", "missing persons", "thinking and thought", "warning signs", "500 metres and other distances",
    "emptiness and void", "requests for help", "please and thank you", "no, not and never", "exceptions to a rule", "error",
    "connection and togetherness", "request",
]  # fmt: skip


@pytest.mark.parametrize("text", FAILURES)
def test_failures_are_no_glosses(text):
    assert is_failure(text)


@pytest.mark.parametrize("text", [t for t in GLOSSES if t != "error"])
def test_glosses_that_speak_of_failures_are_kept(text):
    assert not is_failure(text)


def test_failures_are_dropped_and_counted(tmp_path, caplog):
    rows = [{"feature": n, "gloss": text} for n, text in enumerate([*FAILURES, *["the sea"] * 20])]
    with caplog.at_level(logging.WARNING):
        read = read_gloss_source(lines(tmp_path / "g.jsonl", rows))
    assert {g.text for g in read.glosses} == {"the sea"}
    assert read.report.n_failed + read.report.n_without_text == len(FAILURES)
    assert f"{read.report.n_failed} failures that are no gloss" in caplog.text


def test_thoughts_before_a_gloss_go_and_the_gloss_stays(tmp_path):
    source = lines(tmp_path / "g.jsonl", [{"feature": 1, "gloss": "<think>hm, sea?</think>\n\nthe sea"}])
    assert texts(source) == {(1, "the sea")}


def test_a_file_of_failures_is_an_error_with_numbers(tmp_path):
    rows = [{"feature": n, "gloss": "ERROR"} for n in range(95)]
    rows += [{"feature": 95 + n, "gloss": f"word {n}"} for n in range(5)]
    with pytest.raises(
        FormatError, match=r"5 of 100 rows of this SAE are glosses.*95 are failures such as ERROR"
    ):
        read_glosses(lines(tmp_path / "g.jsonl", rows))


def test_columns_and_files_that_are_not_read_are_said_in_one_line(tmp_path, caplog):
    (tmp_path / "g.csv").write_text("feature,gloss,colour,score\n3,the sea,blue,0.5\n")
    (tmp_path / "notes.docx").write_bytes(b"x")
    with caplog.at_level(logging.WARNING):
        read = read_gloss_source(f"file:{tmp_path}", d_sae=5)
    assert read.report.unread == {"colour": 1, "score": 1}
    [line] = [r.getMessage() for r in caplog.records]
    assert "2 columns (colour, score)" in line
    assert "1 files of the folder (notes.docx)" in line
    assert "4 of 5 features have no gloss" in line


# how they are written

TABLE = "feature;gloss\n12;the café, by the sea\n"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("semicolon.csv", TABLE.encode()),
        ("tab.csv", TABLE.replace(";", "\t").encode()),
        ("sep.csv", b"sep=;\r\n" + TABLE.replace("\n", "\r\n").encode()),
        ("utf16.csv", TABLE.encode("utf-16")),
        ("utf16be.csv", TABLE.encode("utf-16-be")),
        ("cp1252.csv", TABLE.encode("cp1252")),
        ("bom.csv", TABLE.encode("utf-8-sig")),
        ("scientific.csv", TABLE.replace("12", "1.2E+01").encode()),
        ("lines.json", b'{"feature": 12, "gloss": "the caf\\u00e9, by the sea"}\n{"feature": 12, "gloss": ""}\n'),
        ("array.jsonl", b'[\n {"feature": 12, "gloss": "the caf\\u00e9, by the sea"}\n]\n'),
        ("pretty.jsonl", b'{\n "12": "the caf\\u00e9, by the sea"\n}\n'),
        ("utf16.json", '{"12": "the café, by the sea"}'.encode("utf-16")),
        ("entities.csv", b"feature,gloss\n12,\"the caf&eacute;, by the sea\"\n"),
        ("bytes.csv", b"feature,gloss\n12,\"the caf<0xC3><0xA9>, by the sea\"\n"),
    ],
)  # fmt: skip
def test_a_file_is_read_whoever_wrote_it(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    assert texts(f"file:{tmp_path / name}", d_sae=16) == {(12, "the café, by the sea")}


def test_an_id_that_a_spreadsheet_rounded_is_refused(tmp_path):
    (tmp_path / "g.csv").write_text("feature,gloss\n1.2E+04,the sea\n")
    with pytest.raises(FormatError, match=r"no feature number: got 1\.2E\+04"):
        read_glosses(f"file:{tmp_path / 'g.csv'}")


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("g.json", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12\n", "git-LFS pointer"),
        ("g.json", b"<!DOCTYPE html>\n<html><body>Sign in</body></html>", "web page"),
        ("g.csv", b"PK\x03\x04rest", "zip archive"),
        ("g.jsonl", b"PAR1rest", "parquet"),
    ],
)
def test_other_files_are_named_as_what_they_are(tmp_path, name, content, says):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(FormatError, match=says):
        read_glosses(f"file:{tmp_path / name}")


def test_a_folder_of_delphi_texts(tmp_path):
    (tmp_path / "layers.5_latent12.txt").write_text('"words of the sea"')
    (tmp_path / "layers.5_latent3.txt").write_text("words of kings")
    (tmp_path / "layers.9_latent3.txt").write_text("words of another layer")
    read = texts(f"file:{tmp_path}", site=SITE, d_sae=16)
    assert read == {(12, "words of the sea"), (3, "words of kings")}


def test_lone_surrogates_are_replaced_and_counted(tmp_path, caplog):
    (tmp_path / "g.jsonl").write_text(
        '{"feature": 1, "gloss": "a \\udc80 b"}\n{"feature": 2, "gloss": "\\ud83d\\ude00"}\n'
    )
    with caplog.at_level(logging.WARNING):
        read = texts(f"file:{tmp_path / 'g.jsonl'}")
    assert read == {(1, "a \ufffd b"), (2, "\U0001f600")}
    assert "1 lone surrogates replaced" in caplog.text
    assert all(text.encode() for _, text in read)


def test_a_bomb_is_named_before_it_goes_off(tmp_path):
    pack = zlib.compressobj(9, wbits=31)
    piece = b'{"feature": 1, "gloss": "' + b"a" * (1 << 20) + b'"}\n'
    content = b"".join(pack.compress(piece) for _ in range(400)) + pack.flush()
    (tmp_path / "g.jsonl.gz").write_bytes(content)
    with pytest.raises(FormatError, match="unpack to more than"):
        read_glosses(f"file:{tmp_path / 'g.jsonl.gz'}")


def test_a_share_of_tokens_is_at_most_one():
    from polysem.glosses.dashboard_rows import _facts
    from polysem.glosses.raw import GlossRecord

    with pytest.raises(FormatError, match=r"frac_nonzero is 3\.2; expected a share from 0 to 1"):
        _facts(GlossRecord("f:1", {"frac_nonzero": 3.2}))


def test_entities_of_web_pages_are_the_characters_they_stand_for(tmp_path):
    file = tmp_path / "g.jsonl"
    file.write_text(json.dumps({"feature": 3, "gloss": "Tom &amp; Jerry&#39;s &quot;sea&quot; &lt;b&gt;"}))
    assert texts(f"file:{file}") == {(3, 'Tom & Jerry\'s "sea" <b>')}


def test_byte_tokens_are_the_characters_they_stand_for():
    assert text_of("<0x0A>") == "\n"
    assert mend(["caf", "<0xC3>", "<0xA9>", "<0x0A>"]) == ["caf", "é", "", "\n"]


def test_hints_of_gloss_files_work(tmp_path):
    """What `next:` says, done to the case that raised it."""
    rows = [{"model": "a", "layer": "5-res", "feature": 1, "gloss": "the sea"}]
    rows += [{"model": "a", "layer": "5-res-x", "feature": 99, "gloss": "the king"}]
    source = lines(tmp_path / "g.jsonl", rows)
    with pytest.raises(MismatchError) as caught:
        read_glosses(source, site=SITE, d_sae=8)
    named = caught.value.hint.partition("glosses = '")[2].partition("'")[0]
    assert texts(named, site=SITE, d_sae=8) == {(1, "the sea")}


# what else lies where a gloss file should

TWO = {(3, "the sea"), (4, "kings")}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("g.csv", b'"sep=;"\r\nfeature;gloss\r\n3;the sea\r\n4;kings\r\n'),
        ("g.csv", b"\n\r\nfeature,gloss\n3,the sea\n4,kings\n"),
        ("g.csv", b"feature|gloss\n3|the sea\n4|kings\n"),
        ("g.csv", "feature,gloss\n3,the sea\n4,kings\n".encode("utf-32")),
        ("g.csv", b"feature,gloss\r3,the sea\r4,kings\r"),
        ("g.jsonl", b'[{"feature": 3, "gloss": "the sea"}, {"feature": 4, "gloss": "kings"}]'),
        (
            "g.json",
            b'[{"feature": 3, "explanations": ["the sea"]}, {"feature": 4, "explanations": ["kings", null]}]',
        ),
        (
            "g.json",
            b'[{"feature": 3, "gloss": "the sea"}, {"feature": 4, "gloss": "kings"}, {"feature": 5, "gloss": NaN}]',
        ),
    ],
)
def test_two_glosses_in_other_habits(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    assert texts(f"file:{tmp_path / name}") == TWO


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(40), "old office"),
        (b"BZh91AY&SY", "bzip2"),
        (b"\xfd7zXZ\x00" + bytes(8), "packed by xz"),
        (b"SQLite format 3\x00" + bytes(40), "SQLite"),
        (b"ARROW1\x00\x00" + bytes(40), "Arrow"),
        (b"\x89HDF\r\n\x1a\n" + bytes(40), "HDF5"),
        (b"7z\xbc\xaf\x27\x1c" + bytes(8), "7-Zip"),
        (b"<!-- saved from url=(0014)about:internet -->\n<html><body>", "web page"),
        (b"<Error><Code>AccessDenied</Code></Error>", "web page"),
        (b"404: Not Found", "what a server said"),
        (b"Entry not found\n", "what a server said"),
        (
            b"Access to model google/gemma-2-2b is restricted. You must be authenticated.",
            "what a server said",
        ),
        (b"", "empty"),
        (b" \n", "empty"),
    ],
)
@pytest.mark.parametrize("name", ["g.json", "g.csv"])
def test_what_is_no_gloss_file_is_named(tmp_path, name, content, said):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(FormatError, match=said):
        read_glosses(f"file:{tmp_path / name}")


@pytest.mark.parametrize(
    "content",
    [{"error": "Repository not found"}, {"message": "Not Found", "documentation_url": "https://docs"}],
)
def test_an_error_of_a_server_saved_as_json_is_named(tmp_path, content):
    (tmp_path / "g.json").write_text(json.dumps(content))
    with pytest.raises(FormatError, match="what a server said"):
        read_glosses(f"file:{tmp_path / 'g.json'}")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("g.json", '{"3": "the sea", "3": "kings"}'),
        ("g.jsonl", '{"feature": 3, "feature": 4, "gloss": "the sea"}'),
    ],
)
def test_a_name_that_stands_twice_in_an_object_is_refused(tmp_path, name, content):
    (tmp_path / name).write_text(content)
    with pytest.raises(FormatError, match=r"g\.json.* the name (3|feature) stands twice"):
        read_glosses(f"file:{tmp_path / name}")


def test_bytes_that_are_no_text_in_any_western_code_are_refused_and_cp1252_is_said(tmp_path, caplog):
    file = tmp_path / "g.csv"
    file.write_bytes(b"feature,gloss\n3,\x8d\x81\x90\n")
    with pytest.raises(FormatError, match="is not UTF-8"):
        read_glosses(f"file:{file}")
    file.write_bytes("feature,gloss\n3,café\n".encode("cp1252"))
    assert texts(f"file:{file}") == {(3, "café")}
    assert "read as Windows-1252" in caplog.text


JAPANESE = "海と船について、王の言葉"
OTHERS = {
    "SHIFT_JIS": JAPANESE, "EUC-JP": JAPANESE, "GB2312": "关于大海和船只的词语，以及国王的名字", "BIG5": "關於大海和船隻的詞語，以及國王",
    "EUC-KR": "바다와 배에 관한 단어", "CP1251": "слова о море и кораблях", "KOI8-R": "слова о море и кораблях",
    "CP1253": "λέξεις για τη θάλασσα και τα πλοία",
}  # fmt: skip


@pytest.mark.parametrize("name", ["g.csv", "a folder/g.csv", "g.jsonl", "g.json"])
@pytest.mark.parametrize("code", OTHERS)
def test_text_of_another_code_is_named_and_the_command_mends_it(tmp_path, name, code):
    gloss, file = OTHERS[code], tmp_path / name
    short = gloss[:4].strip()
    file.parent.mkdir(exist_ok=True)
    rows = [(3, gloss), (4, short), (5, "the sea")]
    table = "feature,gloss\n" + "".join(f"{k},{text}\n" for k, text in rows)
    lines = "\n".join(json.dumps({"feature": k, "gloss": text}, ensure_ascii=False) for k, text in rows)
    whole = json.dumps({str(k): text for k, text in rows}, ensure_ascii=False)
    content = {".csv": table, ".jsonl": lines, ".json": whole}[file.suffix].encode(code)
    file.write_bytes(content)
    first = next(n for n, byte in enumerate(content) if byte > 127)
    with pytest.raises(FormatError) as caught:
        read_glosses(f"file:{file}")
    said = str(caught.value)
    place = int(said.partition(": byte ")[2].split()[0])
    assert str(file) in said
    assert f"byte {place} is {content[place]:#04x}; it may be text in {code}" in said
    assert first <= place <= first + 8
    subprocess.run(str(caught.value.hint), shell=True, check=True, cwd=tmp_path)
    assert texts(f"file:{file}") == {(3, gloss), (4, short), (5, "the sea")}


@pytest.mark.parametrize(
    "gloss",
    [
        "créée à l’été, « déjà »", "Größe der Öfen – über 3 m²", "jäääär ja hääyöaie", "óþægilegt", "¿qué? ¡señor!", "l·l, 5 €…",
        "smørrebrød på ø", "coração, maçã e limões", "naïve “café” — Œuvre", "don´t; 20 °C; ½ cup; ©2024", "Å, ÄÖÜ", "„Wort“, ‚Wort‘",
    ],
)  # fmt: skip
def test_western_text_is_read_as_windows_1252(tmp_path, gloss):
    file = tmp_path / "g.csv"
    file.write_bytes(f'feature;gloss\n3;"{gloss}"\n'.encode("cp1252"))
    assert texts(f"file:{file}") == {(3, gloss)}


@pytest.mark.parametrize(
    "text",
    [
        "#N/A", "#REF!", "#VALUE!", "#DIV/0!", "[object Object]", "<|endoftext|>", "<unk>", "[BLANK]", "(empty)", "[ERROR]",
        "HTTP 500", "openai.RateLimitError: limit", "Not enough information.", "insufficient data", "No top activations found",
        "dead feature", "This feature is dead.", "The model failed to generate an explanation", "Content filtered",
    ],
)  # fmt: skip
def test_more_that_is_no_gloss(text):
    assert is_failure(text)


@pytest.mark.parametrize(
    "text",
    [
        "descriptions not of people", "dead sailors", "information about insufficient funds", "models of ships", "the number 500",
        "empty rooms", "content of letters", "features of a face", "errors in code", "the tag <b>", "answers not to be given aloud",
    ],
)  # fmt: skip
def test_more_that_is_one(text):
    assert not is_failure(text)
