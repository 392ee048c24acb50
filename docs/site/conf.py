"""Sphinx's settings. Nothing is fetched: no fonts, no scripts, formulas are text."""

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

import docstrings  # noqa: E402

import losslab  # noqa: E402

project = "losslab"
author = "The losslab developers"
copyright = author
release = version = losslab.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
]
root_doc = "index"
source_suffix = {".md": "markdown", ".rst": "restructuredtext"}
default_role = "literal"
highlight_language = "text"
myst_heading_anchors = 4
myst_links_external_new_tab = False
smartquotes = False

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 88
napoleon_numpy_docstring = False
napoleon_use_rtype = False
add_module_names = False

# There is no inventory of Python's and PyTorch's names offline; ours must all be there.
nitpicky = True
nitpick_ignore_regex = [
    ("py:.*", r"(?!losslab).*"),
    # what stands in annotations only
    (
        "py:class",
        r"losslab\.experiment\.(checkpoint|data_sets|executors|plan|recipe_\w+|study)\.\w+",
    ),
    ("py:class", r"losslab\.(losses\.reduction\.Rows|parallel\.split\.T|losses\.modules\._Loss)"),
]

html_theme = "furo"
html_title = f"losslab {version}"
html_static_path = [str(HERE / "static")]
html_css_files = ["site.css"]
html_show_sphinx = False
html_show_copyright = False
html_copy_source = False
html_show_sourcelink = False
copybutton_prompt_text = r">>> |\.\.\. "
copybutton_prompt_is_regexp = True

linkcheck_timeout = 20


def setup(app):
    # before napoleon, which reads the sections that are left
    app.connect("autodoc-process-docstring", docstrings.process, priority=400)
    app.connect("autodoc-process-signature", docstrings.signature)
