"""Nothing but `polysem.boundary` parses a foreign file. What others may parse is their own, and says here what it is."""

import ast
from pathlib import Path

SOURCE = Path(__file__).resolve().parents[2] / "src" / "polysem"
PARSERS = {
    "json.load", "json.loads", "tomllib.load", "tomllib.loads", "csv.reader", "csv.DictReader", "ast.literal_eval",
    "np.load", "np.loadtxt", "np.genfromtxt", "np.fromfile", "torch.load", "pickle.load", "pickle.loads", "gzip.open",
    "gzip.decompress", "zipfile.ZipFile", "zlib.decompress", "safe_open", "load_file", "yaml.safe_load", "expanduser",
    "read_text", "read_bytes",
}  # fmt: skip
OWN = {
    "act/base.py": "recipes that plan/layout wrote into a table",
    "categories.py": "a file of the package",
    "cli/shell.py": "a file of the package",
    "explore/export.py": "lists that the export itself wrote",
    "explore/server.py": "files of the package",
    "http.py": "answers of servers, bounded there",
    "models/checkpoint.py": "names of tensors of a file that check_safetensors has seen",
    "models/gguf.py": "a file of the package; GGUF inside telling()",
    "models/hf.py": "what a tokenizer in memory says of itself",
    "paper/tables.py": "a file of the package",
    "report/html.py": "a file of the package",
    "report/transfer_section.py": "columns that the transfer stages wrote",
    "saes/fidelity.py": "a file of the package",
    "saes/releases.py": "a file of the package",
    "selftest/record.py": "a file of the package",
    "store/io.py": "result files, schema checked, regular files only",
    "store/lock.py": "locks and /proc",
    "store/manifest.py": "/proc",
    "store/run.py": "the study's own file",
    "targets/parse.py": "answers of http.py",
    "targets/served.py": "answers of http.py",
    "testing/conformance_sae.py": "damages a file on purpose",
    "training/run.py": "a checkpoint of its own, inside telling()",
}
BROAD = {"trials.py", "cli", "boundary"}
"""where `except Exception` may stand"""


def _calls(tree: ast.AST) -> set[str]:
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            if name.startswith(("io.", "foreign.")):  # store.io and boundary.text
                continue
            found |= {name, name.rsplit(".", 1)[-1]} & PARSERS
    return found


def _parsers() -> dict[str, set[str]]:
    return {
        path.relative_to(SOURCE).as_posix(): calls
        for path in sorted(SOURCE.rglob("*.py"))
        if path.parts[len(SOURCE.parts)] != "boundary"
        and (calls := _calls(ast.parse(path.read_text(encoding="utf-8"))) - _ours(path))
    }


def _ours(path: Path) -> set[str]:
    """Names of the list that a module has from the boundary, or from a module that has them from there."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names = {
        (alias.asname or alias.name)
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("polysem")
        for alias in node.names
    }
    names |= {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    return names & PARSERS


def test_nothing_else_parses_a_foreign_file():
    assert set(_parsers()) - set(OWN) == set(), "read it through polysem.boundary"


def test_every_exception_is_still_one():
    assert set(OWN) - set(_parsers()) == set()


def test_only_the_boundary_catches_everything():
    broad = {
        path.relative_to(SOURCE).as_posix()
        for path in SOURCE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ExceptHandler)
        and (node.type is None or ast.unparse(node.type) == "Exception")
        and path.relative_to(SOURCE).parts[0] not in BROAD
    }
    assert broad - {"explore/live.py", "explore/server.py"} == set()
