"""The style sheet of the report: light, dark and print, with system fonts."""

STYLE = """
:root{color-scheme:light dark;--ink:#1a222d;--soft:#5a6878;--line:#d8dee6;--back:#fff;--panel:#f5f7fa;
 --blue:#2463a8;--strong:#1f7a45;--good:#4f7d22;--weak:#a8650b;--none:#b3322e}
@media(prefers-color-scheme:dark){:root{--ink:#e6ebf1;--soft:#9eabba;--line:#36404c;--back:#12161b;--panel:#1b2128;
 --blue:#6aa9ea;--strong:#55c184;--good:#9bc765;--weak:#e5a548;--none:#ef7d78}}
*{box-sizing:border-box}
body{margin:0 auto;max-width:62rem;padding:2.5rem 1.25rem 4rem;font:16px/1.55 system-ui,-apple-system,"Segoe UI",
 "Liberation Sans",sans-serif;color:var(--ink);background:var(--back)}
h1{font-size:2.4rem;line-height:1.15;margin:.1rem 0 .6rem;letter-spacing:-.02em}
h2{font-size:1.5rem;margin:3rem 0 .7rem;border-top:2px solid var(--line);padding-top:1.4rem}
h3{margin:2rem 0 .5rem;font-size:1.05rem}
p,ul{max-width:48rem}
li{margin:.35rem 0}
.kicker{margin:0;color:var(--soft);font-size:.9rem}
.lead{font-size:1.12rem;margin-bottom:1.6rem}
.soft,figcaption{color:var(--soft);font-size:.9rem}
.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(15rem,1fr));gap:1rem}
.card{border:1px solid var(--line);border-top:5px solid var(--tone);border-radius:8px;background:var(--panel);
 padding:1rem 1.2rem}
.card p{margin:.15rem 0}
.name{font-weight:700;font-size:1.15rem}
.badge{color:var(--tone);font-weight:600}
.big{font-size:2.3rem;font-weight:700;line-height:1.2;font-variant-numeric:tabular-nums}
.meter{height:8px;border-radius:4px;background:var(--line);margin:.8rem 0 .3rem;overflow:hidden}
.meter span{display:block;height:100%;background:var(--tone)}
.strong{--tone:var(--strong)}
.good{--tone:var(--good)}
.weak{--tone:var(--weak)}
.none{--tone:var(--none)}
.verdict{border-left:6px solid var(--tone);background:var(--panel);padding:.8rem 1.1rem;margin:1rem 0;
 border-radius:0 6px 6px 0}
.verdict p{margin:.2rem 0}
.wide{overflow-x:auto;margin:.6rem 0}
table{border-collapse:collapse;width:100%;font-size:.92rem}
th,td{padding:.4rem .6rem;border-bottom:1px solid var(--line);text-align:left;vertical-align:top}
th{color:var(--soft);font-weight:600}
.n th:not(:first-child),.n td:not(:first-child){text-align:right;font-variant-numeric:tabular-nums}
.n td:not(:first-child){white-space:nowrap}
.facts td:first-child{white-space:nowrap;color:var(--soft)}
.facts td{overflow-wrap:anywhere}
.pair{display:grid;grid-template-columns:repeat(auto-fit,minmax(17rem,1fr));gap:1rem;background:var(--panel);
 border-radius:6px;padding:.7rem 1rem;margin:.7rem 0}
.pair p{margin:0;white-space:pre-line;font-family:Georgia,"Liberation Serif",serif;overflow-wrap:anywhere}
.pair .label{font:600 .8rem system-ui,sans-serif;color:var(--soft);margin-bottom:.25rem}
figure{margin:1rem 0}
svg{width:100%;max-width:44rem;height:auto;display:block}
svg text{font:12px system-ui,"Liberation Sans",sans-serif;fill:var(--ink)}
svg .dim{fill:var(--soft)}
svg .strongly{font-weight:600}
.grid{stroke:var(--line);fill:none}
.bar{fill:var(--blue);opacity:.8}
.whisker{stroke:var(--ink);fill:none;stroke-width:1.5}
.blind{stroke:var(--none);stroke-dasharray:4 3;fill:none}
svg .blind-text{fill:var(--none)}
.ceiling{stroke:var(--strong);stroke-width:2;fill:none}
svg .ceiling-text{fill:var(--strong)}
.frame{fill:none;stroke:var(--line)}
.chance{stroke:var(--soft);stroke-dasharray:3 4;fill:none}
.exact{stroke:var(--blue);fill:none;stroke-width:2.2}
.gaussian{stroke:var(--weak);fill:none;stroke-width:2;stroke-dasharray:6 3}
@media print{:root{color-scheme:light;--ink:#000;--soft:#444;--line:#bbb;--back:#fff;--panel:#f4f4f4;--blue:#2463a8;
 --strong:#1f7a45;--good:#4f7d22;--weak:#a8650b;--none:#b3322e}
 body{font-size:11pt;max-width:none;padding:0;-webkit-print-color-adjust:exact;print-color-adjust:exact}
 section{break-before:page}h2,h3{break-after:avoid}tr,svg,figure,.pair,.card,.verdict{break-inside:avoid}
 .wide{overflow:visible}}
"""
