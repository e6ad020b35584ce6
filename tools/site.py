"""A hook of mkdocs: the site has the folders of the repository, so that links between files are the same in both."""

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
PAGES = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs/*.md", "results/*.md")
LINK = re.compile(r"\]\((?!http|#)([^)#]+)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Replace the pages of docs/ by all pages and all files that these link to, at their places in the repository."""
    for page in files.documentation_pages():
        files.remove(page)
    for path in sorted({*pages(), *(path for page in pages() for path in linked(page))}):
        files.append(File.generated(config, path.relative_to(ROOT).as_posix(), abs_src_path=str(path)))
    return files


def pages() -> list[Path]:
    """Return the pages of the site."""
    return [page for pattern in PAGES for page in sorted(ROOT.glob(pattern))]


def linked(page: Path) -> list[Path]:
    """Return the files of the repository that a page links to."""
    paths = [(page.parent / link).resolve() for link in LINK.findall(page.read_text())]
    return [path for path in paths if path.is_file()]
