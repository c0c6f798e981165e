"""The page's style sheet: light and dark, desktop and phone."""

CSS = """
:root { color-scheme: light dark; --paper: #fdfcf9; --ink: #1b1f24; --soft: #5b636d; --line: #dedbd2; --card: #ffffff;
        --good: #11805f; --bad: #c2410c; }
@media (prefers-color-scheme: dark) {
  :root { --paper: #14171b; --ink: #e7e5df; --soft: #a2a9b2; --line: #333941; --card: #1b1f25;
          --good: #4fc79d; --bad: #f2885a; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2.2rem 1.2rem 4rem; max-width: 60rem; background: var(--paper); color: var(--ink);
       font: 17px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
.eyebrow { color: var(--soft); margin: 0 0 .4rem; font-size: .95rem; }
h1 { font-size: clamp(1.5rem, 4.2vw, 2.15rem); line-height: 1.22; margin: 0 0 .9rem; text-wrap: balance; }
h2 { font-size: 1.2rem; margin: 2.6rem 0 .7rem; }
h3 { font-size: 1rem; margin: 1.4rem 0 .5rem; }
h3 small { font-weight: 400; display: inline; margin-left: .4rem; }
p { max-width: 44rem; }
.lead { font-size: 1.08rem; margin: 0 0 1.6rem; }
.soft, figcaption, small { color: var(--soft); }
small { font-size: .84em; display: block; }
figure { margin: 0; }
figure svg { width: 100%; height: auto; max-width: 35rem; display: block; }
figcaption { font-size: .93rem; margin-top: .5rem; max-width: 35rem; }
.beside { display: grid; grid-template-columns: minmax(0, 35rem) minmax(0, 1fr); gap: 1.8rem; align-items: center; }
.beside ul { padding: 0; margin: 0; list-style: none; }
.beside li { border-left: 4px solid var(--line); padding: .1rem 0 .1rem .9rem; margin: 0 0 1.1rem; }
.two { display: grid; grid-template-columns: 1fr 1fr; gap: 1.5rem; }
b.name { display: block; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; background: var(--card);
        border: 1px solid var(--line); }
th, td { padding: .55rem .7rem; text-align: right; white-space: nowrap; vertical-align: top;
         border-bottom: 1px solid var(--line); }
th { color: var(--soft); font-weight: 600; font-size: .9rem; vertical-align: bottom; }
th:first-child, td:first-child { text-align: left; }
th { white-space: normal; }
td:first-child { font-weight: 600; white-space: normal; min-width: 9.5rem; }
td small { font-weight: 400; }
summary { cursor: pointer; color: var(--soft); }
ul.statements { padding-left: 1.2rem; max-width: 46rem; }
ul.statements li { margin: .35rem 0; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .3rem 1.2rem; margin: 0; }
dt { color: var(--soft); }
dd { margin: 0; }
.good { color: var(--good); font-weight: 600; }
.bad { color: var(--bad); font-weight: 600; }
.notice { border-left: 4px solid var(--bad); padding: .3rem 0 .3rem .9rem; }
@media (max-width: 46rem) {
  body { padding: 1.3rem 1rem 3rem; font-size: 16px; }
  .beside, .two { grid-template-columns: minmax(0, 1fr); }
  thead { display: none; }
  table, tbody, tr, td { display: block; }
  tr { padding: .5rem 0; border-bottom: 1px solid var(--line); }
  tr:last-child { border-bottom: 0; }
  td, td:first-child { display: flex; justify-content: space-between; gap: 1rem; text-align: right; border: 0;
                       padding: .18rem .8rem; }
  td:first-child { font-size: 1.05rem; text-align: left; }
  td:empty { display: none; }
  td:not(:first-child) small { display: inline; margin-left: .45rem; }
  td:not(:first-child)::before { content: attr(data-label); color: var(--soft); text-align: left; }
  dl { grid-template-columns: 1fr; gap: 0; }
  dd { margin-bottom: .6rem; }
}
@media print { body { max-width: none; } }
"""
