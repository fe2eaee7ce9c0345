"""Style sheet and script of pages: light and dark, wide screens and phones, no external resources."""

STYLE = """
:root { color-scheme: light dark; --paper: #fbfbf9; --card: #ffffff; --ink: #1c1f23; --soft: #5d6570; --rule: #e1e3e0;
  --good: #1b7a4b; --bad: #b3431e; --one: #1f5fbf; --two: #c2611f; --three: #2f8f68; }
@media (prefers-color-scheme: dark) { :root { --paper: #14171a; --card: #1c2024; --ink: #e8eaec; --soft: #a0a8b1;
  --rule: #31363c; --good: #6fd3a0; --bad: #ff9a70; --one: #86b4ff; --two: #ffb079; --three: #74d0aa; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.55 system-ui, sans-serif; }
main, header { max-width: 100rem; margin: 0 auto; padding: 0 clamp(1.1rem, 4vw, 4rem); }
header { padding-top: 2.2rem; }
h1 { font-size: 1.75rem; line-height: 1.2; margin: 0 0 .3rem; letter-spacing: -.01em; }
h2 { font-size: 1.25rem; margin: 2.8rem 0 .4rem; padding-top: 1.3rem; border-top: 1px solid var(--rule); }
h3 { font-size: 1rem; margin: 1.4rem 0 .3rem; }
p { margin: .5rem 0; max-width: 52rem; }
.soft, figcaption, .note { color: var(--soft); }
.note { font-size: .9rem; }
.results { background: var(--card); border: 1px solid var(--rule); border-radius: .7rem; padding: .7rem 1.2rem 1rem;
  margin-top: 1.4rem; }
.results h2 { border: 0; margin: .3rem 0; padding: 0; }
.verdict { border-left: 4px solid var(--rule); padding: .1rem 0 .1rem .9rem; }
.verdict.good { border-color: var(--good); }
.verdict.bad { border-color: var(--bad); }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(8.2rem, 1fr)); gap: .7rem;
  margin: 1rem 0 .3rem; }
.tile { border: 1px solid var(--rule); border-radius: .5rem; padding: .55rem .8rem; }
.tile b { display: block; font-size: 1.45rem; line-height: 1.25; font-variant-numeric: tabular-nums; }
.tile span.label { font-size: .82rem; color: var(--soft); display: block; line-height: 1.35; }
.row { margin: 1.1rem 0 1.5rem; }
.videos { display: grid; grid-template-columns: repeat(var(--count), minmax(0, 24rem)); gap: .7rem; }
@media (max-width: 38rem) {
  .videos { grid-template-columns: repeat(2, minmax(0, 1fr)); gap: .5rem; }
  .videos[data-count="3"] { grid-template-columns: repeat(3, minmax(0, 1fr)); }
}
.videos figure { margin: 0; }
.videos video { display: block; width: 100%; height: auto; border-radius: .35rem; background: transparent; }
figcaption { font-size: .85rem; margin-top: .25rem; }
.row > p { font-size: .9rem; margin: .4rem 0 0; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; margin: .9rem 0; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .35rem 1.1rem .35rem 0; border-bottom: 1px solid var(--rule); vertical-align: top; }
th { font-weight: 600; font-size: .85rem; color: var(--soft); }
td.figure, th.figure { text-align: right; }
tr.ours td { font-weight: 650; }
code { font: .88em ui-monospace, monospace; overflow-wrap: anywhere; }
ul { padding-left: 1.2rem; }
.commands li { margin: .4rem 0; }
.chart { width: 100%; max-width: 60rem; height: auto; display: block; }
.chart text { fill: var(--soft); font-size: 15px; }
@media (max-width: 38rem) { .chart text { font-size: 22px; } }
.chart .grid { stroke: var(--rule); fill: none; }
.chart .line { fill: none; stroke-width: 2.2; stroke: currentColor; stroke-linejoin: round; }
.chart .line.held { stroke-dasharray: 5 5; }
.chart .dot { fill: currentColor; }
.one { color: var(--one); } .two { color: var(--two); } .three { color: var(--three); }
.legend { list-style: none; display: flex; flex-wrap: wrap; gap: .2rem 1.3rem; padding: 0; margin: .4rem 0;
  font-size: .9rem; }
.legend i { font-style: normal; font-weight: 700; }
main { padding-bottom: 4rem; }
"""

# The videos of a row are played in step: all restart when the first one ends. Without the script each loops alone.
SCRIPT = """
const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
for (const row of document.querySelectorAll(".videos")) {
  const videos = [...row.querySelectorAll("video")];
  if (still) { for (const video of videos) { video.pause(); video.autoplay = false; video.controls = true; } continue; }
  const again = () => { for (const video of videos) { video.currentTime = 0; video.play().catch(() => {}); } };
  for (const video of videos) video.loop = false;
  videos[0].addEventListener("ended", () => setTimeout(again, 300));
  new IntersectionObserver((seen) => {
    if (seen[0].isIntersecting) again(); else for (const video of videos) video.pause();
  }).observe(row);
}
"""
