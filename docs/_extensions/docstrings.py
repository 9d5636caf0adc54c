"""Docstrings as they are written here, for Sphinx: formulas between dollars, and code or links between backquotes."""

from __future__ import annotations

import re
from typing import Any

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx

import pyrostoch

# A dollar inside backquotes is code.
_MARKUP = re.compile(r"(?P<code>`[^`]*`)|\$\$(?P<display>.+?)\$\$|\$(?P<inline>[^$]+)\$|(?P<mark>[*|])", re.DOTALL)
_RULE = re.compile(r"\s*\|(\s*:?-+:?\s*\|)+\s*")
_NAME = re.compile(r"[A-Za-z_]\w*(\.\w+)*(\(\))?")


def convert_formulas(lines: list[str]) -> list[str]:
    r"""Rewrite `$...$` and `$$...$$` as reStructuredText, and escape what would be markup there.

    Args:
        lines: The lines of a docstring without doctests.

    Returns:
        Its lines with math roles and directives.

    Example:
        >>> convert_formulas(["The mean $m$ of", "", "$$ x, $$", "", "and `y`s on |z|."])
        ['The mean :math:`m` of', '', '.. math::', '', '   x,', '', 'and `y`\\ s on \\|z\\|.']
    """
    return _MARKUP.sub(_convert, "\n".join(lines)).split("\n")


def _convert(match: re.Match[str]) -> str:
    text = match.string
    line = text[text.rfind("\n", 0, match.start()) + 1 : match.start()]
    before, after = text[match.start() - 1 : match.start()], text[match.end() : match.end() + 1]
    if match["mark"]:
        # Asterisks at the beginning of a line are names of arguments.
        return match["mark"] if match["mark"] == "*" and not line.strip(" *") else "\\" + match["mark"]
    if match["display"]:
        indent = " " * (len(line) - len(line.lstrip()))
        body = "\n".join(f"{indent}   {part.strip()}" for part in match["display"].strip().split("\n"))
        begin = f"\n\n{indent}" if line.strip() else ""
        return f"{begin}.. math::\n\n{body}" + ("" if after in ("\n", "") else f"\n\n{indent}")
    role = match["code"] or f":math:`{' '.join(match['inline'].split())}`"
    # A role must begin and end where a word does: "\\ " vanishes.
    return ("\\ " if before.isalnum() else "") + role + ("\\ " if after.isalnum() else "")


def convert_tables(lines: list[str]) -> list[str]:
    """Rewrite tables of Markdown as directives.

    Args:
        lines: The lines of a docstring.

    Returns:
        Its lines with list-tables.

    Example:
        >>> convert_tables(["| a | b |", "| --- | --- |", "| 1 | 2 |"])[:4]
        ['.. list-table::', '   :header-rows: 1', '', '   * - a']
    """
    converted: list[str] = []
    position = 0
    while position < len(lines):
        if position + 1 < len(lines) and _RULE.fullmatch(lines[position + 1]):
            indent = " " * (len(lines[position]) - len(lines[position].lstrip()))
            converted += [f"{indent}.. list-table::", f"{indent}   :header-rows: 1", ""]
            while position < len(lines) and lines[position].lstrip().startswith("|"):
                if not _RULE.fullmatch(lines[position]):
                    cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", lines[position].strip()[1:-1])]
                    cells = [cell.replace("\\|", "|") for cell in cells]
                    converted += [f"{indent}   * - {cells[0]}", *(f"{indent}     - {cell}" for cell in cells[1:])]
                position += 1
            converted.append("")
        else:
            converted.append(lines[position])
            position += 1
    return converted


def convert(lines: list[str]) -> list[str]:
    """Rewrite tables and formulas of a docstring; doctests are left as they are.

    Args:
        lines: Its lines.
    """
    converted: list[str] = []
    text: list[str] = []
    in_doctest = False
    for line in lines:
        in_doctest = bool(line.strip()) and (in_doctest or line.lstrip().startswith(">>>"))
        if in_doctest:
            converted += convert_formulas(convert_tables(text)) if text else []
            text = []
            converted.append(line)
        else:
            text.append(line)
    return converted + (convert_formulas(convert_tables(text)) if text else [])


def _process(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    # Those that a class has from torch are written in another way.
    if str(getattr(obj, "__module__", None) or "pyrostoch").startswith("pyrostoch"):
        lines[:] = convert(lines)


def _code_role(
    name: str, rawtext: str, text: str, lineno: int, inliner: Any, options: Any = None, content: Any = ()
) -> tuple[list[nodes.Node], list[nodes.system_message]]:
    """Text between single backquotes: code, and a link where it is a name that the reference knows."""
    code = rawtext.strip("`") if rawtext.startswith("`") else text
    literal = nodes.literal(code, code, classes=["xref", "py", "py-obj"])
    if not _NAME.fullmatch(code):
        return [nodes.literal(code, code)], []
    env = inliner.document.settings.env
    target = re.sub(r"^ps\.", "pyrostoch.", code).removesuffix("()")
    # Many classes have a method of the same short name.
    if target.islower() and "." not in target:
        if target not in pyrostoch.__all__:
            return [nodes.literal(code, code)], []
        target = f"pyrostoch.{target}"
    reference = addnodes.pending_xref(
        "",
        literal,
        refdomain="py",
        reftype="obj",
        reftarget=target,
        refspecific=True,
        refwarn=False,
        refexplicit=False,
        refdoc=env.docname,
    )
    reference["py:module"] = env.ref_context.get("py:module")
    reference["py:class"] = env.ref_context.get("py:class")
    return [reference], []


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the conversion and the default role."""
    app.setup_extension("sphinx.ext.autodoc")
    # Before napoleon, whose sections would indent what is put in front of them.
    app.connect("autodoc-process-docstring", _process, priority=400)
    app.add_role("code-or-link", _code_role)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
