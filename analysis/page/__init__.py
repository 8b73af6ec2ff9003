"""The report's page: draws finished numbers, computes none.

In go results, effects and verdicts; out come a page, and files beside it. Read in this order::

    frames -> charts, curves -> parts
    training, fates, differences, flow, practice, interactions, runs, checks -> sections
    html -> files

`frames` holds the numbers that are seen, `charts` and `curves` draw them with what `encodings` gives,
`parts` says what a page is made of, `facts` what a reader asks of a study first.
One module for each group of sections fills the parts, and `sections` puts them in order. `html`
renders the page for a browser, and `files` writes it with all that stands beside it.
`theme` gives each placement its colour, each column its title and each number its text. `drawing`
runs the JavaScript engine that draws figures for files. Nothing is imported here.
"""
