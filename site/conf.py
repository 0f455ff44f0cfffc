"""Sphinx: the companion as a static site that needs neither a network nor a kernel. `make site` builds it."""

import csv
import html
import json
import re
from importlib.metadata import files
from pathlib import Path

from docutils import nodes
from sphinx import addnodes
from sphinx.util.docutils import SphinxDirective

import hcnn

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
WIDGET = "application/vnd.jupyter.widget-view+json"  # needs a kernel and a script from elsewhere
MATHJAX = next(file for file in files("sphinx-mathjax-offline") if file.name == "tex-svg.js")  # one file, no fonts

project, author, version = "Hierarchical Attribute CNNs", "The hcnn authors", hcnn.__version__
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.mathjax", "sphinx.ext.githubpages"]
exclude_patterns = ["_build"]
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 2
nb_execution_mode = "off"
nb_merge_streams = True
nb_render_markdown_format = "myst"
mathjax_path = MATHJAX.name
mathjax3_config = {"tex": {"inlineMath": [["\\(", "\\)"], ["$", "$"]]}}  # dollars in tables, which MyST does not read
myst_mathjax_classes = "tex2jax_process|mathjax_process|math|output_area|text_html|data"
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_inherit_docstrings = False
nitpick_ignore_regex = [("py:.*", r"(torch|pathlib|collections)\..*|hcnn\..*\.(Layer|Dataset)")]  # not on this site
html_theme = "furo"
html_title = "Hierarchical Attribute CNNs"
html_static_path = ["static", str(MATHJAX.locate())]
html_css_files, html_js_files = ["site.css"], [("site.js", {"defer": "defer"})]
html_copy_source = html_show_sourcelink = html_show_copyright = False


def collect_notebooks():
    """One copy of every notebook into site/notebooks: the executed one of the shortest name, so HCNN before HCNN(+)."""
    (HERE / "notebooks").mkdir(exist_ok=True)
    for source in sorted((ROOT / "notebooks").glob("*.ipynb")):
        found = (ROOT / "results" / "notebooks").glob(source.stem + "*.ipynb")
        chosen = min(found, key=lambda path: (len(path.name), path.name), default=source)
        notebook = json.loads(chosen.read_text(encoding="utf-8"))
        outputs = [output for cell in notebook["cells"] for output in cell.get("outputs", [])]
        widgets = [output["data"].pop(WIDGET) for output in outputs if WIDGET in output.get("data", {})]
        notebook["metadata"].pop("widgets", None)
        if chosen == source:
            notebook["cells"].insert(1, _note("This notebook has not been executed yet: it is shown without results."))
        if widgets:
            notebook["cells"].append(_note("The [explorer](../explorer.md) shows these searches without a kernel."))
        target, text = HERE / "notebooks" / source.name, json.dumps(notebook, indent=1)
        if not target.exists() or target.read_text(encoding="utf-8") != text:
            target.write_text(text, encoding="utf-8")


def _note(text):
    return dict(cell_type="markdown", id="note", metadata={}, source=f"```{{note}}\n{text}\n```")


class Table(SphinxDirective):
    """A CSV file as a table that site.js makes sortable, and a link to the file: its argument is the path from here."""

    required_arguments, final_argument_whitespace, has_content = 1, False, True  # content: the caption

    def run(self):
        path = (HERE / self.arguments[0]).resolve()
        self.env.note_dependency(str(path))
        with open(path, encoding="utf-8", newline="") as file:
            head, *rows = csv.reader(file)
        caption = html.escape(" ".join(self.content))
        lines = [f'<div class="table-wrapper" tabindex="0" role="region" aria-label="{caption}">',
                 f'<table class="data {path.stem}"><caption>{caption}</caption><thead><tr>',
                 *(f'<th scope="col">{html.escape(name.replace("_", " "))}</th>' for name in head),
                 "</tr></thead><tbody>"]
        for row in rows:
            cells = (f'<td data-name="{html.escape(name)}">{_cell(value)}</td>' for name, value in zip(head, row))
            lines.append(f"<tr>{''.join(cells)}</tr>")
        link = addnodes.download_reference("", "", nodes.literal(text=path.name), refdoc=self.env.docname,
                                           reftarget=self.arguments[0])
        table = nodes.raw("", "\n".join([*lines, "</tbody></table></div>"]), format="html")
        return [table, nodes.paragraph("", "", link)]


def _cell(value):
    """Text in which long names of tests and runs may break."""
    return re.sub(r"(_|::|/)", r"\1<wbr>", html.escape(value))


def docstring(app, what, name, obj, options, lines):
    """Our docstrings are plain text: `code` in single backticks, indented examples, and stars that mean a product."""
    text, lines[:] = "\n".join(lines), []
    for paragraph in re.split(r"\n\s*\n", text.strip("\n")):
        if all(line.startswith("    ") for line in paragraph.split("\n")):
            lines += ["::", "", *paragraph.split("\n"), ""]
            continue
        parts = re.split(r"(`+)(.+?)\1", paragraph, flags=re.DOTALL)
        plain = [re.sub(r"([*_|\\])", r"\\\1", part) for part in parts[::3]]
        code = [f"``{part}``" for part in parts[2::3]]
        lines += ["".join(piece for pair in zip(plain, [*code, ""]) for piece in pair), ""]
    lines[:] = "\n".join(lines).split("\n")


def explorer_data(app, pagename, templatename, context, doctree):
    """The numbers of the explorer into its page, because a page opened as a file may not fetch another."""
    if pagename == "explorer":
        app.add_js_file(None, body="window.EXPLORER = " + (HERE / "explorer.json").read_text(encoding="utf-8"))


def setup(app):
    collect_notebooks()
    app.set_html_assets_policy("always")  # MathJax on pages whose only formulas are in tables too
    app.add_directive("data-table", Table)
    app.connect("autodoc-process-docstring", docstring)
    app.connect("html-page-context", explorer_data)
