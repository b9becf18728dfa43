"""The export on a plain file server shows what the server shows."""

import pytest

from polysem.explore import Book, export_static

VIEWS = [
    "#/home",
    "#/map?box=-0.5,0.2,0.25,0.6",
    "#/pairs",
    "#/pairs?f=similarity<=0&f=interference!=0.5&q=horses, ship&sort=gloss_j&page=2",
    "#/pairs?f=gloss_i~RIVER&f=is_dense=false&sort=-similarity",
    "#/pairs?all=1&near=7&sort=interference",
    "#/steering",
    "#/steering?f=target~danube, oath&f=relation=pair&sort=-logodds",
    "#/steering?f=target~@location, oath&sort=logodds",
    "#/steering?all=1&sort=-similarity&page=3",
    "#/hubs",
    "#/hubs/coordinates",
    "#/results",
    "#/results/presets",
    "#/results/transfer",
    "#/tables/effects?sort=-p",
    "#/tables/features?q=ship&f=tokens_in_str~keel",
    "#/feature/blocks.2.hook_resid_post/5",
    "#/layers?f=lift=0&f=target~plt&sort=-weight",
    "#/layers",
]


@pytest.fixture(scope="module")
def exported(serving, folder, tmp_path_factory):
    return serving.files(export_static(Book(folder), tmp_path_factory.mktemp("export") / "site"))


@pytest.fixture(scope="module")
def both(long_visit, served, exported):
    return long_visit(served), long_visit(exported)


@pytest.mark.parametrize("view", VIEWS)
def test_a_view_reads_the_same(both, view):
    words, graphs = [], []
    for here in both:
        here.open(view)
        tools = here.page.query_selector_all(".tools, .cards, [data-tool]")
        for node in tools:
            node.evaluate("node => node.remove()")
        words.append(here.text())
        graphs.append(len(here.page.query_selector_all("svg *")))
        assert not here.wrong
    assert len(words[0]) > 60
    assert words[0] == words[1]
    assert graphs[0] == graphs[1]


def test_a_pair_card_and_its_neighbours_read_the_same(visit, served, exported):
    words = []
    for place in (served, exported):
        here = visit(place)
        here.open("#/steering")
        here.page.click("table.grid tbody a.open")
        here.settled()
        words.append(here.text())
        assert not here.wrong
    assert words[0] == words[1]
    assert "noise floor" in words[0]


def test_rows_can_be_saved_from_the_export_as_from_the_server(visit, served, exported):
    saved = []
    for place in (served, exported):
        here = visit(place)
        here.open("#/pairs?f=interference>=0.3&sort=-interference")
        with here.page.expect_download() as download:
            here.page.click(".tools >> text=CSV")
        lines = download.value.path().read_bytes().decode().splitlines()
        saved.append([line.split(",")[:3] for line in lines])
        assert not here.wrong
    assert len(saved[0]) > 20
    assert saved[0] == saved[1]


def test_live_is_said_to_be_off(visit, exported):
    here = visit(exported)
    here.open("#/live")
    assert "--live" in here.text()
