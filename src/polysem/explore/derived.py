"""Relations that are no stored table: pairs with what was measured of them, steered effects with intervals, hubs,
coordinates that many features share."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from polysem.categories import QUOTED, builtin
from polysem.config import Study
from polysem.explore.relations import Field, RunTable, names_of, of_schema, with_fields
from polysem.store.tables import PAIR_EFFECTS, PAIRS, TOWARD
from polysem.vocabulary import TOKEN_SETS

_SAE = Field("sae", "text", "", "label of the SAE in the study")
_FEATURE = Field("feature", "feature", "", "row of W_dec")
_GLOSS = Field("gloss", "text", "", "primary gloss", "n_feature.gloss", "feature")


def register(cursor: Any, stored: Mapping[str, RunTable], study: Study) -> dict[str, RunTable]:
    """Make what the relations need in DuckDB; gives the relations whose tables are there."""
    found: dict[str, RunTable] = {}
    _names(cursor, there="features" in stored)
    _measured(cursor, there="pair_effects" in stored)
    if "pairs" in stored:
        found["pairs"] = _pairs()
        found["hubs"] = _hubs(cursor)
    if "features" in stored:
        found["coordinates"] = _coordinates(cursor)
    if "pair_effects" in stored:
        found["steering"] = _steering(cursor, study)
    if "toward" in stored:
        found["toward"] = _toward(cursor, study)
    if {"matching", "stability"} <= set(stored):
        found["matches"] = _matches(cursor)
    return found


def _names(cursor: Any, *, there: bool) -> None:
    """The gloss of every feature, in memory: searches and pages join it; and the words of its gloss with those of the
    tokens that activate it, and with those that it writes; and those tokens alone, which are what a trial reads."""
    # What a gloss quotes is where the feature fired once, not what it is about.
    own = f"regexp_replace(lower_gloss, '{QUOTED}', ' ', 'g')"
    columns = ["gloss", "lower(coalesce(gloss, '')) AS lower_gloss"]
    for side, tokens in TOKEN_SETS.items():
        columns.append(f"{own} || ' ' || lower(array_to_string({tokens.column}_str, ' ')) AS lower_{side}")
        columns.append(f"lower(array_to_string({tokens.column}_str, ' ')) AS read_{side}")
        for what, text in (("words", "lower"), ("read_words", "read")):
            columns.append(
                rf"list_distinct(regexp_extract_all({text}_{side}, '[\p{{L}}\p{{N}}]+')) AS {what}_{side}"
            )
    rows = f"SELECT sae, feature, {', '.join(columns)} FROM t_features"
    if not there:
        empty = [
            f"'' AS lower_{side}, '' AS read_{side}, [''] AS words_{side}, [''] AS read_words_{side}"
            for side in TOKEN_SETS
        ]
        rows = (
            f"SELECT '' AS sae, 0 AS feature, '' AS gloss, '' AS lower_gloss, {', '.join(empty)} WHERE false"
        )
    cursor.execute(f"CREATE OR REPLACE TABLE names AS {rows}")


def _measured(cursor: Any, *, there: bool) -> None:
    rows = (
        "SELECT sae, least(target, source) AS i, greatest(target, source) AS j, "
        "count(DISTINCT (locus, target, source)) AS n FROM t_pair_effects WHERE relation = 'pair' GROUP BY ALL"
        if there
        else "SELECT '' AS sae, 0 AS i, 0 AS j, 0 AS n WHERE false"
    )
    cursor.execute(f"CREATE OR REPLACE TABLE measured AS {rows}")


def _pairs() -> RunTable:
    steered = "how often it was steered: loci and directions measured"
    size = "size of the interference, without its sign"
    return with_fields(
        of_schema(PAIRS, title="Pairs that interfere though their glosses do not"),
        Field("strength", "number", "cosine", size, "abs(b.interference)"),
        Field("steered", "integer", "", steered, "coalesce(m.n, 0)", "m"),
        joins={"m": "LEFT JOIN measured m ON m.sae = b.sae AND m.i = b.i AND m.j = b.j"},
    )


def _hubs(cursor: Any) -> RunTable:
    cursor.execute(
        """CREATE OR REPLACE VIEW hubs AS
        WITH sides AS (
            SELECT sae, i AS feature, j AS other, interference, is_duplicate OR is_dense AS flagged FROM t_pairs
            UNION ALL
            SELECT sae_j, j, i, interference, is_duplicate OR is_dense FROM t_pairs)
        SELECT sae, feature, count(*) AS n_pairs, count(*) FILTER (NOT flagged) AS n_unflagged,
            count(*) FILTER (interference > 0) AS n_positive, count(*) FILTER (interference < 0) AS n_negative,
            max(abs(interference)) AS strongest, sum(interference * interference) AS load
        FROM sides GROUP BY sae, feature"""
    )
    return RunTable(
        name="hubs",
        title="Features by the number of unrelated features they interfere with",
        base="hubs",
        key=("sae", "feature"),
        fields=(
            *(_SAE, _FEATURE),
            Field("n_pairs", "integer", "pairs", "listed pairs that it is part of"),
            Field("n_unflagged", "integer", "pairs", "those that are neither duplicate nor dense"),
            Field("n_positive", "integer", "pairs", "those with interference above 0"),
            Field("n_negative", "integer", "pairs", "those with interference below 0"),
            Field("strongest", "number", "cosine", "largest |interference| among them"),
            Field("load", "number", "cosine^2", "sum of squared interference over them"),
            _GLOSS,
        ),
        joins={"feature": names_of("feature", "b.feature")},
        features=("feature",),
        aggregate=True,
    )


def _coordinates(cursor: Any) -> RunTable:
    cursor.execute(
        """CREATE OR REPLACE VIEW coordinates AS
        WITH entries AS (
            SELECT sae, site, unnest(neuron_alignment) AS coordinate,
                unnest(range(len(neuron_alignment))) AS place,
                unnest(neuron_alignment_values) / nullif(dec_norm, 0) AS entry
            FROM t_features)
        SELECT sae, any_value(site) AS site, coordinate, count(*) AS n_features,
            count(*) FILTER (place = 0) AS n_first, sum(entry * entry) AS share,
            max(entry) AS largest
        FROM entries GROUP BY sae, coordinate"""
    )
    return RunTable(
        name="coordinates",
        title="Coordinates that many features write to",
        base="coordinates",
        key=("sae", "coordinate"),
        fields=(
            _SAE,
            Field("site", "text", "", "hook point"),
            Field("coordinate", "integer", "", "coordinate (neuron) of the site"),
            Field("n_features", "integer", "features", "features with it among their 3 largest entries"),
            Field("n_first", "integer", "features", "features whose largest entry it is"),
            Field("share", "number", "features", "sum of those squared entries of unit decoder rows"),
            Field("largest", "number", "cosine", "largest entry of a unit decoder row"),
        ),
        texts=("sae", "site"),
        aggregate=True,
    )


def _steering(cursor: Any, study: Study) -> RunTable:
    """Pair effects with intervals of Student's t over prompts."""
    level = study.effects.level
    _student(cursor, "t_pair_effects", ("n_prompts",), level)
    base = of_schema(PAIR_EFFECTS, title="What steering along one feature does to the tokens of another")
    said = (
        f"of the {100 * level:g} % interval over prompts (Student's t); targets and sources are not resampled"
    )
    return with_fields(
        replace(base, name="steering"),
        Field("lo", "number", "nats", f"lower end {said}", "b.logodds - st.t * b.logodds_se", "st"),
        Field("hi", "number", "nats", f"upper end {said}", "b.logodds + st.t * b.logodds_se", "st"),
        joins={"st": "LEFT JOIN student st ON st.n = b.n_prompts"},
    )


