"""The report's page: draws finished numbers, computes none.

In go verdicts and effects; out come sections, charts and tables. Read in this order::

    frames -> charts -> sections

`theme` gives each placement its colour and each column its title.
"""
