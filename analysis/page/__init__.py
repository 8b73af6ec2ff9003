"""The report's page: draws finished numbers, computes none.

In go results, effects and verdicts; out come a page, and files beside it. Read in this order::

    frames -> charts, curves -> parts
    training, fates, differences, flow, practice, interactions, runs, checks -> sections
    pictures (drawing, svg) -> html, methods -> files, paper

`frames` holds the numbers that are seen, `charts` and `curves` draw them with what `encodings` gives,
`parts` says what a page is made of, `facts` what a reader asks of a study first.
One module for each group of sections fills the parts, and `sections` puts them in order. `html`
renders the page for a browser, and `files` writes it with all that stands beside it.
`pictures` has every chart drawn once, by the JavaScript engine that `drawing` runs, as the SVG that
`svg` makes fit for a page; `methods` says how the study was done, and `paper` writes what a paper takes.
`theme` gives each placement its colour, each column its title and each number its text. Nothing is
imported here.
"""
