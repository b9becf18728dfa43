"""`polysem guard`: is a feature of a study a safe handle on a concept?

    guard/{guard_monitors,guard_alarms,guard_recovery,guard_neurons,guard_evasion,guard_findings}.parquet

All of it happens inside local models, on words and texts that the concept file names.
"""

from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from polysem.boundary.files import local_path
from polysem.config import FileRef, Section, parse_section, parse_toml, read_text
from polysem.engine.side_effects import tokens_of
from polysem.engine.task import Made, Task
from polysem.errors import ConfigError
from polysem.seeds import rng_for
from polysem.store import io

STAGE = "guard"
CHOICE = 4
"""prompts of the choice for each of the report, where the corpus has them"""
FRAME = "Voici un texte : "
"""of another language than what follows: the shift that every concept has"""


class ConceptConfig(Section):
    """What is guarded; `polysem guard --init` prints it with its defaults."""

    words: str
    """a category, or words with commas"""
    on: FileRef = ""
    off: FileRef = ""
    shift_on: FileRef = ""
    shift_off: FileRef = ""
    sae: str = ""
    features: tuple[int, ...] = ()
    clamped: int = Field(1, ge=1, le=64)
    k: int = Field(8, ge=1)
    documents: int = Field(400, ge=40)
    length: int = Field(24, ge=6)
    prompts: int = Field(16, ge=4)
    effect: float = Field(0.5, gt=0)

    def check(self) -> None:
        """It was checked when it was read."""

    def recorded(self) -> dict[str, Any]:
        """As it goes into the manifest: files by content."""
        files = {name: getattr(self, name) for name in ("on", "off", "shift_on", "shift_off")}
        return self.model_dump(mode="json") | {
            name: io.sha256_of(local_path(file)) for name, file in files.items() if file
        }


def load_concept(path: Path) -> ConceptConfig:
    """The concept of a file.

    Raises:
        ConfigError: naming the file, the key, the value and what was expected.
    """
    text = read_text(path, what="concept", hint="polysem guard --init > concept.toml")
    found = parse_section(ConceptConfig, parse_toml(text, origin=str(path)), origin=str(path))
    for a, b in (("on", "off"), ("shift_on", "shift_off")):
        if bool(getattr(found, a)) != bool(getattr(found, b)):
            raise ConfigError(
                f"{path}: {a} and {b} go together; one of them is empty",
                hint=f"name both {a} and {b}, or none",
            )
    # files are looked for beside the concept file
    beside = {
        name: str(path.parent / value)
        for name in ("on", "off", "shift_on", "shift_off")
        if (value := getattr(found, name)) and not Path(value).is_absolute()
    }
    return found.model_copy(update=beside)


def make(task: Task) -> Made:
    """The tables of a concept."""
    from polysem.behaviour.guard import guard_rows
    from polysem.store.tables import STAGES

    found = guard_rows(_scene(task), reporter=task.how.reporter)
    return task.whole({schema.name: schema.of_rows(found[schema.name]) for schema in STAGES[STAGE]})


def _scene(task: Task) -> Any:
    from polysem.behaviour.guard import GuardScene, split_prompts
    from polysem.corpus import token_rows
    from polysem.positions import positions_of
    from polysem.side_effects.directions import read_texts

    concept: ConceptConfig = task.options
    context, study = task.context, task.study
    model, saes = context.model, context.saes
    label = concept.sae or next(iter(saes))
    if label not in saes:
        raise ConfigError(f"no dictionary {label!r} in the study; expected one of {', '.join(saes)}")
    sae = saes[label]
    if sae.reads != sae.writes:
        raise ConfigError(
            f"{label} reads {sae.reads} and writes {sae.writes}; a handle is a dictionary of one site",
            hint="set sae in the concept file",
        )
    if bad := [k for k in concept.features if not 0 <= k < sae.d_sae]:
        raise ConfigError(f"feature {bad[0]} of {label}; expected 0 to {sae.d_sae - 1}")
    tokens = tokens_of(model, concept.words, word_start=not study.prompts.chat_template)
    inside = np.zeros(model.spec.d_vocab, dtype=bool)
    inside[list(tokens)] = True
    policy = positions_of(model, sae)

    def corpus(length: int, n: int) -> np.ndarray:
        return token_rows(
            study.corpus.ref, model, n_tokens=n * length, context=length, positions=policy
        ).tokens

    long = corpus(min(2 * concept.length, model.spec.n_ctx), 4 * concept.documents)
    rng = rng_for(study.seed, STAGE, "rows")
    prompts, others = split_prompts(
        rng.permutation(long), inside, n=(1 + CHOICE) * concept.prompts, length=concept.length
    )
    n_report = min(concept.prompts, len(prompts) // 2)

    def rows_of(file: str) -> list[list[int]]:
        kept = [
            policy.row(model.tokenize(text, prepend_bos=False))[: model.spec.n_ctx]
            for text in read_texts(local_path(file))
        ]
        return [ids for ids in kept if len(ids) > 2]

    def labelled(on_file: str, off_file: str) -> tuple[list[list[int]], np.ndarray]:
        sides = [rows_of(on_file), rows_of(off_file)]
        ids = [one for side in sides for one in side]
        on = np.repeat([True, False], [len(side) for side in sides])
        order = rng.permutation(len(ids))
        return [ids[k] for k in order], on[order]

    if concept.on:
        documents = labelled(concept.on, concept.off)
    else:
        rows = rng.permutation(corpus(concept.length, concept.documents))[: concept.documents]
        documents = (rows.tolist(), inside[rows].any(1))
    n_front = len(policy.front)
    frame = model.tokenize(FRAME, prepend_bos=False)
    framed = [[*one[:n_front], *frame, *one[n_front:]][: model.spec.n_ctx] for one in documents[0]]
    shifts = {"none": documents, "frame": (framed, documents[1])}
    if concept.shift_on:
        shifts["files"] = labelled(concept.shift_on, concept.shift_off)
    return GuardScene(
        model, sae, tokens, shifts, prompts[:n_report], prompts[n_report:], others[: concept.prompts],
        features=concept.features, clamped=concept.clamped, k=concept.k,
        effect=concept.effect, seed=study.seed,
    )  # fmt: skip
