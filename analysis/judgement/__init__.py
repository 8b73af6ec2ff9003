"""From frames of results to verdicts.

In go the frames of `analysis.load`; out come `Effect`s and `Verdict`s. Read in this order::

    outcomes -> effects -> evidence -> verdicts
    practice              what is asked beside accuracy; no verdict rests on it
    studies -> outcomes -> effects -> evidence -> verdicts
"""
