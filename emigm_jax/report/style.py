"""How the page looks: one column of figures on a phone, two on a screen, light and dark."""

import string

CSS = string.Template("""
:root { --paper: #ffffff; --ink: #1d2129; --muted: #68707d; --line: #e3e5ea; --soft: #f6f7f9; }
@media (prefers-color-scheme: dark) {
  :root { --paper: #171a20; --ink: #e4e6ea; --muted: #9aa2af; --line: #2b3039; --soft: #1e222a; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1120px; padding: 0 20px 60px; background: var(--paper);
  color: var(--ink); font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans",
  "Liberation Sans", sans-serif; -webkit-text-size-adjust: 100%; }
header { padding: 28px 0 4px; }
h1 { font-size: 24px; line-height: 1.25; margin: 0; overflow-wrap: anywhere; }
h2 { font-size: 18px; margin: 36px 0 12px; padding-bottom: 6px;
  border-bottom: 1px solid var(--line); }
h3 { font-size: 15px; margin: 22px 0 8px; overflow-wrap: anywhere; }
p { margin: 6px 0 12px; }
.muted, figcaption { color: var(--muted); }
.said { background: var(--soft); border-left: 3px solid var(--line); padding: 8px 12px; }
.figures { display: grid; gap: 26px 30px;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 440px), 1fr)); margin-bottom: 24px; }
figure { margin: 0; min-width: 0; }
figure img { display: block; max-width: 100%; height: auto; }
.figures img { width: 100%; }
figcaption { font-size: 13px; margin-top: 4px; overflow-wrap: anywhere; }
.file { font-family: ui-monospace, "Liberation Mono", monospace; font-size: 12px; opacity: .8; }
.strip { display: grid; gap: 14px; grid-template-columns: repeat(auto-fill, minmax(190px, 1fr)); }
.strip img { width: 100%; }
.scroll { overflow-x: auto; margin: 4px 0 12px; }
table { border-collapse: collapse; font-size: 14px; }
th, td { text-align: left; padding: 5px 18px 5px 0; vertical-align: top; font-weight: 400;
  border-bottom: 1px solid var(--line); }
thead th { color: var(--muted); font-size: 13px; white-space: nowrap; vertical-align: bottom; }
tbody th { max-width: 340px; min-width: 170px; overflow-wrap: anywhere; }
.run { padding-left: 18px; }
.run .chip { margin-left: -18px; }
td { white-space: nowrap; font-variant-numeric: tabular-nums; }
.number { text-align: right; }
.chip { display: inline-block; width: 10px; height: 10px; border-radius: 3px; margin-right: 8px;
  background: var(--run); }
details { margin: 10px 0; }
summary { cursor: pointer; color: var(--muted); overflow-wrap: anywhere; }
ul { margin: 6px 0; padding-left: 20px; overflow-wrap: anywhere; }
$colours
@media (max-width: 520px) { body { padding: 0 14px 40px; } .strip { grid-template-columns: 1fr 1fr; } }
@media print { .scroll { overflow: visible; } }
""")  # noqa: E501
