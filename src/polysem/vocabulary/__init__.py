"""The closed choices of a study, each at home here: a record with its name, label, unit, colour and one line of help.

Whoever lists, labels, colours or explains a locus, a relation, an outcome, a dose unit, a token set, a reason or a
contrast takes it from here: the settings, the plan, the estimates, the tables' documentation, the report's legends, the
explorer (as JSON) and the docs. Adding a member is adding a record. Loci, controls, outcomes and similarities may also come
from other distributions, by an entry point of the group `polysem.loci`, `polysem.controls`, `polysem.outcomes` or
`polysem.similarities` that names a record.

A record names what carries it out as "module:attribute", so that reading a finished run imports no torch.
"""

from polysem.registry import attribute
from polysem.vocabulary.reading import (
    CATEGORIES,
    CONTRASTS,
    COVARIATES,
    KL,
    OUTCOMES,
    SIDE_EFFECTS,
    SIMILARITIES,
    TOKEN_SETS,
    CategoryName,
    SimilarityRef,
    TokenSetName,
    contrast,
    similarity,
    similarity_folder,
    similarity_name,
)
from polysem.vocabulary.steering import (
    CONTROLS,
    DOSE_UNITS,
    LOCI,
    POSITIONS,
    PRESETS,
    REASONS,
    RELATIONS,
    AskedUnit,
    ControlName,
    LocusName,
    Positions,
    PresetName,
)
from polysem.vocabulary.words import (
    Contrast,
    Control,
    DoseUnit,
    Locus,
    Mark,
    Outcome,
    Relation,
    Similarity,
    Vocabulary,
    Word,
)

__all__ = [
    "CATEGORIES", "CONTRASTS", "CONTROLS", "COVARIATES", "DOSE_UNITS", "KL", "LOCI", "OUTCOMES",
    "POSITIONS", "PRESETS", "REASONS", "RELATIONS", "SIDE_EFFECTS", "SIMILARITIES", "TOKEN_SETS",
    "AskedUnit", "CategoryName", "Contrast", "Control", "ControlName", "DoseUnit", "Locus", "LocusName",
    "Mark", "Outcome", "Positions", "PresetName", "Relation", "Similarity", "SimilarityRef",
    "TokenSetName", "Vocabulary", "Word", "attribute", "contrast", "similarity", "similarity_folder",
    "similarity_name",
]  # fmt: skip
