"""The OpenAPI document as one page of HTML: no script, nothing loaded from elsewhere."""

import json
import re
from collections.abc import Mapping
from html import escape
from typing import Any, Final

POLICY: Final = "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'; base-uri 'none'"
_CODE: Final = re.compile(r"`([^`]+)`")
STYLE: Final = """\
:root{color-scheme:light dark}
body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}
section{border-top:1px solid #8886;padding:.5rem 0 1rem}
code,pre{font:14px/1.45 ui-monospace,monospace}
pre{overflow:auto;background:#8881;padding:.75rem;border-radius:.4rem}
table{border-collapse:collapse}td{padding:.1rem 1rem .1rem 0;vertical-align:top}
.method{font-weight:700;text-transform:uppercase}
"""


def page(document: Mapping[str, Any]) -> str:
    info = document["info"]
    title = f"{escape(info['title'])} API"
    operations = [
        _operation(path, method, operation)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    ]
    schemas = [_schema(name, schema) for name, schema in document["components"]["schemas"].items()]
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{STYLE}</style>'
        f"<h1>{title}</h1>{_prose(info['description'])}"
        f'<p>The same for machines: <a href="/openapi.json">openapi.json</a></p>'
        f"{''.join(operations)}<h2>Schemas</h2>{''.join(schemas)}</html>"
    )


def _prose(text: str) -> str:
    """Paragraphs, with code in backquotes."""
    marked = _CODE.sub(r"<code>\1</code>", escape(text))
    return "".join(f"<p>{part}</p>" for part in marked.split("\n\n"))


def _operation(path: str, method: str, operation: Mapping[str, Any]) -> str:
    token = "" if operation["security"] else " (no token)"
    parameters = _table(
        {f"{each['name']} ({each['in']})": each.get("description", "") for each in operation["parameters"]}
    )
    answers = _table({status: answer["description"] for status, answer in operation["responses"].items()})
    return (
        f'<section id="{escape(operation["operationId"])}"><h2><span class="method">{escape(method)}</span> '
        f"<code>{escape(path)}</code></h2><p>{escape(operation['summary'])}{token}</p>{_body(operation)}"
        f"{parameters}<h3>Answers</h3>{answers}</section>"
    )


def _body(operation: Mapping[str, Any]) -> str:
    if "requestBody" not in operation:
        return ""
    schema = operation["requestBody"]["content"]["application/json"]["schema"]
    name = schema.get("$ref", "").rpartition("/")[2]
    return f'<p>Body: <a href="#{escape(name)}">{escape(name)}</a></p>' if name else "<p>Body: JSON</p>"


def _table(rows: Mapping[str, str]) -> str:
    cells = [f"<tr><td><code>{escape(name)}</code><td>{escape(about)}" for name, about in rows.items()]
    return f"<table>{''.join(cells)}</table>"


def _schema(name: str, schema: Mapping[str, Any]) -> str:
    text = escape(json.dumps(schema, indent=2, ensure_ascii=False))
    return f'<details id="{escape(name)}"><summary><code>{escape(name)}</code></summary><pre>{text}</pre></details>'
