"""The rows of a study: written once, read back checked.

In go the rows of a finished trial; out come the rows of all of them. Read in this order::

    store -> tables (Parquet) -> places (a folder or a bucket)

`lease` keeps a folder to one run at a time, and `tally` counts what has become of a plan.
"""
