"""mkdocs' hooks: what pages of docs/ link to elsewhere in the repository becomes a page of the site, so that no link is dead."""

from __future__ import annotations

import ast
import json
import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[2]
LINK = re.compile(r"(\]\()([^)#\s]+)((?:#[^)\s]*)?\))")
INTERVAL = re.compile(r"(\[[+-][\d.]+,) (?=[+-][\d.]+\])")
FETCHED = re.compile(
    r"""<(?:script|link|img|iframe|source|video)\b[^>]*?\s(?:src|href)=["']?((?:https?:)?//[^"'\s>]+)"""
)
INLINE = re.compile(r"<code>[^<]*</code>")
OPTION = re.compile(r"(?<![\w-])--[a-z][\w-]*")
FOLDER = "repository"  # of the site, where these pages are
LEXERS = {".py": "python", ".yml": "yaml"}


def origin(page: str) -> str:
    """Where in the repository a page of the site is from."""
    if not page.startswith(f"{FOLDER}/"):
        return f"docs/{page}"
    path = page.removeprefix(f"{FOLDER}/")
    return path if (ROOT / path).exists() else path.removesuffix(".md")


def place(path: str) -> str:
    """The page, or picture, of the site that a path in the repository becomes."""
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    return f"{FOLDER}/{path}" if path.endswith((".md", ".png")) else f"{FOLDER}/{path}.md"


def is_prose(path: str) -> bool:
    """Whether links in a file's page are links, and not a part of the code that it shows."""
    return path.endswith((".md", ".ipynb")) or (ROOT / path).is_dir()


def targets(text: str, path: str) -> list[str]:
    """The paths in the repository that a page's text links to."""
    inside = [link for _, link, _ in LINK.findall(text) if "://" not in link]
    return [posixpath.normpath(posixpath.join(posixpath.dirname(path), link)) for link in inside]


def notebook(text: str) -> str:
    """The cells and the outputs of a notebook."""
    parts = []
    for cell in json.loads(text)["cells"]:
        source = "".join(cell["source"])
        parts.append(source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```")
        for output in cell.get("outputs", []):
            data = {kind: "".join(lines) for kind, lines in output.get("data", {}).items()}
            if "image/png" in data:
                parts.append(f'<img alt="" src="data:image/png;base64,{data["image/png"].strip()}">')
            else:
                plain = "".join(output.get("text", "")) or data["text/plain"]
                parts.append(data.get("text/html") or f"```text\n{plain.rstrip()}\n```")
    return "\n\n".join(parts) + "\n"


def about(file: Path) -> str:
    """What the first line of a script says of it, to be read after its name; nothing of another file."""
    said = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) if file.suffix == ".py" else None
    return f": {said.splitlines()[0]}" if said else ""


def shown(path: str) -> str:
    """A file, or a folder's list, as a page."""
    file = ROOT / path
    if file.is_dir():
        files = sorted(each for each in file.iterdir() if each.suffix in (".py", ".md"))
        lines = [f"- [{each.name}]({posixpath.basename(path)}/{each.name}){about(each)}\n" for each in files]
        return f"# {path}\n\n" + "".join(lines)
    text = file.read_text(encoding="utf-8")
    if file.suffix == ".md":
        return text
    if file.suffix == ".ipynb":
        return notebook(text)
    wide = "---\nhide: [toc]\n---\n\n"
    return f"{wide}# {path}\n\n````{LEXERS.get(file.suffix, 'text')}\n{text}````\n"


def on_files(files: Files, config: Any, **_: Any) -> Files:
    """Add every file of the repository that a page links to, and what that links to in turn."""
    style = File.generated(config, "style.css", abs_src_path=str(Path(__file__).with_name("style.css")))
    files.append(style)
    ahead = [
        (f"docs/{file.src_uri}", Path(str(file.abs_src_path)).read_text(encoding="utf-8"))
        for file in files.documentation_pages()
    ]
    known = {file.src_uri for file in files}
    while ahead:
        path, text = ahead.pop()
        for target in targets(text, path):
            uri = place(target)
            if uri in known or target.startswith("docs/") or not (ROOT / target).exists():
                continue  # of what is not there, mkdocs warns
            known.add(uri)
            if uri.endswith(".png"):
                files.append(File.generated(config, uri, abs_src_path=str(ROOT / target)))
            else:
                content = shown(target)
                files.append(File.generated(config, uri, content=content))
                ahead += [(target, content)] * is_prose(target)
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Lead the links of a page to the pages that on_files has made, and keep intervals whole at the end of a line."""
    here = page.file.src_uri
    if not is_prose(origin(here)):
        return markdown

    def led(match: re.Match[str]) -> str:
        before, link, after = match.groups()
        if "://" in link:
            return match.group()
        (target,) = targets(match.group(), origin(here))
        return f"{before}{posixpath.relpath(place(target), posixpath.dirname(here))}{after}"

    return INTERVAL.sub("\\1\N{NO-BREAK SPACE}", LINK.sub(led, markdown))


def on_page_content(html: str, **_: Any) -> str:
    """Keep the options of a command whole at the end of a line: without this, one ends after its hyphens."""
    return INLINE.sub(lambda code: OPTION.sub(r'<span class="whole">\g<0></span>', code.group()), html)


def on_post_page(output: str, page: Page, **_: Any) -> str:
    """Nothing is fetched from elsewhere when a page is read."""
    if found := FETCHED.findall(output):
        raise PluginError(
            f"{page.file.src_uri} fetches {', '.join(found)}: a page needs nothing but the site's own files"
        )
    return output
