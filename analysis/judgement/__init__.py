"""From frames of results to verdicts.

In go the frames of `analysis.load`; out come `Effect`s and `Verdict`s. Read in this order::

    studies -> outcomes -> effects -> evidence -> verdicts
    courses, lengths, fates    what happens along training, at which length, and to which runs
    practice, interactions     what else is asked; no verdict rests on any of these
    deciding                   which claims are open, and what more seeds could settle
    simulation -> promises     how often all this errs where the truth is known
    answers                    the answer of a whole study in one sentence
"""
