"""Where the documentation has its pages: error messages and reports name the page that says what to do."""

from __future__ import annotations

import os
from importlib import metadata
from pathlib import Path
from urllib.parse import urlsplit

__all__ = ["SITE", "address", "see"]

#: Environment variable with the address of the site, or the folder in which `make docs` has built it.
SITE = "PYROSTOCH_DOCS"


def address(page: str) -> str | None:
    """The address of a page, if it is known where the documentation is.

    Args:
        page: The page, such as `how-to/choose_guide`.

    Returns:
        The address under the environment variable `PYROSTOCH_DOCS`, or else under the project's own address of its
        documentation; `None` if there is neither.

    Example:
        >>> os.environ["PYROSTOCH_DOCS"] = "https://example.org/pyrostoch"
        >>> address("how-to/choose_guide")
        'https://example.org/pyrostoch/how-to/choose_guide.html'
    """
    site = os.environ.get(SITE) or _published()
    if not site:
        return None
    if urlsplit(site).scheme not in ("http", "https", "file"):
        site = Path(site).absolute().as_uri()
    return f"{site.rstrip('/')}/{page}.html"


def see(page: str) -> str:
    """The end of an error message that names a page of the documentation.

    Args:
        page: The page, such as `how-to/choose_guide`.

    Example:
        >>> see("how-to/choose_guide")
        ' (documentation: how-to/choose_guide)'
    """
    return f" (documentation: {address(page) or page})"


def _published() -> str | None:
    """The project's address of its documentation."""
    try:
        urls = metadata.metadata("pyrostoch").get_all("Project-URL") or []
    except metadata.PackageNotFoundError:
        return None
    pairs = (url.partition(",") for url in urls)
    return next((value.strip() for label, _, value in pairs if label.strip().lower() == "documentation"), None)
