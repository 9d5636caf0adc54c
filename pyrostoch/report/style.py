"""Style sheet of the report: one column, light or dark as set in the reader's system, wide tables scroll."""

from __future__ import annotations

__all__ = ["CSS"]

CSS = """
:root { color-scheme: light dark; --ink: #1b1d21; --soft: #5c6370; --paper: #ffffff; --line: #d9dce2;
  --tint: #f4f6f9; --accent: #0072b2; --note: #fff6e0; --note-line: #e69f00; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e8ec; --soft: #a0a7b4; --paper: #15181d; --line: #343a44;
    --tint: #1e232a; --accent: #56b4e9; --note: #2c2616; --note-line: #e69f00; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 70rem; padding: 1.5rem 1.25rem 4rem; color: var(--ink); background: var(--paper);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: .5rem 0; }
h2 { font-size: 1.3rem; margin: 2.6rem 0 .4rem; padding-top: .8rem; border-top: 1px solid var(--line); }
h3 { font-size: 1.05rem; margin: 1.6rem 0 .3rem; }
p { margin: .4rem 0 .8rem; max-width: 48rem; }
a { color: var(--accent); }
code { font: .9em ui-monospace, Menlo, Consolas, monospace; overflow-wrap: anywhere; }
.err { display: block; font-size: .8em; color: var(--soft); }
.bad { color: #d55e00; font-weight: 600; }
.best { font-weight: 700; }
.best .err { font-weight: 400; }
.note { background: var(--note); border-left: 4px solid var(--note-line); padding: .6rem .9rem; border-radius: 3px; }
.command { background: var(--tint); border-radius: 4px; padding: .5rem .8rem; max-width: none; }
nav a { display: inline-block; margin-right: 1rem; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .2rem 1.2rem; margin: 1rem 0; }
dt { color: var(--soft); }
dd { margin: 0; overflow-wrap: anywhere; }
.scroll { overflow-x: auto; margin: .6rem 0 1rem; }
table { border-collapse: collapse; font-size: .92rem; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .7rem; text-align: right; border-bottom: 1px solid var(--line); vertical-align: top;
  white-space: nowrap; }
th { font-weight: 600; }
thead th { color: var(--soft); font-size: .85rem; }
thead tr th[colspan] { text-align: center; }
tbody th, thead tr:first-child th:first-child, .text { text-align: left; }
tbody th { position: sticky; left: 0; background: var(--paper); white-space: normal; min-width: 7.5rem; }
.all { width: 100%; }
svg { width: 100%; height: auto; display: block; }
svg image { image-rendering: pixelated; }
svg * { stroke-linejoin: round; stroke-linecap: butt; }
svg text:not([style*="fill"]) { fill: currentColor; }
footer { margin-top: 3rem; color: var(--soft); font-size: .85rem; }
@media (max-width: 40rem) { body { padding: 1rem .8rem 3rem; } dl { grid-template-columns: 1fr; gap: 0; }
  dd { margin-bottom: .5rem; } th, td { padding: .3rem .5rem; } }
@media print { body { max-width: none; } section { break-inside: avoid; } }
""".strip()
