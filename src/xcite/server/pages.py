"""The page at / with its files, and the API's description as a page."""

import html
import json
from importlib import resources
from typing import Any

FILES = {  # path: file and media type
    "/": ("server/page.html", "text/html"),
    "/page.css": ("server/page.css", "text/css"),
    "/page.js": ("server/page.js", "text/javascript"),
    "/languages/zh.json": ("languages/zh.json", "application/json"),
}


def page_file(name: str) -> str:
    """The text of a file of the package."""
    return resources.files("xcite").joinpath(name).read_text("utf-8")


def docs_page(schema: dict[str, Any]) -> str:
    """The OpenAPI description as one plain page without a script."""
    e = html.escape
    sections = []
    for path, methods in schema["paths"].items():
        for method, operation in methods.items():
            rows = (
                "".join(
                    f"<tr><td><code>?{e(p['name'])}</code></td><td>{e(p.get('description', ''))}, "
                    f"default <code>{e(json.dumps(p['schema'].get('default')))}</code></td></tr>"
                    for p in operation.get("parameters", [])
                )
                + "".join(
                    f"<tr><td>body</td><td><code>{e(kind)}</code></td></tr>"
                    for kind in operation.get("requestBody", {}).get("content", {})
                )
                + "".join(
                    f"<tr><td><code>{e(status)}</code></td><td>{e(answer['description'])}</td></tr>"
                    for status, answer in operation["responses"].items()
                )
            )
            sections.append(
                f"<section class='card'><h2><code>{e(method.upper())} {e(path)}</code></h2>"
                f"<p>{e(operation['summary'])}. {e(operation.get('description', ''))}</p>"
                f"<table>{rows}</table></section>"
            )
    examples = "\n".join(
        [
            "curl -F file=@cat.jpg -F file=@dog.png 'http://127.0.0.1:8000/predict?top=3'",
            "curl -H 'Content-Type: image/jpeg' --data-binary @cat.jpg http://127.0.0.1:8000/predict",
            "jq -Rs '{image: .}' <(base64 cat.jpg) | curl --json @- http://127.0.0.1:8000/predict",
        ]
    )
    return (
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        f"<title>{e(schema['info']['title'])} API</title>"
        "<link rel='icon' href='data:,'><link rel='stylesheet' href='page.css'></head>"
        "<body><main class='docs'>"
        f"<h1>{e(schema['info']['title'])} API {e(schema['info']['version'])}</h1>"
        f"<p>{e(schema['info']['description'])} Machine-readable: "
        "<a href='openapi.json'>openapi.json</a>. <a href='./'>Back to the page</a>.</p>"
        f"<pre><code>{e(examples)}</code></pre>{''.join(sections)}</main></body></html>"
    )
