"""The verbs that bring a finished run to others: the Hub, Neuronpedia."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

from typer import Argument, Option

from polysem.cli.shell import AsJson, RunArgument, print_json, result, verb, working


@verb
def push(
    run: RunArgument,
    repo: Annotated[str, Argument(metavar="OWNER/NAME", help="A repository of the Hugging Face Hub.")],
    public: Annotated[bool, Option("--public", help="If it is made now: for everybody.")] = False,
    space: Annotated[
        bool, Option("--space", help="The explorer's static export, as a page in the browser.")
    ] = False,
    listed: Annotated[bool, Option("--list", help="Print what would be sent, and send nothing.")] = False,
    as_json: AsJson = False,
) -> None:
    """Upload a finished run to the Hugging Face Hub, as a data set or with --space as a page. Prints the address."""
    from polysem.report.publish import files_of, push_to_hub, upload_space

    if listed:
        files = files_of(run)
        if as_json:
            print_json({"repo": repo, "files": files})
        else:
            print("\n".join(files))
        return
    with working(f"uploading to {repo}"):
        address = push_to_hub(run, repo, private=not public, space=space)
        if space:
            from polysem.explore.book import Book
            from polysem.explore.export import export_static

            with TemporaryDirectory() as folder:
                upload_space(export_static(Book(run), Path(folder) / "space"), repo)
    result(address, as_json=as_json, key="address")


@verb
def export_neuronpedia(
    run: RunArgument,
    out: Annotated[Path, Option(metavar="DIR", help="A new folder.")],
    sae: Annotated[str, Option(metavar="LABEL", help="Which dictionary of the run.")],
    model_id: Annotated[str, Option(help="Neuronpedia's name of the model: gemma-2-2b.")],
    source_id: Annotated[str, Option(help="Its name of the dictionary: 20-gemmascope-res-16k.")],
    as_json: AsJson = False,
) -> None:
    """Write glosses and pairs of a dictionary in the layout of Neuronpedia's bucket, ready to be uploaded. Prints the folder."""
    from polysem.report.publish import export_neuronpedia as export

    with working("exporting"):
        made = export(run, out, label=sae, model_id=model_id, source_id=source_id)
    result(made, as_json=as_json)
