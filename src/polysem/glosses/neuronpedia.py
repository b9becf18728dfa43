"""Glosses from a Neuronpedia export: `neuronpedia:FOLDER_OR_FILE_OR_URL`, `neuronpedia:MODEL/SOURCE`."""

import httpx

from polysem.glosses.base import GlossReading
from polysem.glosses.export import BUCKET, open_export
from polysem.glosses.select import Collection, Expected, select
from polysem.http import Retries


def read_explanations(
    reference: str, *, expected: Expected, client: httpx.Client | None = None, retries: Retries | None = None
) -> GlossReading:
    """All explanations of an export that belong to one SAE, with the vectors they carry.

    Args:
        reference: folder, file, address, or MODEL/SOURCE at the public bucket.
        expected: what is known of the SAE.
        client: for addresses; None makes one.
        retries: for addresses.

    Raises:
        UnknownReferenceError: nothing there, or no connection.
        FormatError: damaged or foreign file; names file and line.
        MismatchError: the export is of another SAE.
    """
    export = open_export(reference, client=client, retries=retries)
    rows = Collection()
    for row in export.rows("explanations"):
        if "tokens" not in row.fields:  # an export in one folder has rows of activations between
            rows.add(row)
    return select(rows, source=export.name.removeprefix(f"{BUCKET}/"), expected=expected)
