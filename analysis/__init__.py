"""Judge the claims from the rows that `harness` left, and show how sure the judgement is.

Read the modules in the order the data passes through them::

    load -> outcomes -> effects -> evidence -> claims -> charts -> report

`contrasts`, `resampling`, `multiplicity` and `power` are the statistics they stand on, and
`calibrate` shows on simulated grids how often the verdicts are wrong.
Nothing is imported here, and nothing in this package needs torch or ray.
"""
