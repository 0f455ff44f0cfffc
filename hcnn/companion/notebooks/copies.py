"""The two forms of a notebook that are kept: stripped except for its checked cells, and executed.

`python -m hcnn.companion.notebooks.copies FILE ...` strips notebooks, and fails where one was not, as before a commit.
"""

import os
import sys
from base64 import b64decode, b64encode
from pathlib import Path

import nbformat

from hcnn.paths import ROOT
from hcnn.training.run_folder import write_bytes

CHECKED = "# NBVAL_CHECK_OUTPUT"


def write(path, notebook):
    """Write a notebook whole or not at all."""
    write_bytes(path, (nbformat.writes(notebook) + "\n").encode())


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
        cell.metadata = nbformat.from_dict({k: v for k, v in cell.metadata.items() if k in ("tags", "jupyter") and v})
        if cell.cell_type != "code":
            continue
        if cell.source.lstrip().startswith(CHECKED):
            printed = "".join(output.text for output in cell.outputs if output.get("name") == "stdout")
            others = [output for output in cell.outputs if output.output_type != "stream"]
            cell.outputs = [nbformat.v4.new_output("stream", name="stdout", text=printed)] * bool(printed) + others
        else:
            cell.outputs, cell.execution_count = [], None
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    notebook.metadata = nbformat.from_dict({"kernelspec": kernel, "language_info": {"name": "python"}})
    return notebook


def strip_files(files):
    """Strip notebooks in place; how many were not as they should be."""
    changed = 0
    for path in map(Path, files):
        before, stripped = (nbformat.read(path, as_version=4) for _ in range(2))
        if strip(stripped) != before:
            write(path, stripped)
            print(f"{path} stripped")
            changed += 1
    return changed


if __name__ == "__main__":
    sys.exit(min(1, strip_files(sys.argv[1:])))
