"""The report: whole on a finished run, clear on an unfinished one, harmless with hostile text, the same bytes
each time."""

import base64
import dataclasses
import hashlib
import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser

import pytest
from markupsafe import escape

from polysem.errors import StoreError
from polysem.report import write_report
from polysem.report.charts import intervals
from polysem.report.findings import finding
from polysem.report.sure import axis_of, one_dictionary, pair_sentences, specification_panels
from polysem.report.text import number
from polysem.store import io
from polysem.store.tables import STAGES
from polysem.vocabulary import RELATIONS
from polysem.vocabulary_findings import CLAIMS
from support.synthetic import SyntheticStudy, synthetic_run

WORLD = SyntheticStudy(n_features=90, n_targets=4, n_prompts=4, doses=(0.1, 0.2), sources_per_bin=2)
SCHEMAS = {schema.name: schema for schema in STAGES["effects"]}
RLO, ZWSP, BELL = "\u202e", "\u200b", "\x07"
HOSTILE = (
    "</script><script>alert(1)</script>",
    "<img src=x onerror=alert(2)>",
    f"left{RLO}right{ZWSP}{BELL}",
    "\"'><svg onload=alert(3)>",
    "{{ 7 * 7 }}{% raw %}",
    "]]><!--",
    "https://evil.example/x.js",
)