def _toward(cursor: Any, study: Study) -> RunTable:
    """Pushes by what they do to the words of a category, with intervals on both halves of the prompts, and whether the
    feature is unrelated to it: neither its gloss nor a token that activates it names a word of it."""
    level = study.effects.level
    _student(cursor, "t_toward", ("n_prompts", "n_select"), level)
    cursor.execute("CREATE OR REPLACE TABLE category_words (category VARCHAR, words VARCHAR[])")
    for name, words in builtin().words.items():
        cursor.execute("INSERT INTO category_words VALUES (?, ?)", [name, sorted(words)])
    half = "of the {:g} % interval over {} prompts (Student's t)"
    on = {"": half.format(100 * level, "confirm"), "select_": half.format(100 * level, "select")}
    least, choice = "b.effect - ci.t * b.effect_se", "b.select - ci.t_select * b.select_se"
    fields = [
        Field("lo", "number", "nats", f"lower end {on['']}", least, "ci"),
        Field("hi", "number", "nats", f"upper end {on['']}", "b.effect + ci.t * b.effect_se", "ci"),
        Field("select_lo", "number", "nats", f"lower end {on['select_']}", choice, "ci"),
        Field(
            "moves",
            "flag",
            "",
            "whether both intervals lie above 0; without select prompts, whether the one does",
            f"coalesce({least} > 0 AND (b.n_select = 0 OR {choice} > 0), false)",
            "ci",
        ),
        Field(
            "unrelated",
            "flag",
            "",
            "a feature whose gloss and activating tokens name no word of the category",
            "coalesce(NOT list_has_any(about.words_in, about.words), false)",
            "about",
        ),
    ]
    return with_fields(
        of_schema(TOWARD, title="Which features push the model toward a category of words"),
        *fields,
        joins={
            "ci": "LEFT JOIN (SELECT a.n AS n, a.t AS t, z.n AS n_select, z.t AS t_select FROM student a, "
            "(SELECT * FROM student UNION ALL SELECT 0, NULL UNION ALL SELECT 1, NULL) z) ci "
            "ON ci.n = b.n_prompts AND ci.n_select = b.n_select",
            "about": "LEFT JOIN (SELECT n.sae, n.feature, n.words_in, k.category, k.words FROM names n, category_words k)"
            " about ON about.sae = b.sae AND about.feature = b.source AND about.category = b.category",
        },
    )


