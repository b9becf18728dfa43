"""Relations that are no stored table: pairs with what was measured of them, pushes with intervals, hubs,
coordinates that many features share."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from polysem.config import Study
from polysem.explore.query import SIDES
from polysem.explore.relations import Field, Relation, of_schema, with_fields
from polysem.report.toward import QUOTED
from polysem.store.tables import PAIR_EFFECTS, PAIRS


def register(cursor: Any, stored: Mapping[str, Relation], study: Study) -> dict[str, Relation]:
    """Make what the relations need in DuckDB; gives the relations whose tables are there."""
    found: dict[str, Relation] = {}
    _names(cursor, there="features" in stored)
    _measured(cursor, there="pair_effects" in stored)
    if "pairs" in stored:
        found["pairs"] = _pairs()
        found["hubs"] = _hubs(cursor)
    if "features" in stored:
        found["coordinates"] = _coordinates(cursor)
    if "pair_effects" in stored:
        found["pushes"] = _pushes(cursor, study)
    return found


def _names(cursor: Any, *, there: bool) -> None:
    """The gloss of every feature, in memory: searches and pages join it; and the words of its gloss with those of the
    tokens that activate it, and with those that it writes."""
    gloss = "lower(coalesce(gloss, '')) AS lower_gloss"
    # What a gloss quotes is where the feature fired once, not what it is about.
    own = f"regexp_replace(lower_gloss, '{QUOTED}', ' ', 'g')"
    tokens = [
        f"{own} || ' ' || lower(array_to_string(tokens_{side}_str, ' ')) AS lower_{side}" for side in SIDES
    ]
    words = [
        rf"list_distinct(regexp_extract_all(lower_{side}, '[\p{{L}}\p{{N}}]+')) AS words_{side}"
        for side in SIDES
    ]
    rows = (
        f"SELECT sae, feature, gloss, {gloss}, {', '.join((*tokens, *words))} FROM t_features"
        if there
        else "SELECT '' AS sae, 0 AS feature, '' AS gloss, '' AS lower_gloss, '' AS lower_in, '' AS lower_out, "
        "[''] AS words_in, [''] AS words_out WHERE false"
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


def _pairs() -> Relation:
    join = "LEFT JOIN measured m ON m.sae = b.sae AND m.i = b.i AND m.j = b.j"
    return with_fields(
        of_schema(PAIRS, title="Pairs that interfere though their glosses do not"),
        Field(
            "strength",
            "number",
            "cosine",
            "size of the interference, without its sign",
            "abs(b.interference)",
        ),
        Field(
            "pushes",
            "integer",
            "",
            "how often it was pushed: loci and directions measured",
            "coalesce(m.n, 0)",
            "m",
        ),
        joins={"m": join},
    )


def _hubs(cursor: Any) -> Relation:
    cursor.execute(
        """CREATE OR REPLACE VIEW hubs AS
        WITH sides AS (
            SELECT sae, i AS feature, j AS other, interference, is_duplicate OR is_dense AS flagged FROM t_pairs
            UNION ALL
            SELECT sae, j, i, interference, is_duplicate OR is_dense FROM t_pairs)
        SELECT sae, feature, count(*) AS n_pairs, count(*) FILTER (NOT flagged) AS n_unflagged,
            count(*) FILTER (interference > 0) AS n_positive, count(*) FILTER (interference < 0) AS n_negative,
            max(abs(interference)) AS strongest, sum(interference * interference) AS load
        FROM sides GROUP BY sae, feature"""
    )
    return Relation(
        name="hubs",
        title="Features by the number of unrelated features they interfere with",
        base="hubs",
        key=("sae", "feature"),
        fields=(
            Field("sae", "text", "", "label of the SAE in the study", "b.sae"),
            Field("feature", "feature", "", "row of W_dec", "b.feature"),
            Field("n_pairs", "integer", "pairs", "listed pairs that it is part of", "b.n_pairs"),
            Field(
                "n_unflagged",
                "integer",
                "pairs",
                "those that are neither duplicate nor dense",
                "b.n_unflagged",
            ),
            Field("n_positive", "integer", "pairs", "those with interference above 0", "b.n_positive"),
            Field("n_negative", "integer", "pairs", "those with interference below 0", "b.n_negative"),
            Field("strongest", "number", "cosine", "largest |interference| among them", "b.strongest"),
            Field("load", "number", "cosine^2", "sum of squared interference over them", "b.load"),
            Field("gloss", "text", "", "primary gloss", "n_feature.gloss", "feature"),
        ),
        joins={
            "feature": "LEFT JOIN names n_feature ON n_feature.sae = b.sae AND n_feature.feature = b.feature"
        },
        features=("feature",),
        aggregate=True,
    )


def _coordinates(cursor: Any) -> Relation:
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
    return Relation(
        name="coordinates",
        title="Coordinates that many features write to",
        base="coordinates",
        key=("sae", "coordinate"),
        fields=(
            Field("sae", "text", "", "label of the SAE in the study", "b.sae"),
            Field("site", "text", "", "hook point", "b.site"),
            Field("coordinate", "integer", "", "coordinate (neuron) of the site", "b.coordinate"),
            Field(
                "n_features",
                "integer",
                "features",
                "features with it among their 3 largest entries",
                "b.n_features",
            ),
            Field("n_first", "integer", "features", "features whose largest entry it is", "b.n_first"),
            Field(
                "share", "number", "features", "sum of those squared entries of unit decoder rows", "b.share"
            ),
            Field("largest", "number", "cosine", "largest entry of a unit decoder row", "b.largest"),
        ),
        texts=("sae", "site"),
        aggregate=True,
    )


def _pushes(cursor: Any, study: Study) -> Relation:
    """Pair effects with intervals of Student's t over prompts."""
    from scipy.special import stdtrit

    level = study.effects.level
    counts = [n for (n,) in cursor.execute("SELECT DISTINCT n_prompts FROM t_pair_effects").fetchall()]
    cursor.execute("CREATE OR REPLACE TABLE student (n BIGINT, t DOUBLE)")
    for n in (n for n in counts if n > 1):
        cursor.execute("INSERT INTO student VALUES (?, ?)", [n, float(stdtrit(n - 1, 0.5 + level / 2))])
    base = of_schema(PAIR_EFFECTS, title="What a push of one feature does to the tokens of another")
    words = (
        f"of the {100 * level:g} % interval over prompts (Student's t); targets and sources are not resampled"
    )
    return with_fields(
        replace(base, name="pushes"),
        Field("lo", "number", "nats", f"lower end {words}", "b.logodds - st.t * b.logodds_se", "st"),
        Field("hi", "number", "nats", f"upper end {words}", "b.logodds + st.t * b.logodds_se", "st"),
        joins={"st": "LEFT JOIN student st ON st.n = b.n_prompts"},
    )
