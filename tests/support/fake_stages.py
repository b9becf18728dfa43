"""Stand-ins for the stage functions: they write small tables and note that they were called."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa

from polysem.config import Study
from polysem.errors import PolysemError
from polysem.progress import SILENT
from polysem.store.schema import Schema
from polysem.store.tables import HOMES, PLAN, PROMPTS, STAGES, TRIALS
from polysem.types import Site

N_BATCHES = 5
SITE = "blocks.0.hook_resid_post"


def row(schema: Schema, **values: Any) -> dict[str, Any]:
    """A row of a schema with something in every column that must hold something."""
    blank: dict[str, Any] = {}
    for column in schema.columns:
        kind = column.dtype
        if column.nullable:
            blank[column.name] = None
        elif pa.types.is_list(kind):
            blank[column.name] = []
        elif pa.types.is_string(kind):
            blank[column.name] = ""
        elif pa.types.is_boolean(kind):
            blank[column.name] = False
        else:
            blank[column.name] = 0
    return blank | values


def table(schema: Schema, rows: Sequence[dict[str, Any]]) -> pa.Table:
    return pa.Table.from_pylist([row(schema, **r) for r in rows], schema=schema.arrow())


def fake_sae(ref: str) -> Any:
    return SimpleNamespace(
        reads=Site.parse(SITE),
        writes=Site.parse(SITE),
        d_sae=3,
        prepend_bos=True,
        bos_stand_in="none",
        centre_input=False,
        nbytes=100,
        provenance=SimpleNamespace(ref=ref, revision="r1", dialect="fake", measured={"fvu": 0.1}),
    )


@dataclass
class Fakes:
    """Stand-ins for the stage functions; `calls` notes which ran, `value` goes into the features table."""

    calls: list[str] = field(default_factory=list)
    value: float = 1.0
    noise: float = 0.0
    breaks: str = ""

    def note(self, name: str) -> None:
        self.calls.append(name)
        if name == self.breaks:
            raise PolysemError(f"{name} breaks")

    def load_model(self, ref: str, **_: Any) -> SimpleNamespace:
        self.note("model")
        return SimpleNamespace(spec=FakeSpec(ref), bos_id=0)

    def load_sae(
        self,
        ref: str,
        *,
        site: str | None,
        model: object,
        max_fvu: float,
        allow_other_model: bool,
        prepend_bos: bool | None,
    ) -> SimpleNamespace:
        self.note("sae gated" if model is not None else "sae")
        return fake_sae(ref)

    def build_features(
        self, study: Study, model: object, saes: dict[str, Any], *, workdir: Path, reporter: object
    ):
        self.note("features")
        names = {schema.name: schema for schema in STAGES["features"]}
        rows = [{"sae": label, "feature": k, "max_act": self.value} for label in saes for k in range(3)]
        made = {
            name: table(schema, rows) if name == "features" else schema.empty()
            for name, schema in names.items()
        }
        return SimpleNamespace(
            tables=lambda: made,
            embeddings={label: np.ones((3, 2), np.float32) for label in saes},
            embedder=("fake", "00"),
        )

    def map_pairs(self, sae: object, features: Any, *, config: object, label: str) -> SimpleNamespace:
        self.note(f"pairs {label}")
        made = {schema.name: schema.empty() for schema in STAGES["pairs"]}
        made["pairs"] = table(HOMES["pairs"][1], [{"sae": label, "i": 0, "j": 1}])
        return SimpleNamespace(tables=lambda: made)

    def make_prompts(self, *_: object, **__: object) -> pa.Table:
        return table(PROMPTS, [{"prompt_id": "p"}])

    def make_plan(
        self,
        study: Study,
        features: Any,
        pairs: Any,
        prompts: pa.Table,
        saes: Any,
        *,
        model: Any,
        vectors: Any,
    ) -> SimpleNamespace:
        self.note("plan")
        assert vectors is None
        assert pairs.pairs.num_rows == len(study.saes)
        for label in saes:  # one dictionary's rows, read by themselves
            assert pairs.only(label).pairs["sae"].to_pylist() == [label]
            assert set(features.only(label).features["sae"].to_pylist()) <= {label}
        rows = [{"trial_id": f"{b}-{k}", "batch": b} for b in range(N_BATCHES) for k in range(2)]
        made = {schema.name: schema.empty() for schema in STAGES["plan"]}
        return SimpleNamespace(tables=lambda: made | {"plan": table(PLAN, rows), "prompts": prompts})

    def run_batches(
        self,
        plan: pa.Table,
        prompts: pa.Table,
        *_: object,
        batches: list[int],
        reporter: Any = SILENT,
        **__: object,
    ):
        self.note(f"trials {batches[0]}-{batches[-1]}")
        rows = []
        for batch in reporter.track(batches, total=len(batches), label="trials"):
            planned = [r for r in plan.to_pylist() if r["batch"] == batch]
            rows += [{"trial_id": r["trial_id"], "status": "ok", "kl": batch + self.noise} for r in planned]
        return table(TRIALS, rows)

    def replicates_of(self, saes: dict[str, Any], *, seed: int) -> SimpleNamespace:
        self.note("dictionaries")
        return SimpleNamespace(
            tables=lambda: {schema.name: schema.empty() for schema in STAGES["dictionaries"]}
        )

    def respond(self, *_: object, **__: object) -> dict[str, pa.Table]:
        self.note("response")
        return {schema.name: schema.empty() for schema in STAGES["response"]}

    def estimate(
        self, plan: pa.Table, trials: pa.Table, *, config: object, seed: int, **_: object
    ) -> SimpleNamespace:
        self.note("effects")
        assert trials.num_rows == plan.num_rows
        return SimpleNamespace(tables=lambda: {schema.name: schema.empty() for schema in STAGES["effects"]})

    def write_report(self, folder: Path) -> Path:
        self.note("report")
        (folder / "report.html").write_text("<html>")
        return folder / "report.html"


@dataclass(frozen=True)
class FakeSpec:
    ref: str
    revision: str = "m1"
    device: str = "cpu"
    dtype: str = "float32"


@dataclass(frozen=True)
class FakeFeatures:
    features: pa.Table
    glosses: pa.Table
    contexts: pa.Table
    clusters: pa.Table
    embeddings: dict[str, np.ndarray]
