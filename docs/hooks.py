"""MkDocs hook: links that leave the site become plain text, since no address of the repository is known."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

LINK = re.compile(r"(?<!!)\[([^\]]*)\]\(([^)\s#]+)[^)\s]*\)")


def on_page_markdown(markdown: str, *, page: Any, config: Any, files: Any) -> str:
    """Replace each link to a file of the repository that is not part of the site by its text.

    Links to files that do not exist stay, so that a strict build reports them.
    """
    docs = Path(config.docs_dir)

    def replace(link: re.Match[str]) -> str:
        target = (docs / page.file.src_uri).parent / link[2]
        if not target.exists():
            return link[0]
        target = target.resolve()
        inside = target.is_relative_to(docs) and files.get_file_from_path(target.relative_to(docs).as_posix())
        return link[0] if inside else link[1]

    return LINK.sub(replace, markdown)
