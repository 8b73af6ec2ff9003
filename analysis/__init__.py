"""Judge the claims from the rows that `harness` left, and show how sure the judgement is.

Read the modules in the order the data passes through them::

    load -> effects -> claims -> charts -> report

`resampling`, `multiplicity` and `power` are the statistics that `effects` and `claims` stand on.
Nothing is imported here, and nothing in this package needs torch or ray.
"""
