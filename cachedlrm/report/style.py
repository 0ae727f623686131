"""How pages look: on a phone and on a wide screen, light and dark."""

STYLE = """\
:root {
  --page: #f4f5f7; --card: #ffffff; --text: #1b1f24; --muted: #57606a; --line: #d5dae0; --track: #e6e9ed;
  --c0: #0b63ce; --c1: #b35900; --c2: #0a7d4f; --c3: #8e3fb0; --c4: #c2255c; --c5: #5c636b;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #0e1116; --card: #171b21; --text: #e6e9ee; --muted: #a3adb8; --line: #353d47; --track: #2a313a;
    --c0: #6cb2ff; --c1: #f2a65a; --c2: #58d09a; --c3: #d0a2f2; --c4: #ff8fab; --c5: #b8bec7;
  }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--text); font: 15px/1.5 system-ui, sans-serif; }
main { max-width: 1180px; margin: 0 auto; padding: 20px 16px 48px; }
h1 { font-size: 26px; line-height: 1.25; margin: 0 0 4px; }
h2 { font-size: 19px; margin: 32px 0 10px; }
p { margin: 0 0 10px; max-width: 78ch; overflow-wrap: anywhere; }
header p, .note { color: var(--muted); }
.note { font-size: 14px; margin-top: 10px; }
.tiles { display: grid; gap: 12px; grid-template-columns: repeat(auto-fill, minmax(min(100%, 165px), 1fr)); }
.tile, figure, .scroll, pre { background: var(--card); border: 1px solid var(--line); border-radius: 8px; }
.tile { padding: 10px 12px; }
.tile b { display: block; font-size: 22px; line-height: 1.3; font-variant-numeric: tabular-nums; }
.tile span { display: block; font-size: 13px; color: var(--muted); }
.tile .name { font-size: 14px; color: var(--text); }
.charts { display: grid; gap: 12px; grid-template-columns: repeat(auto-fill, minmax(min(100%, 350px), 1fr)); }
figure { margin: 0; padding: 10px 12px 8px; }
figcaption { font-weight: 600; margin-bottom: 2px; }
figcaption span { display: block; font-weight: 400; font-size: 13px; color: var(--muted); }
figure svg { display: block; width: 100%; height: auto; max-width: 560px; }
svg text { fill: var(--muted); font: 11px system-ui, sans-serif; }
svg .strong { fill: var(--text); }
svg .end { text-anchor: end; }
svg .middle { text-anchor: middle; }
.grid { stroke: var(--line); stroke-width: 1; fill: none; }
.axis { stroke: var(--muted); stroke-width: 1; fill: none; }
.track { fill: var(--track); }
.curve { fill: none; stroke-width: 1.8; stroke-linejoin: round; }
.c0 { stroke: var(--c0); } .c1 { stroke: var(--c1); } .c2 { stroke: var(--c2); }
.c3 { stroke: var(--c3); } .c4 { stroke: var(--c4); } .c5 { stroke: var(--c5); }
.f0 { fill: var(--c0); } .f1 { fill: var(--c1); } .f2 { fill: var(--c2); }
.f3 { fill: var(--c3); } .f4 { fill: var(--c4); } .f5 { fill: var(--c5); }
.d1 { stroke-dasharray: 7 3; } .d2 { stroke-dasharray: 2 3; } .d3 { stroke-dasharray: 9 3 2 3; }
.mark { fill: var(--card); stroke: var(--c4); stroke-width: 2.2; }
.legend { display: flex; flex-wrap: wrap; gap: 2px 14px; margin: 4px 0 0; padding: 0; list-style: none; }
.legend { font-size: 13px; overflow-wrap: anywhere; }
figure .legend svg { display: inline; width: 26px; height: 8px; margin-right: 5px; }
.scroll { overflow-x: auto; }
.narrow { max-width: 760px; }
tbody th { min-width: 7.5em; }
th:first-child { position: sticky; left: 0; background: var(--card); }
table { border-collapse: collapse; width: 100%; font-size: 14px; font-variant-numeric: tabular-nums; }
th, td { padding: 5px 9px; text-align: right; vertical-align: top; border-top: 1px solid var(--line); }
thead th, tbody:first-child tr:first-child th, tbody:first-child tr:first-child td { border-top: 0; }
th { font-weight: 400; color: var(--muted); text-align: left; }
thead th { text-align: right; }
thead th:first-child { text-align: left; }
td { white-space: nowrap; }
.facts thead th { text-align: left; }
.facts td { white-space: normal; text-align: left; overflow-wrap: anywhere; min-width: 12em; }
.bar { display: block; width: 100%; min-width: 64px; height: 6px; margin-top: 4px; }
pre { margin: 0 0 12px; padding: 10px 12px; white-space: pre-wrap; overflow-wrap: anywhere; }
pre { font: 13px/1.45 ui-monospace, monospace; }
details { margin-top: 10px; }
summary { cursor: pointer; margin-bottom: 8px; }
"""