def _matches(cursor: Any) -> RunTable:
    """Which feature of another SAE of the site is the match of one: both ways round."""
    sides = [
        f"SELECT {own} AS sae, {feature} AS feature, {other} AS other, {match} AS other_feature, abs(decoder) AS cosine, stable "
        "FROM t_matching"
        for own, feature, other, match in (
            ("first", "feature", "second", "match"),
            ("second", "match", "first", "feature"),
        )
    ]
    cursor.execute(f"CREATE OR REPLACE VIEW matches AS {' UNION ALL '.join(sides)}")
    return RunTable(
        name="matches",
        title="Features and their matches in other SAEs of their site",
        base="matches",
        key=("sae", "feature", "other"),
        fields=(
            *(_SAE, _FEATURE),
            Field("other", "text", "", "label of another SAE of the site"),
            Field("other_feature", "integer", "", "its match there, one to one"),
            Field("cosine", "number", "cosine", "|cosine| of their decoder rows"),
            Field("stable", "flag", "", "whether they are alike beyond what a turned dictionary reaches"),
            *(
                Field(name, "number", unit, said, f"soft.{name}", "soft")
                for name, unit, said in (
                    ("stability", "share", "of the other SAEs in which its match is stable"),
                    ("nearest", "cosine", "largest |cosine| with a row of another SAE, mean over them"),
                )
            ),
            _GLOSS,
            Field("gloss_other", "text", "", "primary gloss of the match", "n_other.gloss", "other"),
        ),
        joins={
            "feature": names_of("feature", "b.feature"),
            "other": names_of("other", "b.other_feature", sae="b.other"),
            "soft": "LEFT JOIN t_stability soft ON soft.sae = b.sae AND soft.feature = b.feature",
        },
        features=("feature",),
        aggregate=True,
    )


def _student(cursor: Any, table: str, columns: Sequence[str], level: float) -> None:
    """Quantiles of Student's t for the numbers of prompts of a table, added to those known: (n, t)."""
    from scipy.special import stdtrit

    cursor.execute("CREATE TABLE IF NOT EXISTS student (n BIGINT PRIMARY KEY, t DOUBLE)")
    counts = {
        n
        for column in columns
        for (n,) in cursor.execute(f"SELECT DISTINCT {column} FROM {table}").fetchall()
    }
    for n in sorted(n for n in counts if n > 1):
        cursor.execute(
            "INSERT OR REPLACE INTO student VALUES (?, ?)", [n, float(stdtrit(n - 1, 0.5 + level / 2))]
        )
