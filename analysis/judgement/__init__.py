"""From frames of results to verdicts.

In go the frames of `analysis.load`; out come `Effect`s and `Verdict`s. Read in this order::

    studies -> outcomes -> effects -> evidence -> verdicts
    practice, interactions     what else is asked; no verdict rests on it
"""
