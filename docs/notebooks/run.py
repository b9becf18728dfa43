"""Runs notebooks and keeps what they show: python docs/notebooks/run.py [NAME.ipynb ...]

No notebook library is needed: code cells run in their order in one namespace, and of the last expression of a cell its HTML
(or text) is kept, as a notebook would. Lines that begin with % or ! belong to a notebook and are left out.
"""

import ast
import contextlib
import io
import json
import sys
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


def execute(notebook: dict[str, Any]) -> None:
    """Run the code cells of a notebook and put their outputs in place; what a cell raises is raised."""
    names: dict[str, Any] = {"__name__": "__main__"}
    for number, cell in enumerate(c for c in notebook["cells"] if c["cell_type"] == "code"):
        source = "".join(line for line in cell["source"] if not line.startswith(("%", "!")))
        tree, said = ast.parse(source), io.StringIO()
        last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
        with contextlib.redirect_stdout(said):
            exec(compile(tree, f"cell {number}", "exec"), names)
            code = last and compile(ast.Expression(last.value), f"cell {number}", "eval")
            value = eval(code, names) if code else None
        outputs = [{"output_type": "stream", "name": "stdout", "text": _lines(said.getvalue())}]
        if value is not None:
            shown = {"text/plain": _lines(repr(value))}
            if hasattr(value, "_repr_html_"):
                shown["text/html"] = _lines(value._repr_html_() or "")
            about = {"output_type": "execute_result", "metadata": {}, "execution_count": number + 1}
            outputs.append({**about, "data": shown})
        cell["execution_count"] = number + 1
        cell["outputs"] = [out for out in outputs if out.get("text", True)]


def _lines(text: str) -> list[str]:
    return text.splitlines(keepends=True)


def main(names: list[str]) -> None:
    for path in [HERE / name for name in names] or sorted(HERE.glob("*.ipynb")):
        started = time.monotonic()
        notebook = json.loads(path.read_text(encoding="utf-8"))
        execute(notebook)
        path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        print(f"{path.name}: {time.monotonic() - started:.0f} s", file=sys.stderr)


if __name__ == "__main__":
    main(sys.argv[1:])
