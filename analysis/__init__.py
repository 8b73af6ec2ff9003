"""Judge the claims from the rows that `harness` left, and show how sure the judgement is.

The data passes through three packages::

    load -> judgement -> page -> report
                |
            statistics   arrays in, numbers out

`calibrate` shows on simulated grids how often the verdicts are wrong. Nothing is imported here, and
nothing in this package needs torch or ray.
"""
