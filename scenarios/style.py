"""The look of the pages that commands write; nothing in it is loaded from elsewhere."""

__all__ = ["DARK", "NARROW", "STYLE"]

STYLE = """
:root{--ink:#16191f;--soft:#5b6472;--line:#e3e6eb;--paper:#fff;--tint:#f6f7f9;--mark:#c2410c}
*{box-sizing:border-box}body{margin:0;background:var(--tint);color:var(--ink);
font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",sans-serif}
main{max-width:1080px;margin:0 auto;padding:40px 24px 72px}
h1{font-size:30px;line-height:1.2;margin:0 0 8px;letter-spacing:-.01em;text-wrap:balance}
h2{font-size:19px;margin:44px 0 12px}p.lead{color:var(--soft);max-width:68ch;margin:0 0 24px}
.card+p.lead{margin-top:12px}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(220px,1fr));gap:12px;margin:0 0 28px}
.tile{background:var(--paper);border:1px solid var(--line);border-radius:8px;padding:14px 16px}
.tile b{display:block;font-size:24px;font-weight:600;font-variant-numeric:tabular-nums}
.tile span{color:var(--soft);font-size:13px}
figure{margin:0;background:#11141a;border-radius:8px;overflow:hidden}
video,img{display:block;width:100%;height:auto}.card{background:var(--paper);border:1px solid var(--line);
border-radius:8px;padding:12px}.scroll{overflow-x:auto}
table{border-collapse:collapse;width:100%;font-size:14px;font-variant-numeric:tabular-nums}
th,td{text-align:right;padding:7px 10px;border-bottom:1px solid var(--line);white-space:nowrap}
th:first-child,td:first-child{text-align:left}td.t{text-align:left}th{color:var(--soft);font-weight:600}
tbody tr:last-child td{border-bottom:0}td small{color:var(--soft)}details summary{cursor:pointer;color:var(--soft);
margin:8px 0}pre{white-space:pre-wrap;word-break:break-word;font-size:13px;margin:0}
.warn{border-left:4px solid var(--mark);background:#fff7ed;padding:10px 14px;border-radius:4px;margin:0 0 20px}
"""
"""Of every page that a command writes."""

DARK = """
:root{color-scheme:light dark}a{color:#0b5cad}
@media (prefers-color-scheme:dark){:root{--ink:#e8ebf0;--soft:#a7b0be;--line:#333a46;--paper:#1a1e26;--tint:#12151b;
--mark:#fb923c}.warn{background:#2b1d12}a{color:#7cb8ff}}
.js-plotly-plot text{fill:var(--ink)!important}.js-plotly-plot .gridlayer path,.js-plotly-plot .zerolinelayer path{
stroke:var(--line)!important}.js-plotly-plot .hoverlayer text{fill:#16191f!important}
"""
"""Light and dark, of pages whose pictures and plots stand in both."""

NARROW = """
.says{font-size:18px;max-width:60ch;margin:0 0 16px}
.at{color:var(--soft);font-size:14px;margin:0 0 8px}.at b{color:var(--ink)}
.panels{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(160px,45%),1fr));gap:8px}
.panels.still{max-width:760px;margin:0 0 20px}
.panels figure{background:none;border-radius:0}.panels img,.panels .none{border-radius:8px;aspect-ratio:1;
background:#11141a}
.panels .none{display:grid;place-items:center;color:#a7b0be;font-size:14px}
figcaption{font-size:14px;line-height:1.4;margin:6px 0 0}figcaption b,figcaption span{display:block}
figcaption span{color:var(--soft)}
.controls{display:flex;gap:12px;align-items:center;margin:12px 0 28px}.controls input{flex:1;min-width:0}
button{font:inherit;padding:6px 18px;border-radius:6px;border:1px solid var(--soft);background:var(--paper);
color:var(--ink);cursor:pointer;min-width:88px}
.flow{display:flex;flex-wrap:wrap;gap:8px;align-items:center;margin:0 0 16px}
.flow div{flex:1 1 200px;background:var(--paper);border:1px solid var(--line);border-radius:8px;padding:10px 14px}
.flow div.bad{border-color:var(--mark)}.flow i{flex:0 1 110px;color:var(--soft);font-size:14px;text-align:center}
.flow b,.flow span{display:block}.flow span{font-size:14px;color:var(--soft)}
ul.next{padding-left:20px}ul.next li{margin:0 0 12px}
.next pre,main>pre{background:var(--paper);border:1px solid var(--line);border-radius:6px;padding:8px 12px;margin:4px 0}
dl{display:grid;grid-template-columns:max-content 1fr;gap:6px 20px;margin:0;font-size:15px}dt{font-weight:600}
dd{margin:0;color:var(--soft)}
th,td{white-space:normal}
@media (max-width:640px){main{padding:20px 14px 48px}h1{font-size:25px}dl{grid-template-columns:1fr;gap:0}
dd{margin:0 0 8px}.flow i{flex-basis:100%}th,td{padding:6px}.panels{grid-template-columns:1fr 1fr}
.panels.still{grid-template-columns:repeat(3,1fr)}.still figcaption{font-size:12px}}
"""
"""Of pages with pictures first, from 390 pixels on."""
