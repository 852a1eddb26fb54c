"""How Sphinx builds this folder: `make docs` writes the pages into build/docs."""

from typing import Any

from parhelion.version import __version__

project = "Parhelion"
version = release = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]
# Every heading can be linked to, as on the pages of a repository.
myst_heading_anchors = 3

# In docstrings `code` stands between single backticks.
default_role = "code"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
napoleon_use_rtype = False
# `autoclass` takes the arguments from the docstring of __init__.
autoclass_content = "both"
# Types are written as in the code: `Tensor`, not `torch.Tensor`.
autodoc_typehints_format = "short"
python_use_unqualified_type_names = True
toc_object_entries_show_parents = "hide"
python_maximum_signature_line_length = 88

html_theme = "furo"
html_title = f"Parhelion {__version__}"
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#2f6fb0", "color-brand-content": "#2f6fb0"},
    "dark_css_variables": {"color-brand-primary": "#8ab8e6", "color-brand-content": "#8ab8e6"},
}
html_static_path = ["static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_copyright = False
copybutton_prompt_text = "$ "


def setup(app: Any) -> None:
    """Have the docstrings of attributes read as prose."""
    app.connect("autodoc-process-docstring", as_prose, priority=400)


def as_prose(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Keep napoleon from taking what stands before a colon for a type: in the line that it reads there is none."""
    if what == "attribute":
        lines.insert(0, "\\")
