"""The documents hold together: links lead somewhere, drawings are drawings, one version is named everywhere."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
import yaml

import apex_zmq
from apex_zmq.config import settings as config
from apex_zmq.watch.metrics import find

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
OTHERS = sorted([*ROOT.glob("docs/*/*.md"), *ROOT.glob("models/**/*.md")])
IMAGES = sorted((ROOT / "docs" / "images").glob("*.svg"))
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
SVG = "{http://www.w3.org/2000/svg}"


def prose(document: Path) -> str:
    """The text without its code blocks."""
    return re.sub(r"^```.*?^```", "", document.read_text(), flags=re.MULTILINE | re.DOTALL)


def anchors(document: Path) -> set[str]:
    """The names that GitHub gives to a document's headings."""
    headings = re.findall(r"^#+ (.*)$", prose(document), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", [*DOCUMENTS, *OTHERS], ids=lambda path: str(path.relative_to(ROOT)))
def test_links_point_to_existing_files_and_headings(document: Path) -> None:
    for target in LINK.findall(prose(document)):
        if target.startswith(("https://", "http://")):
            continue
        path, _, anchor = target.partition("#")
        linked = document.parent / path if path else document
        assert linked.exists(), f"{document.name} links to {target}, which is not there"
        assert not anchor or anchor in anchors(linked), f"{document.name} links to {target}; no such heading"


def test_readme_links_every_document() -> None:
    targets = set(LINK.findall((ROOT / "README.md").read_text()))
    assert {str(path.relative_to(ROOT)) for path in DOCUMENTS if path.name not in ("README.md", "index.md")} <= targets


def build_site(root: Path, site: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", f"--site-dir={site}"]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    return subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)


def test_the_site_has_no_broken_link_and_loads_nothing_from_other_hosts(tmp_path: Path) -> None:
    pytest.importorskip("material")
    built = build_site(ROOT, tmp_path)
    assert built.returncode == 0, built.stderr
    pages = list(tmp_path.glob("*.html"))
    assert {path.stem for path in (ROOT / "docs").glob("*.md")} <= {page.stem for page in pages}
    for page in pages:
        text = page.read_text()
        assert not re.search(r"<(script|link|img)\b[^>]*\b(src|href)=.?https?:", text), page.name
        assert 'href="../' not in text, page.name  # which would leave the site
    assert json.loads((tmp_path / "search" / "search_index.json").read_text())["docs"]


def test_broken_links_fail_the_build_of_the_site(tmp_path: Path) -> None:
    pytest.importorskip("material")
    for path in (ROOT / "mkdocs.yml", *ROOT.glob("docs/*.*")):
        copied = tmp_path / path.relative_to(ROOT)
        copied.parent.mkdir(exist_ok=True)
        shutil.copy(path, copied)
    shutil.copytree(ROOT / "docs" / "images", tmp_path / "docs" / "images")
    (tmp_path / "docs" / "index.md").write_text("[a](NOWHERE.md) [b](../OUTSIDE.md) [c](TUNING.md#nowhere)\n")
    built = build_site(tmp_path, tmp_path / "site")
    assert built.returncode != 0
    assert all(link in built.stderr for link in ("NOWHERE.md", "OUTSIDE.md", "#nowhere"))


@pytest.mark.parametrize("image", IMAGES, ids=lambda path: path.name)
def test_drawing_is_linked_and_its_text_fits_the_view_box(image: Path) -> None:
    assert any(f"({image.parent.name}/{image.name})" in document.read_text() for document in DOCUMENTS)
    root = ElementTree.parse(image).getroot()
    _, _, width, height = map(float, root.attrib["viewBox"].split())
    assert root.find(f"{SVG}title") is not None
    for text in root.iter(f"{SVG}text"):
        x, y, size = (float(text.attrib[name]) for name in ("x", "y", "font-size"))
        extent = 0.6 * size * len("".join(text.itertext()))  # as wide as a wide font draws it
        left = x - {"start": 0.0, "middle": 0.5, "end": 1.0}[text.attrib.get("text-anchor", "start")] * extent
        assert left >= 0, text.text
        assert left + extent <= width, text.text
        assert size <= y <= height, text.text


def test_version_is_the_same_in_all_files() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert str(citation["version"]) == apex_zmq.__version__
    newest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest
    assert newest[1] == apex_zmq.__version__


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_curves_and_settings_named_in_documents_exist(document: Path) -> None:
    source = "".join(path.read_text() for path in (ROOT / "apex_zmq").rglob("*.py"))
    settings = {setting.name for setting in config.settings()}
    sections = {name.partition(".")[0] for name in settings}
    groups = {"rollout", "train", "replay", "time", "wait", "actors"}
    for code in re.findall(r"`([^`\n]+)`", prose(document)):
        if re.fullmatch(rf"({'|'.join(groups)})/\w+(/\w+)?", code):
            # Histograms are no rows of the table: their names stand in the code.
            assert find(code) or f'"{code}"' in source, f"{document.name} names the curve {code}"
        if re.fullmatch(rf"({'|'.join(sections)})(\.\w+)+", code) and not code.endswith(".py"):
            known = code in settings or any(name.startswith(f"{code}.") for name in settings)
            assert known, f"{document.name} names the setting {code}"


def test_benchmark_document_matches_the_stored_results() -> None:
    pytest.importorskip("matplotlib")
    from benchmarks import __main__ as benchmarks

    assert benchmarks.document() == benchmarks.DOCUMENT.read_text(), "run `python -m benchmarks --document`"
