"""Files of an SAE from the Hugging Face Hub: one request for the commit and the list of files, then exactly
the files that are needed.

Without a network, or with HF_HUB_OFFLINE=1, what is in the local cache is used.
"""

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from polysem.errors import FormatError, UnknownReferenceError
from polysem.saes.dialects import known_files

_COMMIT = re.compile(r"[0-9a-f]{40}")
_SINGLE_FILES = (".npz", ".pt", ".pth", ".safetensors")


class Fetched(NamedTuple):
    """Files in the local cache."""

    path: Path
    """folder or file of the SAE"""
    commit: str


def fetch(repo: str, path: str, *, revision: str | None) -> Fetched:
    """The SAE at `path` of `repo`, in the local cache.

    Args:
        repo: owner/name.
        path: folder or file in the repository; "" is its root.
        revision: commit, branch or tag; None is the main branch. Whatever is given, the commit is returned.

    Raises:
        UnknownReferenceError: absent, private or gated repository, unknown revision, no such path, no network
            and nothing cached.
        FormatError: the path exists but holds no SAE file of a known format.
    """
    from huggingface_hub import HfApi, hf_hub_download
    from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled

    with _hub_errors(repo, revision):
        try:
            info = HfApi().model_info(repo, revision=revision)
        except (OfflineModeIsEnabled, LocalEntryNotFoundError, *_network_errors()):
            return _cached(repo, path, revision=revision)
        commit = info.sha
        if commit is None or not _COMMIT.fullmatch(commit):
            raise UnknownReferenceError(f"the Hub gave no commit for {repo}@{revision or 'main'}: {commit!r}")
        names = [sibling.rfilename for sibling in info.siblings or []]
        wanted = _wanted(repo, path, names)
        local = {name: Path(hf_hub_download(repo, name, revision=commit)) for name in wanted}
    name, where = next(iter(local.items()))
    root = where.parents[name.count("/")]
    return Fetched(root / path if path else root, commit)


def _wanted(repo: str, path: str, names: list[str]) -> list[str]:
    """The files to download: of a folder those that a dialect reads, of a file itself and the configurations
    around it."""
    if path in names:
        folder = path.rsplit("/", 1)[0] + "/" if "/" in path else ""
        near = [folder + name for name in known_files() if name.endswith(".json")]
        return [path, *(name for name in near if name in names and name != path)]
    prefix = f"{path}/" if path else ""
    inside = [name for name in names if name.startswith(prefix)]
    if not inside:
        raise UnknownReferenceError(
            f"{repo} has no {path!r}; its top level holds {_top_level(names)}",
            hint=f"hub:{repo}/PATH, with PATH as on the Hub",
        )
    wanted = [prefix + name for name in known_files() if prefix + name in inside]
    wanted += [
        n
        for n in inside
        if n.endswith(_SINGLE_FILES) and "/" not in n.removeprefix(prefix) and n not in wanted
    ][:1]
    if not wanted:
        below = sorted({n.removeprefix(prefix).split("/")[0] for n in inside})
        raise FormatError(
            f"hub:{repo}/{path} holds no SAE file of a known format; it holds {', '.join(below[:12])}",
            hint="name the folder or the file of one SAE",
        )
    parent = path.rsplit("/", 1)[0] + "/config.json" if "/" in path else "config.json"
    return wanted + ([parent] if path and parent in names and parent not in wanted else [])


def _top_level(names: list[str]) -> str:
    tops = sorted({name.split("/")[0] for name in names})
    return ", ".join(tops[:12]) + (f", ... ({len(tops)})" if len(tops) > 12 else "")


def _cached(repo: str, path: str, *, revision: str | None) -> Fetched:
    """What an earlier run left in the cache. huggingface_hub finds the commit of a branch from its own
    records."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        root = Path(snapshot_download(repo, revision=revision, local_files_only=True))
    except LocalEntryNotFoundError as error:
        raise UnknownReferenceError(
            f"no network, and {repo}@{revision or 'main'} is not in the cache",
            hint=f"with a network: hf download {repo} --include '{path}{'/*' if path else '*'}'",
        ) from error
    if not (root / path).exists():
        raise UnknownReferenceError(
            f"no network, and of {repo}@{root.name[:8]} the cache does not hold {path!r}",
            hint=f"with a network: hf download {repo} --include '{path}*'",
        )
    return Fetched(root / path, root.name)


@contextmanager
def _hub_errors(repo: str, revision: str | None) -> Iterator[None]:
    """Turns the Hub's errors into ours, in one place. The order matters: a gated repository is also one that
    is not found."""
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    page = f"https://huggingface.co/{repo}"
    try:
        yield
    except GatedRepoError as error:
        raise UnknownReferenceError(
            f"{repo} is gated: its licence must be accepted first",
            hint=f"accept it at {page}, then set HF_TOKEN or run: hf auth login",
        ) from error
    except RevisionNotFoundError as error:
        raise UnknownReferenceError(
            f"{repo} has no revision {revision!r}", hint=f"see {page}/commits/main"
        ) from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise UnknownReferenceError(
            f"there is no repository {repo!r} on the Hub, or it is private",
            hint=f"check the spelling at {page}; for a private one set HF_TOKEN or run: hf auth login",
        ) from error
    except (HfHubHTTPError, OSError, *_network_errors()) as error:
        raise UnknownReferenceError(
            f"downloading from {repo} failed: {error}",
            hint="check network and disk space (df -h ~/.cache/huggingface); complete files are kept",
        ) from error


def _network_errors() -> tuple[type[Exception], ...]:
    """What the HTTP clients of huggingface_hub raise without a connection, to be asked when something was
    raised.

    The client changed with the versions (requests before 1.0, then httpx, then httpx2), and whichever it was
    is imported by then.
    """
    clients = (
        ("httpx2", ("TransportError",)),
        ("httpx", ("TransportError",)),
        ("requests.exceptions", ("ConnectionError", "Timeout")),
    )
    loaded = [(sys.modules[module], names) for module, names in clients if module in sys.modules]
    return (
        ConnectionError,
        TimeoutError,
        *(getattr(module, name) for module, names in loaded for name in names),
    )
