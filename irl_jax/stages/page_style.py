"""The style sheet and script of our pages, and the content policy that lets nothing else run."""

from __future__ import annotations

import base64
import hashlib

from irl_jax.stages.plot_style import DARK, LIGHT, Theme

_STYLE = """
:root{color-scheme:light dark;--fg:#1d2329;--soft:#57606a;--bg:#fff;--card:#f5f7f9;--line:#d8dde3;--link:#0b62a8;
 --good:#0a6b3d;--bad:#a8321a}
@media (prefers-color-scheme:dark){:root{
 --fg:#e4e8ec;--soft:#a3adb8;--bg:#171b20;--card:#20262d;--line:#3a424b;--link:#7cc0f4;--good:#5fd39a;--bad:#ff9d85}}
*{box-sizing:border-box}
body{margin:0 auto;max-width:76rem;padding:1rem;font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif;
 color:var(--fg);background:var(--bg);overflow-wrap:break-word}
h1{font-size:1.6rem;line-height:1.25;margin:.5rem 0;overflow-wrap:anywhere}h2{font-size:1.25rem;margin:2.2rem 0 .6rem}
h3{font-size:1rem;margin:1rem 0 .4rem}
p,main>section>ul{max-width:46rem}a{color:var(--link)}.soft,figcaption,caption{color:var(--soft)}
:focus-visible{outline:3px solid var(--link);outline-offset:2px;border-radius:2px}
.skip{position:absolute;left:-100vw;background:var(--bg);padding:.4rem .8rem}.skip:focus{left:.5rem;top:.5rem}
nav ul{list-style:none;padding:0;display:flex;flex-wrap:wrap;gap:.1rem 1rem}nav a{display:inline-block;padding:.3rem 0}
.name::before{content:"\\25CF\\00A0";color:var(--c)}
.facts{display:grid;grid-template-columns:minmax(6rem,max-content) 1fr;gap:.25rem 1rem;margin:.6rem 0;max-width:60rem}
.facts dt{color:var(--soft)}.facts dd{margin:0;overflow-wrap:anywhere}
.scroll{overflow-x:auto;margin:.6rem 0 1.2rem}
table{border-collapse:collapse;font-size:.9rem;font-variant-numeric:tabular-nums}
caption{text-align:left;padding-bottom:.4rem;font-size:.9rem}
caption span{display:block;position:sticky;left:0;width:max-content;max-width:min(46rem,calc(100vw - 2.5rem))}
.unseen{position:absolute;width:1px;height:1px;overflow:hidden;clip-path:inset(50%)}
th,td{padding:.35rem .7rem;border-bottom:1px solid var(--line);text-align:right;vertical-align:top}
td{white-space:nowrap}thead th{font-weight:600;vertical-align:bottom;min-width:5rem;max-width:10rem}
th:first-child{text-align:left;position:sticky;left:0;background:var(--bg)}
tbody th{font-weight:500;white-space:nowrap}td.text{text-align:left;white-space:normal;overflow-wrap:anywhere}
td.why{text-align:left;white-space:normal;min-width:17rem}.good{color:var(--good)}.bad{color:var(--bad)}th.left{text-align:left}
.strip{width:7.5rem;height:1rem;vertical-align:-.15rem;color:var(--c,currentColor)}
.figures{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,24rem),1fr));gap:1rem 1.5rem;align-items:start}
figure{margin:0;min-width:0}figure img{width:100%;max-width:34rem;height:auto;display:block}
figcaption{font-size:.85rem;max-width:34rem}
.search{display:flex;flex-wrap:wrap;gap:.3rem .8rem;align-items:baseline;margin:.6rem 0}.search[hidden]{display:none}
.search input{font:inherit;color:inherit;background:var(--card);border:1px solid var(--soft);border-radius:.4rem;padding:.45rem .7rem;
 width:min(100%,24rem)}
.responses{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,15rem),1fr));gap:.7rem}
.response{background:var(--card);border-radius:.5rem;padding:.6rem .8rem;border-top:3px solid var(--c,var(--line));min-width:0}
.response h4{margin:0;font-size:.9rem;overflow-wrap:anywhere}
.response p,.prompt{white-space:pre-wrap;overflow-wrap:anywhere;margin:.4rem 0}
.prompt{border-left:.25rem solid var(--line);padding-left:.7rem}
.response ul{list-style:none;margin:0;padding:0;font-size:.8rem;color:var(--soft)}
.response li{display:inline-block;margin-right:.8rem}article[hidden]{display:none}
details{margin:.6rem 0}summary{cursor:pointer;padding:.3rem 0}summary>h3{display:inline}
@media (max-width:40rem){body{padding:.8rem}tbody th{white-space:normal;overflow-wrap:break-word;min-width:7.2rem;max-width:9.5rem}
 th,td{padding:.35rem .5rem}.facts{grid-template-columns:1fr;gap:0}.facts dd{margin-bottom:.5rem}td.why{min-width:14rem}}
"""

SCRIPT = """
"use strict";
for (const region of document.querySelectorAll(".scroll")) {  // a stop of the Tab key only where there is something to scroll
  const look = () => { region.tabIndex = region.scrollWidth > region.clientWidth ? 0 : -1; };
  new ResizeObserver(look).observe(region);
  look();
}
const search = document.querySelector(".search");
if (search) {
  const field = search.querySelector("input"), told = search.querySelector("output");
  const articles = [...document.querySelectorAll("#samples article")].map(shown => [shown, shown.textContent.toLowerCase()]);
  const folded = document.querySelector("#samples details");
  search.hidden = false;  // without a script it would do nothing
  field.addEventListener("input", () => {
    const words = field.value.toLowerCase().split(/\\s+/).filter(Boolean);
    let found = 0;
    for (const [article, text] of articles) {
      article.hidden = !words.every(word => text.includes(word));
      found += !article.hidden;
    }
    if (folded && words.length) folded.open = true;
    told.value = words.length ? `${found} of ${articles.length} prompts` : "";
  });
}
"""


def _colors(theme: Theme) -> str:
    return "".join(f".r-{recipe}{{--c:{color}}}" for recipe, color in theme.recipes.items())


STYLE = _STYLE + _colors(LIGHT) + f"\n@media (prefers-color-scheme:dark){{{_colors(DARK)}}}\n"


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


POLICY = (f"default-src 'none'; style-src {_hash(STYLE)}; script-src {_hash(SCRIPT)}; img-src data:; base-uri 'none'; "
          "form-action 'none'")  # Content-Security-Policy: nothing smuggled in by a sample is run or fetched