class Page(HTMLParser):
    """Elements and text of a page, as a browser would see them."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.stack: list[str] = []
        self.text = ""
        self.blocks: list[tuple[dict[str, str | None], str]] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag in ("script", "style"):
            self.blocks.append(({**dict(attrs), "tag": tag}, ""))
            self.stack.append(tag)

    def handle_endtag(self, tag):
        if self.stack and self.stack[-1] == tag:
            self.stack.pop()

    def handle_data(self, data):
        if self.stack:
            self.blocks[-1] = (self.blocks[-1][0], self.blocks[-1][1] + data)
        else:
            self.text += data


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = synthetic_run(tmp_path_factory.mktemp("run") / "a", WORLD)
    write_report(folder)
    return folder


@pytest.fixture(scope="module")
def html(run):
    return (run / "report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    world = dataclasses.replace(WORLD, glosses=HOSTILE, tokens=HOSTILE, n_targets=2, saes=WORLD.saes[:1])
    folder = synthetic_run(tmp_path_factory.mktemp("run") / "hostile", world)
    return write_report(folder).read_text(encoding="utf-8")


def test_sections_and_numbers_are_there(run, html):
    page = Page(html)
    ids = {a["id"] for _, a in page.tags if "id" in a}
    assert {
        "findings",
        "asked",
        "map",
        "pairs",
        "effects",
        "sure",
        "why",
        "missing",
        "method",
        "rerun",
    } <= ids
    svgs = [a for tag, a in page.tags if tag == "svg" and a.get("role") == "img"]
    assert len([a for a in svgs if "heat" in a["class"]]) == 2
    assert len(svgs) >= 2 + 2 + 2 + 3  # maps, scatters, means and slopes, dose and KL
    import pyarrow.parquet as pq

    effects = pq.read_table(run / "effects/effects.parquet").to_pylist()
    group = "locus=feature; sae=*; outcome=logodds; tokens=in; dose=0.2"
    slope = next(r for r in effects if (r["contrast"], r["group"]) == ("slope_interference", group))
    found = pq.read_table(run / "effects/findings.parquet").to_pylist()
    reach = next(f["reach"] for f in found if (f["contrast"], f["group"]) == ("slope_interference", group))
    assert reach < 0.95 * max(
        abs(r["interference"] or 0) for r in pq.read_table(run / "plan/plan.parquet").to_pylist()
    )
    assert number(reach * slope["estimate"], sign=True) in page.text
    assert f"{slope['n_pairs']} pairs, {slope['n_targets']} targets" in page.text
    assert page.text.count("zero_activation") == 0  # reasons are put in words
    assert "activations are zero" in page.text
    assert html.count("polysem explore RUN") == 3  # at the top, where steering ends, and among the commands


def test_every_figure_says_what_it_is(html):
    for tag, attributes in Page(html).tags:
        if tag == "svg":
            assert attributes.get("aria-label") or attributes.get("aria-hidden") == "true"
    assert html.count("<figcaption>") == html.count("<figure ")


def test_page_asks_nothing_of_the_world(html):
    page = Page(html)
    for tag, attributes in page.tags:
        assert tag not in ("link", "iframe", "img", "object", "embed", "base")
        assert not {"src", "srcset", "xlink:href", "action"} & attributes.keys()
        assert not attributes.get("href", "#").startswith(("http", "//", "javascript", "data"))
        assert not any(name.startswith("on") for name in attributes), (tag, attributes)
        assert "style" not in attributes  # the policy would drop it
    style = next(text for a, text in page.blocks if a["tag"] == "style")
    assert "@import" not in style
    assert "url(" not in style


def test_policy_allows_exactly_our_style_and_script(html):
    page = Page(html)
    (policy,) = (
        a["content"] for t, a in page.tags if t == "meta" and a.get("http-equiv") == "Content-Security-Policy"
    )
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    run_blocks = [(a["tag"], text) for a, text in page.blocks if a.get("type") != "application/json"]
    assert [tag for tag, _ in run_blocks] == ["style", "script"]
    for tag, text in run_blocks:
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy


def test_script_never_writes_markup(html):
    script = next(t for a, t in Page(html).blocks if a["tag"] == "script" and "type" not in a)
    for word in (
        "innerHTML",
        "outerHTML",
        "insertAdjacentHTML",
        "document.write",
        "eval(",
        "Function(",
        "fetch(",
    ):
        assert word not in script


def test_hostile_glosses_stay_text(hostile):
    page = Page(hostile)
    assert not [a for _, a in page.tags if any(name.startswith("on") for name in a)]
    assert "img" not in {tag for tag, _ in page.tags}
    assert [a.get("type") for a, _ in page.blocks if a["tag"] == "script"].count(None) == 1
    for bad in (RLO, ZWSP, BELL):
        assert bad not in hostile
    assert "⟨U+202E⟩" in page.text
    assert "{{ 7 * 7 }}" in page.text  # a gloss is no template
    assert "<img src=x onerror=alert(2)>" in page.text


def test_hostile_tokens_stay_inside_their_json(hostile):
    blocks = [t for a, t in Page(hostile).blocks if a.get("type") == "application/json"]
    for block in blocks:
        assert "<" not in block
        json.loads(block)
    known = json.loads(next(t for a, t in Page(hostile).blocks if a.get("id") == "details"))
    shown = {token for f in known.values() for context in f["contexts"] for token in context["t"]}
    assert " </script><script>alert(1)</script>" in shown


def test_same_run_gives_the_same_bytes_wherever_it_lies(run, html, tmp_path):
    moved = shutil.copytree(run, tmp_path / "elsewhere")
    assert write_report(moved).read_text(encoding="utf-8") == html
    assert str(run) not in html


@pytest.mark.parametrize("n", range(5))
def test_unfinished_runs_say_what_is_missing(tmp_path, n):
    stages = ("features", "pairs", "plan", "trials")[:n]
    folder = synthetic_run(tmp_path / "r", dataclasses.replace(WORLD, n_targets=2), stages=stages)
    text = Page(write_report(folder).read_text(encoding="utf-8")).text
    assert "This run is not finished." in text
    for stage in ("features", "pairs", "plan", "trials", "effects")[n:]:
        if stage in ("pairs", "trials", "effects"):
            assert f"polysem {stage} RUN/study.toml --out RUN" in text
    assert ("pairs overlap with unrelated glosses" in text) == (n >= 2)


def test_no_run_and_damaged_tables_are_errors(run, tmp_path):
    with pytest.raises(StoreError, match=r"no study\.toml"):
        write_report(tmp_path)
    broken = shutil.copytree(run, tmp_path / "broken")
    file = broken / "pairs/density.parquet"
    file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(StoreError, match=r"density\.parquet"):
        write_report(broken)


def test_the_page_says_what_one_dictionary_of_a_site_cannot_claim(html):
    """Beside what another SAE says; of the sites that are seen through one alone, and of no other."""
    said = " ".join(Page(html).text.split())
    assert "Another SAE of the same site" in said
    assert f"{', '.join(sorted(WORLD.saes))}: one SAE. It is one of many" in said
    assert (
        "this study cannot say that a pair, its interference or its effect is a fact about the model" in said
    )
    assert one_dictionary({"a": "here", "b": "here"}) == ""
    assert one_dictionary({"a": "here", "b": "here", "c": "there"}).startswith("there: one SAE.")


def test_report_needs_no_torch(run):
    code = (
        "import sys, pathlib; from polysem.report import write_report\n"
        "write_report(pathlib.Path(sys.argv[1]))\n"
        "print(sorted({'torch', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(run)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_measured_pairs_come_first_and_show_their_effect(run, html):
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    pairs, effects = (pq.read_table(run / f) for f in ("pairs/pairs.parquet", "effects/pair_effects.parquet"))
    steered = effects.filter(pc.and_(pc.equal(effects["relation"], "pair"), pc.equal(effects["dose"], 0.2)))
    keys = {(r["sae"], *sorted((r["source"], r["target"]))) for r in steered.to_pylist()}
    listed = {(r["sae"], r["i"], r["j"]) for r in pairs.to_pylist()}
    rows = [a for t, a in Page(html).tags if t == "tr" and a.get("class") == "pair"]
    shown = [(a["data-sae"], int(a["data-i"]), int(a["data-j"])) for a in rows]
    assert set(shown[: len(keys & listed)]) == keys & listed
    value = {
        (r["sae"], *sorted((r["source"], r["target"]))): r["logodds"]
        for r in steered.to_pylist()
        if r["token_set"] == "in"
    }
    for a, key in zip(rows, shown, strict=True):
        assert a["data-e"] == "" if key not in keys else float(a["data-e"]) == pytest.approx(value[key])


# ---- words


LINES = [
    {"line": "linearity", "grade": "robust", "verdict": "agrees", "said": "no bend is seen (p = 0.4)"},
    {"line": "each_sae", "grade": "robust", "verdict": "untested", "said": "there is one SAE"},
]


def effect(contrast, estimate, lo, hi, *, claim="predicts", declared=True, against=None, **other):
    counts = dict.fromkeys(("n_pairs", "n_targets", "n_sources", "n_prompts", "n_missing"), 3)
    row = {
        "contrast": contrast,
        "group": "tokens=in",
        "estimate": estimate,
        "lo": lo,
        "hi": hi,
        "level": 0.95,
        "p": 0.003,
        "p_adj": 0.006,
        "p_equivalent": 0.9,
    }
    grades = dict.fromkeys(("significant", "robust", "predictive"), "agrees")
    told = {
        "claim": claim,
        "token_set": "in",
        "declared": declared,
        "reach": 0.4,
        "locus": "feature",
        "against": against,
    } | grades
    return finding(row | counts | {"note": None} | other, told, LINES, margin=0.05)


def test_findings_say_no_more_than_the_claim():
    slope = effect("slope_interference", 0.5, 0.25, 0.75)
    assert slope.answer.startswith("It predicts it")
    assert "0.200 nats higher" in slope.answer  # over the reach of .4
    assert "at interference 0.40" in slope.answer
    assert "1.22 times" in slope.answer  # exp(.2)
    assert "+0.100 to +0.300" in slope.evidence
    assert slope.robustness == "No bend is seen (p = 0.4); there is one SAE."
    weak = effect(
        "slope_interference", 0.5, 0.25, 0.75, claim="associated", against="SAE a alone has p = 0.8"
    )
    assert weak.answer.startswith("Associated, short of “predicts”")
    assert weak.robustness.startswith("Against “predicts”: SAE a alone has p = 0.8.")
    assert (weak.mark, weak.claim) == ("hint", "associated")
    open_ = effect("slope_interference", 0.4, -0.2, 1.0, p=0.2, p_adj=0.4, claim="not_resolved")
    assert open_.answer.startswith("Not resolved")
    assert "effect" not in open_.answer
    assert open_.robustness == ""
    unlucky = effect("slope_interference", 0.4, 0.1, 0.7, p=0.02, p_adj=0.1, claim="not_resolved")
    assert "several questions were asked at once" in unlucky.answer
    other = effect("slope_interference", 0.4, 0.1, 0.7, p_adj=None, claim="undeclared", declared=False)
    assert other.answer.startswith("A description, not a claim")
    assert other.grades == []
    share = effect("sign_agreement", 0.7, 0.6, 0.8)
    assert "70 % of the pairs" in share.answer
    assert share.lo == pytest.approx(0.1)
    assert effect("sign_agreement", 0.3, 0.2, 0.4).answer.startswith("No, the opposite way")
    none = effect(
        "sign_agreement",
        None,
        None,
        None,
        p=None,
        p_adj=None,
        claim="not_estimated",
        note="not estimated: only one target",
    )
    assert (none.mark, none.answer) == ("none", "No number can be given.")
    assert "only one target" in none.note


def test_no_stars_anywhere(html):
    assert "***" not in html


def test_the_page_takes_its_claims_from_the_table(run, html):
    """Each card has the claim, the grades and the lines of its row; no card says more."""
    import pyarrow.parquet as pq

    found = pq.read_table(run / "effects/findings.parquet").to_pylist()
    assert len(found) == 5
    cards = html[html.index('<ol class="findings">') : html.index("</ol>")].split('<li class="')
    said = re.findall(r'<span class="verdict">([^<]*)</span>', html)
    assert sorted(said) == sorted(CLAIMS[f["claim"]].label for f in found)
    for f in found:
        if f["claim"] == "associated":
            assert any(escape(f["against"]) in card for card in cards)
    assert "These questions were declared before anything ran" in html


def test_loci_beside_the_first_are_described_and_not_called_declared(tmp_path):
    """The same run with its effects told of two loci: the second stands folded, without a claim."""
    folder = synthetic_run(tmp_path / "two", WORLD)
    for name in ("effects", "findings", "graded", "pair_effects", "dose_response", "missing"):
        schema = SCHEMAS[name]
        path = folder / "effects" / f"{name}.parquet"
        rows = io.read_table(path, schema, rebuild="").to_pylist()
        more = [json.loads(json.dumps(r).replace("locus=feature", "locus=clamp")) for r in rows]
        for row in more:
            row |= {"locus": "clamp"} if "locus" in row else {}
            row |= {"p_adj": None} if "p_adj" in row else {}
            row |= {"declared": False, "claim": "undeclared"} if "claim" in row else {}
        io.write_table(path, schema.of(rows + more), schema)
    html = write_report(folder).read_text(encoding="utf-8")
    first, second = html.split('<ol class="findings">')[1:3]
    assert "not a declared question" not in first.split("</ol>")[0]
    assert html.count("These questions were declared before anything ran") == 1
    assert second.split("</ol>")[0].count("not a declared question") == 5
    assert "Clamped features: described, not a declared question" in html


def test_what_is_folded_is_shown_on_paper(html):
    page = Page(html)
    assert sum(a.get("class") == "fold" for t, a in page.tags if t == "details") >= 5
    style, script = (
        next(t for a, t in page.blocks if a["tag"] == tag and "type" not in a) for tag in ("style", "script")
    )
    assert "beforeprint" in script
    assert re.search(r"@media print\{details::details-content\{[^}]*content-visibility:visible", style)


def test_the_axis_of_a_specification_curve_is_not_stretched_by_one_interval():
    rows = [(0.1 * k, 0.1 * k - 1.0, 0.1 * k + 1.0, f"s{k}") for k in range(20)]
    lo, hi = axis_of([r[:3] for r in rows])
    assert lo <= -1.0
    assert hi >= 2.9  # all of them fit
    wild = (1.0, -390.0, 400.0, "wild")
    assert axis_of([r[:3] for r in [*rows, wild]]) == pytest.approx((lo, hi), rel=0.2)
    drawn = str(intervals([*rows, wild], title="t", told="", y_range=(lo, hi)))
    assert drawn.count('class="beyond"') == 2  # an arrow at each end, and nothing outside the frame
    ys = [float(v) for v in re.findall(r'y[12]="([-\d.]+)"', drawn)]
    assert min(ys) >= 0
    assert max(ys) <= 300


def test_the_curve_says_which_intervals_run_beyond_its_axis():
    key = {
        "locus": "feature",
        "token_set": "in",
        "similarity": "gloss",
        "max_similarity": 0.3,
        "fixed_effects": "target",
        "n_pairs": 9,
        "p_joint": 0.2,
    }
    rows = [
        key | {"min_interference": k / 10, "estimate": 1.0 + k / 10, "lo": k / 10, "hi": 2.0 + k / 10}
        for k in range(4)
    ]
    rows[1] |= {"lo": -390.0, "hi": 392.0}
    (figure,) = specification_panels(SCHEMAS["specification"].of(rows), "feature", level=0.95)
    assert "1 interval runs beyond the axis (arrows), the furthest to ±392" in figure.caption


def test_single_pairs_that_no_plan_could_name_are_called_untestable():
    def said(n_null):
        rows = [
            {"locus": "feature", "sae": "a", "token_set": "in", "target": k, "source": k + 1, "effect": 0.1}
            | {"p": 0.5, "q_bh": 0.9, "q_by": 1.0, "n_null": n_null}
            for k in range(325)
        ]
        return list(pair_sentences(SCHEMAS["pair_tests"].of(rows), "feature", level=0.95))

    (untestable,) = said(30)
    assert untestable.startswith("Not testable with this plan")
    assert "406 random features" in untestable
    assert "to name a single one, 6\u202f499" in untestable
    assert "0 pairs" not in untestable
    assert "0 pairs of 325 move" in said(406)[0]


# ---- text


# ---- drawing


# ---- colour


def luminance(colour):
    parts = [int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.03928 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(a, b):
    x, y = sorted((luminance(a), luminance(b)))
    return (y + 0.05) / (x + 0.05)


def test_contrast_of_text_and_marks_in_both_schemes(html):
    style = next(t for a, t in Page(html).blocks if a["tag"] == "style")
    blocks = [
        dict(re.findall(r"--([\w-]+):(#[0-9a-f]{6})", block))
        for block in re.findall(r":root\{(.*?)\}", style, flags=re.S)
    ]
    light, dark = blocks[:2]  # then once more as light-dark()
    relations = [f"k-{name}" for name in (*RELATIONS, "other")]
    for scheme in (light, light | dark):
        for ground in ("paper", "card", "wash"):
            for ink in ("ink", "soft", "accent"):
                assert contrast(scheme[ink], scheme[ground]) >= 4.5, (ink, ground)  # WCAG 2 AA, text
        for ink in ("found", "hint", "null", "open", "none"):
            assert contrast(scheme[ink], scheme["card"]) >= 4.5, ink
        assert contrast(scheme["warn-ink"], scheme["warn-bg"]) >= 4.5
        for mark in (*relations, "fit", "corner", "mark"):
            assert contrast(scheme[mark], scheme["card"]) >= 3.0, mark  # WCAG 2 AA, graphics
    ramp = [luminance(light[f"v{k}"]) for k in range(17)]
    assert ramp == sorted(ramp, reverse=True)  # more pairs are darker on paper, and lighter in the dark
    assert [luminance(dark[f"v{k}"]) for k in range(17)] == sorted(
        luminance(dark[f"v{k}"]) for k in range(17)
    )
