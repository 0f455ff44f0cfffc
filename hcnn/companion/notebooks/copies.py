"""The two forms of a notebook that are kept: stripped except for its checked cells, and executed.

`python -m hcnn.companion.notebooks.copies FILE ...` strips notebooks, and fails where one was not, as before a commit.
"""

import os
import sys
import time
from base64 import b64decode, b64encode
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

from hcnn.paths import ROOT
from hcnn.training.run_folder import write_bytes

CHECKED = "# NBVAL_CHECK_OUTPUT"
QUIET = ["--log-level=ERROR"]  # of the kernel, whose warnings are no part of a notebook


def kept(notebook):
    """An executed notebook without paths of this machine (papermill's notes hold some), pictures in few bytes."""
    from hcnn.companion.figures.common import compact  # matplotlib takes seconds to import

    def shorten(text):
        return text.replace(f"{ROOT}{os.sep}", "").replace(f"{Path.home()}{os.sep}", "~/")

    notebook.metadata.pop("papermill")
    for cell in notebook.cells:
        for note in ("papermill", "execution"):
            cell.metadata.pop(note, None)
        for output in cell.get("outputs", []):
            if "text" in output:
                output["text"] = shorten(output["text"])
            for kind, content in output.get("data", {}).items():
                if isinstance(content, str) and kind.startswith("text/"):
                    output["data"][kind] = shorten(content)
                if kind == "image/png":
                    output["data"][kind] = b64encode(compact(b64decode(content))).decode()
    return notebook


def strip(notebook):
    """Remove outputs and counts, except of checked cells, which nbstripout cannot tell, and all that is of one run."""
    for cell in notebook.cells:
        if cell.cell_type != "code":
            continue
        cell.metadata = nbformat.from_dict({k: v for k, v in cell.metadata.items() if k in ("tags", "jupyter")})
        if cell.source.lstrip().startswith(CHECKED):
            printed = "".join(output.text for output in cell.outputs if output.get("name") == "stdout")
            others = [output for output in cell.outputs if output.output_type != "stream"]
            cell.outputs = [nbformat.v4.new_output("stream", name="stdout", text=printed)] * bool(printed) + others
        else:
            cell.outputs, cell.execution_count = [], None
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    notebook.metadata = nbformat.from_dict({"kernelspec": kernel, "language_info": {"name": "python"}})
    return notebook


def refresh(path, log=print):
    """Run a notebook with its own defaults and write it back stripped, with fresh outputs in its checked cells."""
    before = path.read_text(encoding="utf-8")
    notebook, started = nbformat.reads(before, as_version=4), time.perf_counter()
    client = NotebookClient(notebook, timeout=None, kernel_name="python3", extra_arguments=QUIET,
                            resources={"metadata": {"path": str(path.parent)}})
    try:
        client.execute()
    except CellExecutionError as error:
        raise RuntimeError(f"{path.stem} failed and was left as it is:\n{error}") from error
    if path.read_text(encoding="utf-8") != before:
        raise RuntimeError(f"{path.stem} was changed while it ran and was left as it is; run --refresh again")
    write_bytes(path, (nbformat.writes(strip(notebook)) + "\n").encode())
    checked = sum(cell.source.lstrip().startswith(CHECKED) for cell in notebook.cells)
    log(f"{path.stem}: {checked} checked cells, {time.perf_counter() - started:.0f} s")


def strip_files(files):
    """Strip notebooks in place; how many were not as they should be."""
    changed = 0
    for path in map(Path, files):
        before, stripped = (nbformat.read(path, as_version=4) for _ in range(2))
        if strip(stripped) != before:
            write_bytes(path, (nbformat.writes(stripped) + "\n").encode())
            print(f"{path} stripped")
            changed += 1
    return changed


if __name__ == "__main__":
    sys.exit(min(1, strip_files(sys.argv[1:])))
